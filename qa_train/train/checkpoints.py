"""Checkpoints that exist whole or not at all.

A checkpoint folder counts only once ``manifest.json`` lies in it. The manifest is written last,
after every other file is on disk, and lists each file with its size, so a folder cut short by a
crash is recognised and skipped. It also holds a digest of the weights, which a resumed run
compares with what it restored: stock Trainer resume can keep the initial weights of this model
and only log a warning.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_PREFIX = "checkpoint-"


def step_of(folder: Path) -> int:
    """The optimizer step a checkpoint folder is named after."""
    return int(folder.name.removeprefix(_PREFIX))


def list_folders(root: Path) -> list[Path]:
    """Checkpoint folders under ``root``, newest step first, complete or not."""
    if not root.is_dir():
        return []
    names = [p for p in root.iterdir() if p.is_dir() and p.name.startswith(_PREFIX)]
    return sorted((p for p in names if p.name.removeprefix(_PREFIX).isdigit()), key=step_of, reverse=True)


def commit(folder: Path, manifest: dict[str, Any]) -> None:
    """Make ``folder`` a complete checkpoint: flush every file, then write the manifest.

    Args:
        folder: holds all files of the checkpoint already.
        manifest: JSON-able facts (step, data position, weights digest, ...).
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    sizes = {}
    for path in files:
        _fsync(path)
        sizes[str(path.relative_to(folder))] = path.stat().st_size
    write_json(folder / MANIFEST, {**manifest, "files": sizes})
    _fsync(folder.parent)


def problem(folder: Path) -> str | None:
    """Why ``folder`` is not a usable checkpoint, or None when it is complete."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return "it has no manifest: the save was interrupted"
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read: {error}"
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, the manifest says {size}"
    return None


def newest_complete(root: Path) -> Path | None:
    """The newest complete checkpoint under ``root``; says which newer ones it skipped and why."""
    for folder in list_folders(root):
        reason = problem(folder)
        if reason is None:
            return folder
        logger.warning("skipping checkpoint %s: %s", folder, reason)
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete checkpoint."""
    return dict(json.loads((folder / MANIFEST).read_text()))


def prune(root: Path, keep: int) -> None:
    """Delete complete checkpoints beyond the ``keep`` newest, and unfinished ones older than those."""
    complete = [folder for folder in list_folders(root) if problem(folder) is None]
    if not complete:
        return
    oldest_kept = step_of(complete[: max(keep, 1)][-1])
    for folder in list_folders(root):
        if step_of(folder) < oldest_kept:
            remove(folder)


def remove(folder: Path) -> None:
    """Delete a checkpoint folder, if it is there."""
    # The manifest goes first: a crash in the middle must not leave a folder that looks whole.
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.is_dir():
        shutil.rmtree(folder)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by the JSON of ``value``, atomically and durably."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
