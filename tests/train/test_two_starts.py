"""Two starts of one run, and killed launchers, with real processes: nobody's files are touched, nobody is left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from qa_train.train.job.owner import EXIT_OWNED
from tests.processes import running
from tests.train.conftest import ROOT, TIMEOUT_S, command, environment, metrics, run, run_fresh

pytestmark = pytest.mark.slow


class Started:
    """A stage in the background, under torchrun when it has several processes."""

    def __init__(self, *words: str, processes: int = 1, **more: str) -> None:
        self.process = subprocess.Popen(
            command("pretrain", *words, processes=processes), env=environment() | more, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def family(self) -> list[psutil.Process]:
        """The processes below it: ranks, their loader workers."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> str:
        """Kill what is left, and what it said."""
        for each in [*self.family(), psutil.Process(self.process.pid)] if self.process.poll() is None else []:
            each.kill()
        return self.process.communicate(timeout=60)[0]


def wait_for(condition: Callable[[], object], what: str, seconds: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def steps_of(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def alive(processes: list[psutil.Process]) -> list[int]:
    return [each.pid for each in processes if running(each.pid)]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_start_is_refused_and_touches_nothing(
    options: Callable[[str, Path], list[str]], tmp_path: Path, processes: int
) -> None:
    folder = tmp_path / "run"
    words = [*options("pretrain", folder), "trainer.max_steps=100000", "trainer.save_steps=5"]
    first = Started(*words, processes=processes)
    try:
        wait_for(lambda: steps_of(folder) > 5, "no step")
        os.kill(psutil.Process(first.process.pid).pid, 0)
        environments = (folder / "environment.json").read_bytes()
        config = (folder / "config.yaml").stat().st_mtime_ns
        second = run_fresh("pretrain", *words, processes=processes, check=False)
        # Under torchrun every worker's code becomes 1, and its own is in the report.
        assert second.returncode == (EXIT_OWNED if processes == 1 else 1), second.stderr
        assert f"exitcode  : {EXIT_OWNED}" in second.stderr or processes == 1
        assert "is being trained by process" in second.stderr
        assert "Traceback (most recent call last):\n  File" not in second.stderr.split("torch/distributed")[0]
        # Other settings, another stage: the same answer, before anything else is looked at.
        other = run("pretrain", *words, "model.llm.config.hidden_size=32", check=False)
        assert other.returncode == EXIT_OWNED, other.stderr
        assert first.process.poll() is None
        assert (folder / "environment.json").read_bytes() == environments
        assert (folder / "config.yaml").stat().st_mtime_ns == config
        done = steps_of(folder)
        wait_for(lambda: steps_of(folder) > done, "the first start does not go on")
        (folder / "STOP").touch()
        first.process.wait(TIMEOUT_S)
        steps = [row["step"] for row in metrics(folder)]
        assert steps == list(range(1, len(steps) + 1))
        assert not (folder / "owner.json").exists()
    finally:
        said = first.end()
    assert "stopped by the file" in said
    # And now it is free.
    words[words.index("trainer.max_steps=100000")] = f"trainer.max_steps={len(steps) + 1}"
    run("pretrain", *words)
    assert metrics(folder)[-1]["step"] == len(steps) + 1


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_end_with_a_killed_torchrun(
    options: Callable[[str, Path], list[str]], tmp_path: Path, workers: int
) -> None:
    folder = tmp_path / "run"
    words = [*options("pretrain", folder), "trainer.max_steps=100000", f"data.num_workers={workers}"]
    first = Started(*words, processes=2)
    try:
        wait_for(lambda: steps_of(folder) > 2, "no step")
        family = first.family()
        assert len(family) >= 2 + 2 * workers
        kill(first.process.pid)
        wait_for(lambda: not alive(family), f"left over: {alive(family)}", 60)
        done = steps_of(folder)
        # The next start finds nobody, and waits for nobody.
        words[words.index("trainer.max_steps=100000")] = f"trainer.max_steps={done + 2}"
        run("pretrain", *words, processes=2)
        assert [row["step"] for row in metrics(folder)] == list(range(1, done + 3))
    finally:
        first.end()


def test_loader_workers_end_with_a_killed_run(options: Callable[[str, Path], list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*options("pretrain", folder), "trainer.max_steps=100000", "data.num_workers=2"]
    first = Started(*words, "data.decode_timeout_s=60")
    try:
        wait_for(lambda: steps_of(folder) > 2, "no step")
        family = first.family()
        # Two workers, each with a decoder.
        assert len(family) >= 4
        kill(first.process.pid)
        first.process.wait(60)
        # torch's own watch looks every five seconds, and does not know the decoders.
        wait_for(lambda: not alive(family), f"left over: {alive(family)}", 4.5)
    finally:
        first.end()


def test_a_killed_loader_worker_ends_the_run_and_the_next_start_goes_on(
    options: Callable[[str, Path], list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = [*options("pretrain", folder), "trainer.max_steps=100000", "trainer.save_steps=2", "data.num_workers=1"]
    first = Started(*words)
    try:
        wait_for(lambda: steps_of(folder) > 4, "no step")
        worker = first.family()[0]
        kill(worker.pid)
        first.process.wait(60)
        assert first.process.returncode not in (0, EXIT_OWNED)
        done = steps_of(folder)
        words[words.index("trainer.max_steps=100000")] = f"trainer.max_steps={done + 2}"
        run("pretrain", *words)
        assert [row["step"] for row in metrics(folder)] == list(range(1, done + 3))
    finally:
        said = first.end()
    assert f"worker (pid {worker.pid}) is killed" in said or f"worker {worker.pid} was killed" in said


def test_a_requeued_job_waits_for_the_one_before(options: Callable[[str, Path], list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*options("pretrain", folder), "trainer.max_steps=100000", "trainer.save_steps=1000"]
    first = Started(*words, SLURM_JOB_ID="31")
    second = None
    try:
        wait_for(lambda: steps_of(folder) > 2, "no step")
        assert json.loads((folder / "owner.json").read_text())["job"] == "31"
        words[words.index("trainer.max_steps=100000")] = f"trainer.max_steps={steps_of(folder) + 200}"
        second = Started(*words, SLURM_JOB_ID="31", SLURM_RESTART_COUNT="1")
        assert second.process.stdout is not None
        lines = iter(second.process.stdout.readline, "")
        assert any("waiting for the start before this one" in line for line in lines)
        first.process.send_signal(signal.SIGTERM)
        first.process.wait(TIMEOUT_S)
        said = "".join(lines)
        assert second.process.wait(TIMEOUT_S) == 0, said
        assert "resuming from checkpoint-" in said
    finally:
        first.end()
        if second is not None:
            second.end()


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        # Without a GPU it starts one process, with several GPUs torchrun.
        (["accelerate.commands.launch", "--num_processes", "1", "--cpu", "-m"], 1),
        (["deepspeed.launcher.launch", "--world_info=eyJsb2NhbGhvc3QiOiBbMCwgMV19", "--module"], 2),
    ],
    ids=["accelerate", "deepspeed"],
)
def test_other_launchers_start_the_same_run(
    options: Callable[[str, Path], list[str]], tmp_path: Path, launcher: list[str], processes: int
) -> None:
    folder, alone = tmp_path / "run", tmp_path / "alone"
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "qa_train", "pretrain", *options("pretrain", folder)],
        env=environment() | {"DS_ACCELERATOR": "cpu"}, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run("pretrain", *options("pretrain", alone), processes=processes)
    assert [row["loss"] for row in metrics(folder)] == [row["loss"] for row in metrics(alone)]
    assert json.loads((folder / "environment.json").read_text())[-1]["world_size"] == processes
