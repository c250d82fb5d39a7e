"""What makes a checkpoint of the stock trainer a committed one, on all ranks together."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from qa_train.config import ReliabilityConfig
from qa_train.train.job import checkpoints
from qa_train.train.safety.guards import StopRun
from qa_train.utils.atomic import FULL, complaint, is_full


def written(folder: Path, write: Callable[[], None]) -> None:
    """Run ``write``, which fills a new checkpoint ``folder``; explain storage that fails.

    Raises:
        StopRun: the storage is full, read-only or broken. The partial new checkpoint is deleted as far as possible;
        older checkpoints are not changed.
    """
    try:
        write()
    except Exception as error:
        reason = _storage_problem(error)
        if reason is None:
            raise
        with suppress(OSError):
            checkpoints.remove(folder)
        raise StopRun(failure(folder, reason)) from error


@contextmanager
def storage_explained(run: Path) -> Iterator[None]:
    """Within, a file of the run folder that cannot be used, and full storage anywhere, end the run in one line.

    Raises:
        StopRun: names the file and what to do. Checkpoints are not touched.
    """
    try:
        yield
    except OSError as error:
        place = Path(error.filename).absolute() if isinstance(error.filename, str) else None
        if error.errno not in {*FULL, errno.EROFS} and (place is None or not place.is_relative_to(run.absolute())):
            raise
        told = f"{place or run}: {_told(str(error.strerror), run / 'checkpoints', place or run)}"
        if not run.is_dir():
            told = f"run.dir={run} was removed while the run wrote to it: start it again, from the beginning"
        raise StopRun(told) from error


def failure(folder: Path, reason: str) -> str:
    """Advice for a checkpoint that could not be written."""
    return f"{folder.name} could not be written to {folder.parent}: {_told(reason, folder.parent, folder)}"


def _told(reason: str, root: Path, place: Path) -> str:
    """``reason``, what is left of the run's checkpoints in ``root``, and what to do about ``place``."""
    older = checkpoints.newest_complete(root)
    kept = f"{older.name} is the newest complete one and is unchanged" if older else "There is no older checkpoint"
    remedy = "correct that"
    if is_full(reason):
        disk = next(each for each in (place, *place.absolute().parents) if each.exists())
        reason, remedy = f"{reason} ({_free(disk)} free)", "make room there"
        if place.absolute().is_relative_to(root.parent.absolute()):
            remedy = "make room, or lower trainer.keep_checkpoints"
    return f"{reason}. {kept}; {remedy}; the same command then continues"


def flush_on_all_ranks(folder: Path, rank: int, ranks: int) -> dict[str, str]:
    """Flush each rank's files; returns the checksums of all files, on every rank."""
    parts = gather_object([checkpoints.flush(folder, rank, ranks)])
    return {name: digest for part in parts for name, digest in part.items()}


def prune(root: Path, options: ReliabilityConfig) -> None:
    """Delete the checkpoints that ``options`` does not keep; ``root`` is the run's ``checkpoints`` folder."""
    best = None
    if options.keep_best is not None:
        best = checkpoints.best(root, largest=options.keep_best_is == "largest")
    also = [best] if best is not None else []
    checkpoints.prune(root, options.keep_checkpoints, every=options.keep_every_steps, also=also)


def group_settings(optimizer: Any) -> list[dict[str, Any]]:
    """Learning rate, weight decay and the like of every parameter group, for the manifest."""
    plain = (int, float, bool, str, list, tuple)
    return [
        {key: value for key, value in group.items() if key != "params" and isinstance(value, plain)}
        for group in optimizer.param_groups
    ]


def restore_group_settings(optimizer: Any, settings: list[dict[str, Any]]) -> None:
    """Put the values of `group_settings` back.

    DeepSpeed 0.19 gives every group the first one's values when it loads a universal checkpoint into ZeRO-3: biases
    and norms would decay, and rates by part would be lost.

    Raises:
        ValueError: the optimizer has another number of groups.
    """
    if len(settings) != len(optimizer.param_groups):
        raise ValueError(
            f"the optimizer has {len(optimizer.param_groups)} parameter groups, the checkpoint {len(settings)}: "
            "use the trainer.parts and trainer.optim that the run began with"
        )
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def separate_steps(optimizer: Any) -> None:
    """Give every parameter its own step counter.

    DeepSpeed 0.19 puts one tensor into all of them when it loads a universal checkpoint into ZeRO-3; AdamW counts in
    place, so it would go up once for every group in each step, and the moments would be corrected for a later one.
    A fused AdamW wants the counter where the parameter is; DeepSpeed reads it onto the CPU.
    """
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for parameter, state in optimizer.state.items():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].to(parameter.device if fused else state["step"].device, copy=True)


def _storage_problem(error: BaseException) -> str | None:
    """The storage's complaint behind an error, or None when it is about something else."""
    link: BaseException | None = error
    while link is not None:
        if (found := complaint(link)) is not None:
            return found
        link = link.__cause__ or link.__context__
    return None


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB"
    except OSError:
        return "an unknown space"
