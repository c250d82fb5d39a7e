"""Checkpoints that exist whole or not at all.

A checkpoint folder is complete once it contains ``manifest.json``. The manifest is written last,
after every other file is on disk, and lists each file with its size and checksum, so an incomplete folder after a crash
is detected and skipped, and a damaged file is found before anything is loaded (see `qa_train.model.stored.manifest`).
It also holds a digest of the weights, which a resumed run compares with what it restored: stock Trainer resume can
keep the initial weights of this model and only log a warning.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qa_train.model.stored.manifest import (
    FORMAT,
    MANIFEST,
    checksums,
    files_of,
    list_folders,
    problem,
    read_manifest,
    step_of,
)
from qa_train.utils.atomic import flush as flush_file
from qa_train.utils.atomic import write_json

logger = logging.getLogger(__name__)

# Files that rank R writes by itself: DeepSpeed's partitions and the random states.
_OWN_FILE = re.compile(r"(?:^|/)(?:(?:\w+_)?zero_pp_rank_|rng_state_)(\d+)[_.]")


def flush(folder: Path, rank: int = 0, ranks: int = 1) -> dict[str, str]:
    """Flush the files that ``rank`` wrote, and the folders that hold them, to disk; return their checksums by name.

    Every rank flushes its own: on a network file system only the node that wrote a file can. Files that belong to no
    rank are rank 0's.
    """
    mine = [path for path in files_of(folder) if _owner(path.relative_to(folder)) % ranks == rank]
    with ThreadPoolExecutor() as pool:
        list(pool.map(flush_file, mine))
    sums = checksums(mine)
    for parent in {path.parent for path in mine} | {folder}:
        flush_file(parent)
    return {str(path.relative_to(folder)): found for path, found in zip(mine, sums, strict=True)}


def commit(folder: Path, manifest: dict[str, Any], sums: dict[str, str] | None = None) -> None:
    """Make ``folder`` a complete checkpoint: everything is flushed, then the manifest is written.

    Args:
        folder: holds all files of the checkpoint already.
        manifest: JSON-able facts (step, data position, weights digest, ...).
        sums: what `flush` returned on all ranks together; None: this process flushes everything.

    Raises:
        ValueError: a file is there that no rank flushed.
    """
    sums = flush(folder) if sums is None else sums
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files_of(folder)}
    if set(sizes) != set(sums):
        raise ValueError(
            f"{folder} changed while it was saved ({sorted(set(sizes) ^ set(sums))}): is another run there?"
        )
    write_json(folder / MANIFEST, {**manifest, "format": FORMAT, "files": sizes, "checksums": sums}, durable=True)
    flush_file(folder.parent)


def newest_complete(root: Path, fault: Callable[[Path], str | None] = problem) -> Path | None:
    """The newest checkpoint under ``root`` without a fault; logs which newer ones it skipped and why.

    Args:
        root: the run's ``checkpoints`` folder.
        fault: why a folder cannot be used, or None; by default judged by names and sizes.
    """
    for folder in list_folders(root):
        reason = fault(folder)
        if reason is None:
            return folder
        logger.warning("skipping checkpoint %s: %s", folder, reason)
    return None


def best(root: Path, *, largest: bool) -> Path | None:
    """The complete checkpoint with the best ``best_value`` in its manifest; the newest of equals."""
    found = [(read_manifest(f).get("best_value"), f) for f in list_folders(root) if problem(f) is None]
    known = [(value if largest else -value, step_of(f), f) for value, f in found if isinstance(value, int | float)]
    return max(known)[2] if known else None


def prune(root: Path, keep: int, *, every: int | None = None, also: Iterable[Path] = ()) -> None:
    """Delete complete checkpoints beyond the ``keep`` newest, and unfinished ones older than those.

    Args:
        root: the run's ``checkpoints`` folder.
        keep: number of newest ones that stay, at least one.
        every: complete checkpoints at multiples of this step stay too.
        also: complete checkpoints that stay too.
    """
    complete = [folder for folder in list_folders(root) if problem(folder) is None]
    if not complete:
        return
    oldest_kept = step_of(complete[: max(keep, 1)][-1])
    spared = {f for f in complete if every and step_of(f) % every == 0} | (set(also) & set(complete))
    for folder in list_folders(root):
        if step_of(folder) < oldest_kept and folder not in spared:
            remove(folder)


def remove(folder: Path) -> None:
    """Delete a checkpoint folder, if it is there."""
    # The manifest goes first: a crash in the middle must not leave a folder that looks whole.
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.is_dir():
        flush_file(folder)
        shutil.rmtree(folder)


def _owner(name: Path) -> int:
    match = _OWN_FILE.search(name.as_posix())
    return int(match[1]) if match else 0
