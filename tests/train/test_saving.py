"""Storage that fails costs the new checkpoint and nothing else."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qa_train.config import ReliabilityConfig
from qa_train.model.stored import manifest
from qa_train.train.job import checkpoints
from qa_train.train.numbers.metrics import MetricsWriter
from qa_train.train.safety import saving
from qa_train.train.safety.guards import StopRun
from tests.train.conftest import run
from tests.train.forks import forks
from tests.train.test_checkpoints import make


def fail_with(error: Exception, folder: Path) -> Callable[[], None]:
    def write() -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    return write


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["full", "read-only", "torch", "safetensors"],
)
def test_a_failed_save_is_explained_and_leaves_the_older_one_alone(tmp_path: Path, error: Exception) -> None:
    make(tmp_path, 2)
    folder = tmp_path / "checkpoint-4"
    with pytest.raises(StopRun, match=r"checkpoint-4 could not be written .*checkpoint-2 is the newest complete one"):
        saving.written(folder, fail_with(error, folder))
    assert not folder.exists()
    assert manifest.damage(tmp_path / "checkpoint-2") is None


def test_other_failures_of_a_save_stay_what_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    with pytest.raises(KeyError):
        saving.written(folder, fail_with(KeyError("bug"), folder))
    assert folder.exists()


def test_group_settings_come_back(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": [weights[0]], "weight_decay": 0.1}, {"params": [weights[1]], "weight_decay": 0.0, "lr": 2e-4}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    settings = saving.group_settings(optimizer)
    checkpoints.write_json(tmp_path / "groups.json", settings)
    for group in optimizer.param_groups:
        group.update(weight_decay=0.1, lr=0.0, betas=(0, 0))
    saving.restore_group_settings(optimizer, settings)
    assert [(g["weight_decay"], g["lr"], g["betas"]) for g in optimizer.param_groups] == [
        (0.1, 1e-3, (0.9, 0.999)), (0.0, 2e-4, (0.9, 0.999)),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="2 parameter groups, the checkpoint 1"):
        saving.restore_group_settings(optimizer, settings[:1])


def test_the_best_checkpoint_is_chosen_by_a_mean_since_the_save_before(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", is_main=True)
    for step, loss in enumerate((4.0, 2.0, 1.0), start=1):
        writer.write(step, {"loss": loss, "grad_norm": float("nan")})
        if step == 2:
            assert writer.mean_since_save("loss") == 3.0
    assert "NaN" not in writer.path.read_text()
    with pytest.raises(ValueError, match=r"trainer.keep_best is 'los', which no step has: use one of grad_norm, loss"):
        writer.mean_since_save("los")
    writer.write(4, {"loss": 7.0})
    assert writer.mean_since_save("loss") == 7.0


def test_skipped_steps_and_evaluations_alone_say_nothing_about_a_checkpoint(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", is_main=True)
    writer.write(0, {"eval/a": 9.0})
    writer.write(1, {"loss": 2.0, "eval/a": 5.0})
    writer.write(2, {"loss": 0.0, "skipped_because": "left out"})
    assert writer.mean_since_save("loss") == 2.0
    writer.write(3, {"loss": 0.0, "skipped_because": "left out"})
    assert writer.mean_since_save("loss") is None
    writer.write(3, {"eval/a": 9.0})
    for step, value in ((4, 5.0), (5, 3.0)):
        writer.write(step, {"loss": 1.0, "eval/a": value})
    assert writer.mean_since_save("eval/a") == 3.0


def test_what_is_kept_follows_the_options(tmp_path: Path) -> None:
    for step, loss in enumerate((3.0, 1.0, 2.0, 1.5), start=1):
        checkpoints.commit(make(tmp_path, step, commit=False), {"step": step, "best_value": loss})
    saving.prune(tmp_path, ReliabilityConfig(keep_checkpoints=1, keep_best="loss", keep_every_steps=3))
    assert [checkpoints.step_of(f) for f in checkpoints.list_folders(tmp_path)] == [4, 3, 2]


def test_metrics_do_not_begin_again_in_the_middle_of_a_run(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", is_main=True)
    writer.write(1, {"loss": 4.0})
    writer.write(2, {"loss": 3.0})
    assert writer.path.read_text().count("\n") == 2
    writer.path.unlink()
    with pytest.raises(FileNotFoundError):
        writer.write(3, {"loss": 2.0})
    assert not writer.path.exists()


def test_records_that_a_resumed_run_does_not_find_are_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", is_main=True)
    for step in (1, 2, 3, 4):
        writer.write(step, {"loss": 4.0})
    writer.rewind(3)
    assert not caplog.text
    first, second, third = writer.path.read_bytes().splitlines(keepends=True)
    writer.path.write_bytes(first + b"\xff" + second[1:] + third[:5])
    writer.rewind(3)
    assert "metrics.jsonl has no record of 2 of the 3 steps so far (the first: 2)" in caplog.text
    assert writer.path.read_bytes() == first
    writer.path.unlink()
    writer.rewind(3)
    assert "no record of 3 of the 3" in caplog.text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "RUN: No space left on device .*checkpoint-2 is the newest"),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "/elsewhere/cache"),
            r"cache: Disk quota exceeded .* make room there",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "make room"),
        (OSError(errno.ENOENT, "No such file or directory", "RUN/metrics.jsonl"), "RUN/metrics.jsonl: No such file"),
        (
            OSError(errno.EROFS, "Read-only file system", "RUN/data.txt"),
            "RUN/data.txt: Read-only file system. .*correct",
        ),
        (OSError(errno.EMFILE, "Too many open files", "RUN/data.txt"), "RUN/data.txt: Too many open files"),
        (
            PermissionError(errno.EACCES, "Permission denied", "RUN/data.txt"),
            "data.txt: Permission denied. .*correct that",
        ),
    ],
)
def test_a_run_folder_that_fails_is_explained(error: OSError, told: str, tmp_path: Path) -> None:
    run = tmp_path / "RUN"
    make(run / "checkpoints", 2)
    if error.filename is not None:
        error.filename = error.filename.replace("RUN", str(run))
    with pytest.raises(StopRun, match=told), saving.storage_explained(run):
        raise error
    assert manifest.damage(run / "checkpoints" / "checkpoint-2") is None
    shutil.rmtree(run)
    with pytest.raises(StopRun, match="RUN was removed while"), saving.storage_explained(run):
        raise error


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/a.tar"), BrokenPipeError(errno.EPIPE, "x")]
)
def test_other_files_are_not_the_run_folder(error: OSError, tmp_path: Path) -> None:
    with pytest.raises(type(error)), saving.storage_explained(tmp_path):
        raise error


@pytest.mark.slow
def test_a_run_on_full_storage_says_so_and_goes_on_later(
    tmp_path: Path, options: Callable[[str, Path], list[str]]
) -> None:
    folder = tmp_path / "run"
    words = [w for w in options("pretrain", folder) if not w.startswith("trainer.max_steps")]
    run("pretrain", *words, "trainer.max_steps=2")
    # The kernel refuses every file beyond this size: less than the weights, more than metrics.jsonl.
    full = forks().start(["pretrain", *words, "trainer.max_steps=4"], under={"file size": 400_000})
    assert full.codes() == [1], full.said()
    assert "checkpoint-4 could not be written" in full.said()
    assert manifest.damage(folder / "checkpoints" / "checkpoint-2") is None
    assert not (folder / "checkpoints" / "checkpoint-4").exists()
    run("pretrain", *words, "trainer.max_steps=4")
    assert (folder / "finished.json").is_file()
