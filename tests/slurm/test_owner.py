"""slurm/train.sbatch when another start owns the run folder: no requeue, and a code that says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.test_submit import SLURM, Checkout

READY = "started"


@pytest.fixture
def job(tmp_path: Path) -> Checkout:
    """A checkout with stand-ins for Slurm's and torchrun's programs."""
    made = Checkout(tmp_path)
    programs = tmp_path / "bin"
    made.program(programs / "scontrol", f'echo "scontrol $*" >> {made.calls}; echo node1')
    made.program(programs / "scancel", f'echo "scancel $*" >> {made.calls}')
    made.program(programs / "srun", 'while [ "$1" != bash ]; do shift; done; exec "$@"')
    made.program(programs / "torchrun", f'{tmp_path}/rank "$@"')
    made.env |= {
        "SLURM_SUBMIT_DIR": str(made.folder),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n",
        "SLURM_NNODES": "1",
    }
    return made


def start(job: Checkout, rank: str, *words: str) -> subprocess.Popen[str]:
    job.program(Path(job.env["PATH"].split(os.pathsep)[0]).parent / "rank", rank)
    return subprocess.Popen(
        ["bash", SLURM / "train.sbatch", "pretrain", *words], cwd=job.folder, env=job.env, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def own(folder: Path, job: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "owner.json").write_text(json.dumps({"token": "x", "job": job, "launch": None}, indent=2))


@pytest.mark.parametrize("name", ["runs/p", "runs/ünï"])
@pytest.mark.parametrize(("owner", "told"), [("8", "belongs to job 8"), (None, "belongs to a process outside Slurm")])
def test_a_start_that_was_refused_is_not_requeued(job: Checkout, name: str, owner: str | None, told: str) -> None:
    own(job.folder / name, owner)
    word = f"run.dir={name}" if name.isascii() else f'run.dir="{name}"'
    said = (process := start(job, "exit 1", word)).communicate(timeout=60)[0]
    assert process.returncode == 73, said
    assert told in said


@pytest.mark.parametrize("owner", ["7", "none at all"])
def test_the_jobs_own_failure_is_no_owner(job: Checkout, owner: str) -> None:
    if owner == "7":
        own(job.folder / "runs/p", owner)
    said = (process := start(job, "exit 3", "run.dir=runs/p")).communicate(timeout=60)[0]
    assert process.returncode == 3, said
    assert "belongs to" not in said


@pytest.mark.parametrize(("owner", "code", "requeues"), [("8", 73, 0), ("7", 0, 1)])
def test_what_the_owner_saved_meanwhile_asks_for_no_requeue(
    job: Checkout, owner: str, code: int, requeues: int
) -> None:
    own(job.folder / "runs/p", owner)
    # It waits, as for a predecessor; then the signal before the time limit comes, and it ends with a failure.
    assert interrupted(job, "runs/p", "run.dir=runs/p") == code
    assert job.calls.read_text().count("scontrol requeue") == requeues


def test_a_task_of_an_array_stops_and_requeues_no_other(job: Checkout) -> None:
    job.env |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert interrupted(job, "runs/a_3", "run.dir=runs/a_${oc.env:SLURM_ARRAY_TASK_ID}") == 0
    calls = job.calls.read_text().splitlines()
    assert {"scancel --signal=USR1 7_3", "scontrol requeue 7_3"} <= set(calls)
    assert not [call for call in calls if call.split()[-1] == "7"]
    for word, told in (
        ("${oc.env:NOT_SET_HERE}", "NOT_SET_HERE is not set"),
        ("${run.seed}", "reads ${oc.env:NAME} only"),
    ):
        said = (process := start(job, "exit 0", f"run.dir=runs/{word}")).communicate(timeout=60)[0]
        assert (process.returncode, told in said) == (2, True), said


def until(happened: Callable[[], bool]) -> None:
    """Wait for it, at most a minute."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def interrupted(job: Checkout, name: str, word: str) -> int:
    """The exit code of a start that is told of its time limit, and whose run folder ``name`` gets a checkpoint."""
    process = start(job, f"touch {READY}; while [ ! -e stop ]; do sleep 0.05; done; exit 1", word)
    until((job.folder / READY).exists)
    saved = job.folder / name / "checkpoints" / "checkpoint-10"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    process.send_signal(signal.SIGUSR1)
    # A step that ends before the script has heard the signal is its own failure.
    until(lambda: job.calls.exists() and "scancel" in job.calls.read_text())
    (job.folder / "stop").touch()
    process.communicate(timeout=60)
    return process.returncode
