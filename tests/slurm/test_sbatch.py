"""slurm/train.sbatch on a real Slurm: two nodes that tests/slurm/cluster.sh starts on this machine."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.conftest import ROOT, environment, metrics, run, tensors

CLUSTER = Path(__file__).parent / "cluster.sh"
STEPS, SAVE_STEPS = 60, 10
SMOKE = ("experiment=smoke", "deepspeed=zero3", f"trainer.max_steps={STEPS}", f"trainer.save_steps={SAVE_STEPS}")
# What a step computed, as opposed to how fast.
RESULTS = ("step", "loss", "grad_norm", "learning_rate", "supervised_tokens", "tokens", "samples")
JOB_TIMEOUT_S = 400
ENDS = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")

pytestmark = pytest.mark.slow


class Slurm:
    """Submits slurm/train.sbatch on two nodes, and follows the job."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.env = environment() | {
            "SLURM_CONF": str(state / "slurm.conf"),
            "PROCESSES_PER_NODE": "1",
            "QA_TRAIN_VENV": sys.prefix,
        }

    def call(self, *words: str, cwd: Path = ROOT) -> str:
        done = subprocess.run(words, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *options: str, words: Sequence[str]) -> str:
        log = f"--output={self.state}/job-%j.out"
        return self.call("sbatch", "--parsable", "--nodes=2", log, *options, "slurm/train.sbatch", *words)

    def log(self, job: str) -> str:
        path = self.state / f"job-{job}.out"
        return path.read_text() if path.is_file() else ""

    def facts(self, job: str) -> dict[str, str]:
        """JobState, Restarts, ExitCode, ... of a job."""
        show = ["scontrol", "--oneliner", "show", "job", job]
        for _ in range(3):
            done = subprocess.run(show, env=self.env, capture_output=True, text=True, timeout=120)
            if done.returncode != -signal.SIGPIPE:  # a controller that is short of time hangs up on it
                break
        assert done.returncode == 0, done
        words = done.stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ask_to_stop(self, job: str) -> None:
        """What Slurm does shortly before the time limit."""
        self.call("scancel", "--batch", "--signal=USR1", job)

    def wait_for(self, job: str, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while not condition():
            # What a job that is over has not done it never will.
            over = self.facts(job)["JobState"] in ENDS and not condition()
            if over or time.monotonic() > deadline:
                pytest.fail(f"gave up waiting for job {job}: {self.facts(job)}\n{self.log(job)[-5000:]}")
            time.sleep(0.2)

    def end_of(self, job: str) -> dict[str, str]:
        self.wait_for(job, lambda: self.facts(job)["JobState"] in ENDS)
        return self.facts(job)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """A cluster of two nodes, gone again afterwards."""
    if shutil.which("slurmctld") is None:
        pytest.skip("no Slurm here: slurmctld is not on PATH")
    unable = subprocess.run([CLUSTER, "check"], capture_output=True, text=True)
    if unable.returncode:
        pytest.skip(f"no Slurm can be started here: {unable.stdout.strip()}")
    if not (Path(sys.prefix) / "bin" / "activate").is_file():
        pytest.skip("slurm/site.sh activates a virtual environment, and the tests run outside one")
    with (Path(tempfile.gettempdir()) / "qa-train-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one cluster at a time, also under pytest-xdist
        # Not under tmp_path: the name of a Unix socket must be short.
        state = Path(tempfile.mkdtemp(prefix="qa-train-slurm-"))
        yield from _cluster(state)


def _cluster(state: Path) -> Iterator[Slurm]:
    try:
        # Daemons keep their parent's output open, so it goes to a file and not into a pipe.
        with (state / "start.log").open("w") as log:
            started = subprocess.run([CLUSTER, "start", state], stdout=log, stderr=log, timeout=60)
        assert started.returncode == 0, "\n".join(path.read_text() for path in state.glob("*.log"))
        yield Slurm(state)
    finally:
        subprocess.run([CLUSTER, "stop", state], timeout=60)
        shutil.rmtree(state)


def results(folder: Path) -> list[dict[str, Any]]:
    return [{name: record[name] for name in RESULTS} for record in metrics(folder)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the jobs below make, by two processes here."""
    folder = tmp_path_factory.mktemp("local") / "run"
    run("pretrain", *SMOKE, f"run.dir={folder}", processes=2)
    return folder


def check_equal(folder: Path, undisturbed: Path) -> None:
    """Steps, weights and every rank's optimizer state are those of the undisturbed run, bit by bit."""
    assert [record["step"] for record in results(folder)] == list(range(1, STEPS + 1))
    assert results(folder) == results(undisturbed)
    ends = [path / "checkpoints" / f"checkpoint-{STEPS}" for path in (folder, undisturbed)]
    assert (ends[0] / "model.safetensors").read_bytes() == (ends[1] / "model.safetensors").read_bytes()
    states = sorted(ends[1].glob("global_step*/*optim_states.pt"))
    assert len(states) == 2
    for path in states:
        assert tensors(ends[0] / path.relative_to(ends[1])) == tensors(path)


def steps_of(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_a_job_at_its_time_limit_continues_and_equals_an_undisturbed_run(
    slurm: Slurm, tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    # The signal comes about 15 s after the start, Slurm may be some seconds early, and is repeated until it is heard.
    job = slurm.submit("--time=3", "--signal=B:USR1@165", words=["pretrain", *SMOKE, f"run.dir={folder}"])
    slurm.wait_for(job, lambda: slurm.facts(job)["Restarts"] == "1")
    slurm.call("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    facts = slurm.end_of(job)
    log = slurm.log(job)
    assert facts["JobState"] == "COMPLETED", log
    assert (facts["Restarts"], facts["ExitCode"]) == ("1", "0:0"), log
    # The repeated signals must not kill ranks that have saved and are about to end: torchrun would start them again.
    assert log.count("stopped by a signal at step") == 1, log
    assert "resuming from checkpoint-" in log
    assert f"finished: {STEPS} steps" in log
    starts = json.loads((folder / "environment.json").read_text())
    assert [start["world_size"] for start in starts] == [2, 2]
    check_equal(folder, undisturbed)


def test_a_job_that_loses_a_node_starts_again_and_equals_an_undisturbed_run(
    slurm: Slurm, tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    job = slurm.submit(words=["pretrain", *SMOKE, f"run.dir={folder}"])
    saved = folder / "checkpoints" / f"checkpoint-{SAVE_STEPS}" / "manifest.json"
    slurm.wait_for(job, lambda: saved.is_file() and steps_of(folder) > SAVE_STEPS)
    killed = subprocess.run([CLUSTER, "kill", slurm.state], capture_output=True, text=True)
    if killed.returncode:
        slurm.call("scancel", job)
        pytest.skip(killed.stdout.strip())
    slurm.wait_for(job, lambda: slurm.facts(job)["Restarts"] == "1")
    with (slurm.state / "start.log").open("a") as log:
        assert subprocess.run([CLUSTER, "boot", slurm.state], stdout=log, stderr=log, timeout=60).returncode == 0
    facts = slurm.end_of(job)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), slurm.log(job)
    assert "resuming from checkpoint-" in slurm.log(job)
    check_equal(folder, undisturbed)


def test_a_chain_of_three_stages_runs_on_the_code_that_was_frozen(slurm: Slurm, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    clean_copy(checkout)
    more = ["experiment=smoke", "trainer.max_steps=2", "deepspeed=zero3"]
    stages: list[str] = []
    for stage, base in (("pretrain", None), ("sft", "pretrain"), ("dpo", "sft")):
        stages += ["--"] if base else []
        stages += [stage, *more, f"run.dir=runs/{stage}", *([f"model.checkpoint=runs/{base}"] if base else [])]
    words = ["slurm/submit.sh", "--sbatch=--nodes=2", f"--sbatch=--output={slurm.state}/job-%j.out", *stages]
    (checkout / "new.txt").touch()
    with pytest.raises(AssertionError, match="changes that are not committed"):
        slurm.call(*words, cwd=checkout)
    (checkout / "new.txt").unlink()
    jobs = [line.split()[1].rstrip(":") for line in slurm.call(*words, cwd=checkout).splitlines()]
    assert len(jobs) == 3
    # Jobs in the queue do not see it.
    (checkout / "qa_train" / "__init__.py").write_text("raise SystemExit('edited after the submission')\n")
    for job, stage in zip(jobs, ("pretrain", "sft", "dpo"), strict=True):
        assert slurm.end_of(job)["JobState"] == "COMPLETED", slurm.log(job)
        folder = checkout / "runs" / stage
        assert json.loads((folder / "finished.json").read_text())["steps"] == 2
        submitted = yaml.safe_load((folder / "submitted.yaml").read_text())
        assert submitted["trainer"] == yaml.safe_load((folder / "config.yaml").read_text())["trainer"]


def clean_copy(checkout: Path) -> None:
    """The files of this checkout, as they are, in a git checkout of their own without changes."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y"]
    if subprocess.run([*git, "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("slurm/submit.sh needs a git checkout, and this is none")
    listed = subprocess.run(
        [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], cwd=checkout, check=True)


def test_a_wrong_key_fails_the_job_and_is_named(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(words=["pretrain", *SMOKE, "trainer.no_such_key=1", f"run.dir={tmp_path}/run"])
    facts = slurm.end_of(job)
    assert facts["JobState"] == "FAILED"
    assert facts["Restarts"] == "0"
    assert not facts["ExitCode"].startswith("0:")
    assert "no_such_key" in slurm.log(job)
    assert "the cause is the first error above" in slurm.log(job)


def test_a_job_that_fails_to_save_is_not_requeued_for_ever(slurm: Slurm, tmp_path: Path) -> None:
    # A stand-in for torchrun that answers the signal with a failure.
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text(f"PATH={folder}:$PATH\n")
    (folder / "torchrun").write_text(
        f"#!{sys.executable}\n"
        "import signal, sys, time\n"
        # The other node's failure must not end this one before it has a code of its own.
        f"signal.signal({int(signal.SIGTERM)}, {int(signal.SIG_IGN)})\n"
        f"signal.signal({int(signal.SIGUSR1)}, lambda *_: sys.exit(3))\n"
        "print('deaf no more', flush=True)\n"
        f"time.sleep({JOB_TIMEOUT_S})\n"
    )
    (folder / "torchrun").chmod(0o755)
    slurm.env["QA_TRAIN_VENV"] = str(tmp_path / "venv")
    try:
        job = slurm.submit(words=["pretrain", f"run.dir={tmp_path}/run"])
    finally:
        slurm.env["QA_TRAIN_VENV"] = sys.prefix
    slurm.wait_for(job, lambda: slurm.log(job).count("deaf no more") == 2)
    slurm.ask_to_stop(job)
    facts = slurm.end_of(job)
    assert (facts["JobState"], facts["Restarts"], facts["ExitCode"]) == ("FAILED", "0", "3:0")
    assert "not requeueing" in slurm.log(job)
