"""What a cluster does to a run: the run ends with one line that tells why, and the same command completes it exactly.

The table of docs/resume.md has a row for each of these. Deaths of ranks and of torchrun: test_two_starts.py; kills at
random moments: test_faults.py; full storage while saving: test_saving.py.
"""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qa_train.model.stored.manifest import damage, problem
from qa_train.train.job.checkpoints import list_folders, step_of
from tests.processes import free_port
from tests.train.conftest import ROOT, TIMEOUT_S, command, environment, metrics, stage_words
from tests.train.forks import IMPOSSIBLE, Start, forks
from tests.train.test_two_starts import steps_of, wait_for

pytestmark = pytest.mark.slow

STEPS = 40
# A fault is to be told within this.
SOON_S = 120.0


class Runs:
    """Starts of one run, on shards of its own when a test spoils them."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder = folder
        words = stage_words(shards, "pretrain", folder)
        self.words = [word for word in words if not word.startswith("trainer.max_steps=")]

    def start(self, *words: str, steps: int = STEPS, ranks: int = 1, under: dict[str, Any] | None = None) -> Start:
        given = [*self.words, f"trainer.max_steps={steps}", "trainer.save_steps=4", *words]
        return forks().start(["pretrain", *given], ranks=ranks, under=under)

    def end(self) -> dict[str, Any]:
        """What is compared of a finished run: its weights and its records without times."""
        weights = (self.folder / "checkpoints" / f"checkpoint-{STEPS}" / "model.safetensors").read_bytes()
        rows = [row for row in metrics(self.folder) if "loss" in row]
        return {"weights": weights, "steps": [row["step"] for row in rows], "losses": [row["loss"] for row in rows]}

    def saved(self) -> int:
        """The step of the newest complete checkpoint; every byte of it is there."""
        folder = next(each for each in list_folders(self.folder / "checkpoints") if problem(each) is None)
        assert damage(folder) is None
        return step_of(folder)

    def complete(self, *words: str, ranks: int = 1) -> dict[str, Any]:
        """Give the command again; how it ends."""
        again = self.start(*words, ranks=ranks)
        assert again.codes() == [0] * ranks, again.said()
        assert all(problem(folder) is None for folder in list_folders(self.folder / "checkpoints"))
        return self.end()


@pytest.fixture
def runs(shards: Path, tmp_path: Path) -> Runs:
    return Runs(tmp_path / "run", shards)


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    """The end of a run that nothing happens to, by its number of ranks."""
    found: dict[int, Any] = {}

    def end(ranks: int) -> Any:
        if ranks not in found:
            found[ranks] = Runs(tmp_path_factory.mktemp(f"ranks-{ranks}") / "run", shards).complete(ranks=ranks)
        return found[ranks]

    return end


def told_once(start: Start, code: int, line: str) -> None:
    """The start ended with this code, and one line of its own tells why."""
    assert start.codes(SOON_S) == [code], start.said()
    said = start.said()
    assert "Traceback" not in said, said
    assert len(re.findall(rf"(?m)^qa-train pretrain: .*{line}", said)) == 1, said


@pytest.mark.parametrize("moment", ["start", "evaluation", "saving"])
def test_a_signal_at_any_moment_loses_nothing(moment: str, runs: Runs, shards: Path, undisturbed: Any) -> None:
    held_out = f"+evaluation.sets.a={{shards:['{shards}/speech-000.tar'],task:asr,template:base,seen_in_training:true}}"
    words = ["evaluation.every=4", held_out, "evaluation.max_new_tokens=64"] if moment == "evaluation" else []
    first = runs.start(*words)
    if moment == "start":
        first.until((runs.folder / "owner.json").exists, "owner")
    elif moment == "evaluation":  # the one before the first step
        first.until(lambda: "writes to" in first.said(), "first screen")
        first.each(signal.SIGSTOP)
        while first.steps:
            # It was over before this process looked.
            first.end()
            first.codes()
            shutil.rmtree(runs.folder)
            first = runs.start(*words)
            first.until(lambda: "writes to" in first.said(), "first screen")  # noqa: B023
            first.each(signal.SIGSTOP)
    else:
        root = runs.folder / "checkpoints"
        first.until(lambda: any(problem(each) for each in list_folders(root)), "a save")
    first.kill(number=signal.SIGTERM)
    first.each(signal.SIGCONT)
    if moment == "start":
        # Nothing is there yet that could be saved.
        assert first.codes(SOON_S) == [-signal.SIGTERM]
    else:
        assert first.codes(SOON_S) == [75], first.said()
        assert "stopped by a signal" in first.said()
    assert runs.complete(*words) == undisturbed(1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_storage_that_fills_up_while_a_step_is_logged(ranks: int, runs: Runs, undisturbed: Any) -> None:
    first = runs.start(ranks=ranks)
    first.until(lambda: first.steps >= 5, "five steps")
    first.each(signal.SIGSTOP)
    before = runs.saved()
    # The kernel lets no file grow beyond this: what the disk does when it is full.
    size = (runs.folder / "metrics.jsonl").stat().st_size + 10
    for pid in first.pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))
    first.each(signal.SIGCONT)
    if ranks == 1:
        told_once(first, 1, r"(metrics\.jsonl: |could not be written.*)File too large.* same command then continues")
    else:
        assert 0 not in first.codes(SOON_S)
    # One more if all of it but the manifest was written.
    assert runs.saved() in (before, before + 4)
    assert runs.complete(ranks=ranks) == undisturbed(ranks)


def test_a_run_folder_that_is_removed(runs: Runs, undisturbed: Any) -> None:
    first = runs.start()
    first.until(lambda: first.steps >= 3, "three steps")
    runs.folder.rename(runs.folder.with_name("elsewhere"))
    told_once(first, 1, "was removed while the run wrote to it")
    assert not runs.folder.exists()
    assert runs.complete() == undisturbed(1)


def test_a_run_folder_that_becomes_read_only(runs: Runs, undisturbed: Any) -> None:
    first = runs.start(under={"powerless": True})
    first.until(lambda: first.steps >= 6, "six steps")
    places = [runs.folder / "metrics.jsonl", runs.folder / "checkpoints", runs.folder]
    for place in places:
        place.chmod(0o555)
    told_once(first, 1, "Permission denied.* same command then continues")
    told_once(runs.start(under={"powerless": True}), 2, "cannot be written.*Permission denied")
    for place in places:
        place.chmod(0o755)
    assert runs.saved() >= 4
    assert runs.complete() == undisturbed(1)


def test_shared_memory_that_is_too_small(runs: Runs, undisturbed: Any) -> None:
    first = runs.start("data.num_workers=2", under={"shm": "256k"})
    if first.codes(SOON_S) == [IMPOSSIBLE]:
        pytest.skip("this machine allows no namespaces")
    told_once(first, 1, r"does not fit into shared memory.*data\.num_workers")
    alone = runs.start(under={"shm": "256k"})
    assert alone.codes() == [0], alone.said()
    assert runs.end() == undisturbed(1)


def test_few_file_descriptors(runs: Runs, undisturbed: Any) -> None:
    told_once(runs.start(under={"files": [64, 64]}), 2, "may open 64 files.*ulimit -Hn")
    told_once(runs.start("data.num_workers=4", under={"files": [64, 256]}), 2, "may open 256 files.*num_workers")
    # The least that is allowed is enough, and a low soft limit is no reason to stop.
    first = runs.start("data.num_workers=2", under={"files": [40, 256]})
    first.until(lambda: first.steps >= 6, "six steps")
    first.kill()
    first.codes()
    second = runs.start(under={"files": [40, 128]})
    assert second.codes() == [0], second.said()
    assert runs.end() == undisturbed(1)


@pytest.mark.parametrize("how", ["replaced", "overwritten"])
def test_shards_that_change_under_a_run(how: str, shards: Path, tmp_path: Path) -> None:
    own = tmp_path / "shards"
    shutil.copytree(shards, own)
    runs = Runs(tmp_path / "run", own)
    first = runs.start(steps=100_000)
    first.until(lambda: first.steps >= 3, "three steps")
    for tar in own.glob("speech-*.tar"):
        other = bytes(len(tar.read_bytes()))
        if how == "replaced":
            (tmp_path / "other.tar").write_bytes(other)
            (tmp_path / "other.tar").replace(tar)
        else:
            tar.write_bytes(other)
    if how == "replaced":
        # The files that it has open are those that it was planned on.
        steps = first.steps
        first.until(lambda: first.steps > steps + 3, "further steps")
        first.kill(number=signal.SIGTERM)
        assert first.codes(SOON_S) == [75], first.said()
    else:
        told_once(first, 2, r"samples could not be used, more than data\.error_budget")
    refused = runs.start(steps=100_000)
    assert refused.codes(SOON_S) == [2], refused.said()


def test_a_home_a_name_and_a_locale_that_are_not_there(shards: Path, tmp_path: Path) -> None:
    """In one start: no HOME, a user id without a name, the C locale, stale variables, folders that are not ASCII."""
    nobody = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]
    try:
        subprocess.run([*nobody, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine allows no namespaces")
    own = tmp_path / "dätä-音"
    shutil.copytree(shards, own)
    folder = tmp_path / "rün"
    words = stage_words(own, "pretrain", folder)
    words[1] = f"run.dir='{folder}'"
    bare = {k: v for k, v in environment().items() if k not in ("HOME", "USER", "LOGNAME", "LANG")}
    stale = {"LC_ALL": "C", "MASTER_ADDR": "10.255.0.1", "MASTER_PORT": "29500", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [*nobody, *command("pretrain", *words)], env=bare | stale, cwd=ROOT, capture_output=True, text=True,
        timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in metrics(folder)] == list(range(1, 7))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["run"]["dir"] == str(folder)
    assert config["data"]["sources"]["made"]["shards"] == [f"{own}/speech-*.tar"]


def test_two_runs_on_one_host(options: Callable[[str, Path], list[str]], tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            command("pretrain", *options("pretrain", tmp_path / name), processes=2), env=environment(), cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("a", "b")
    ]  # fmt: skip
    try:
        said = [each.communicate(timeout=TIMEOUT_S)[0] for each in both]
    finally:
        for each in both:
            each.kill()
    assert [each.returncode for each in both] == [0, 0], said
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("a", "b")]
    assert losses[0] == losses[1]


def test_the_agent_of_one_node_is_killed(options: Callable[[str, Path], list[str]], tmp_path: Path) -> None:
    """Two nodes of one process each on one machine; the second one's agent dies and is started again.

    The first one holds the rendezvous: without it torchrun ends the job, and the next start of all nodes resumes.
    """
    folder = tmp_path / "run"
    words = [*options("pretrain", folder), "trainer.max_steps=120", "trainer.save_steps=20"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
                "--rdzv-backend", "c10d", "--rdzv-id", "one", "--max-restarts", "3",
                "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]  # fmt: skip

    def node(name: str) -> subprocess.Popen[str]:
        host = ["--rdzv-conf", f"is_host={int(name == 'first')}"]
        return subprocess.Popen(
            [*launcher, *host, "-m", "qa_train", "pretrain", *words], env=environment(), cwd=ROOT, text=True,
            stdout=(tmp_path / name).open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    nodes = [node("first"), node("second")]
    try:
        wait_for(lambda: steps_of(folder) > 30 or nodes[0].poll() is not None, "no step")
        assert nodes[0].poll() is None, (tmp_path / "first").read_text()
        nodes[1].kill()
        nodes.append(node("third"))
        assert nodes[0].wait(TIMEOUT_S) == 0, (tmp_path / "first").read_text()
        assert nodes[2].wait(TIMEOUT_S) == 0, (tmp_path / "third").read_text()
    finally:
        for each in nodes:
            each.kill()
    assert [row["step"] for row in metrics(folder)] == list(range(1, 121))
