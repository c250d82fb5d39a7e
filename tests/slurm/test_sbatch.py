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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train.conftest import ROOT, environment, metrics, run

CLUSTER = Path(__file__).parent / "cluster.sh"
STEPS = 20
SMOKE = ("experiment=smoke", f"trainer.max_steps={STEPS}", "trainer.save_steps=1000")
# What a step computed, as opposed to how fast.
RESULTS = ("step", "loss", "grad_norm", "learning_rate", "supervised_tokens", "tokens", "samples")
JOB_TIMEOUT_S = 150

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

    def call(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *words: str) -> str:
        log = f"--output={self.state}/job-%j.out"
        return self.call("sbatch", "--parsable", "--nodes=2", log, "slurm/train.sbatch", "pretrain", *words)

    def log(self, job: str) -> str:
        path = self.state / f"job-{job}.out"
        return path.read_text() if path.is_file() else ""

    def facts(self, job: str) -> dict[str, str]:
        """JobState, Restarts, ExitCode, ... of a job."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ask_to_stop(self, job: str) -> None:
        """What Slurm does shortly before the time limit."""
        self.call("scancel", "--batch", "--signal=USR1", job)

    def wait_for(self, job: str, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"gave up waiting for job {job}: {self.facts(job)}\n{self.log(job)[-5000:]}")
            time.sleep(0.2)

    def end_of(self, job: str) -> dict[str, str]:
        ends = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")
        self.wait_for(job, lambda: self.facts(job)["JobState"] in ends)
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


def test_a_stopped_job_continues_and_equals_an_undisturbed_local_run(slurm: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    job = slurm.submit(*SMOKE, f"run.dir={folder}")
    slurm.wait_for(job, lambda: (folder / "metrics.jsonl").is_file() and len(_lines(folder)) >= 3)
    slurm.ask_to_stop(job)
    facts = slurm.end_of(job)
    log = slurm.log(job)
    assert facts["JobState"] == "COMPLETED", log
    assert (facts["Restarts"], facts["ExitCode"]) == ("1", "0:0"), log
    assert "stopped by a signal at step" in log
    assert "resuming from checkpoint-" in log
    assert f"finished: {STEPS} steps" in log
    starts = json.loads((folder / "environment.json").read_text())
    assert [start["world_size"] for start in starts] == [2, 2]
    local = tmp_path / "local"
    run("pretrain", *SMOKE, f"run.dir={local}", processes=2)
    assert [record["step"] for record in results(local)] == list(range(1, STEPS + 1))
    assert results(folder) == results(local)


def _lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_wrong_key_fails_the_job_and_is_named(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(*SMOKE, "trainer.no_such_key=1", f"run.dir={tmp_path}/run")
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
        f"signal.signal({int(signal.SIGUSR1)}, lambda *_: sys.exit(3))\n"
        "print('deaf no more', flush=True)\n"
        f"time.sleep({JOB_TIMEOUT_S})\n"
    )
    (folder / "torchrun").chmod(0o755)
    slurm.env["QA_TRAIN_VENV"] = str(tmp_path / "venv")
    try:
        job = slurm.submit(f"run.dir={tmp_path}/run")
    finally:
        slurm.env["QA_TRAIN_VENV"] = sys.prefix
    slurm.wait_for(job, lambda: slurm.log(job).count("deaf no more") == 2)
    slurm.ask_to_stop(job)
    facts = slurm.end_of(job)
    assert (facts["JobState"], facts["Restarts"], facts["ExitCode"]) == ("FAILED", "0", "3:0")
    assert "not requeueing" in slurm.log(job)
