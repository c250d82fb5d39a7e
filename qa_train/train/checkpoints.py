"""Checkpoints that exist whole or not at all.

A checkpoint folder counts only once ``manifest.json`` lies in it. The manifest is written last,
after every other file is on disk, and lists each file with its size and checksum, so a folder cut
short by a crash is recognised and skipped, and a damaged or foreign file is found before anything
unpickles it. It also holds a digest of the weights, which a resumed run compares with what it
restored: stock Trainer resume can keep the initial weights of this model and only log a warning.

A checksum is the CRC-32C of the CRC-32Cs of a file's 64 MiB pieces, which threads compute side by side: it finds
damage, not malice. Manifests without a ``format`` were written by versions that took SHA-256 instead; they are still compared.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import crc32c

from qa_train.utils.atomic import MANIFEST, PART, write_json
from qa_train.utils.atomic import flush as flush_file

logger = logging.getLogger(__name__)

_PREFIX = "checkpoint-"
# What torch.load would unpickle; anything else is safetensors, JSON or text.
_PICKLES = {".pt", ".pth", ".bin", ".pkl"}
# Files that rank R writes by itself: DeepSpeed's partitions and the random states.
_OWN_FILE = re.compile(r"(?:^|/)(?:(?:\w+_)?zero_pp_rank_|rng_state_)(\d+)[_.]")
_PIECE = 64 << 20
# Of the manifest; those without one are of format 1.
FORMAT = 2
# Folders of a conversion that was not finished (see reshape.py); nothing reads them.
UNIVERSAL = "_universal"


def step_of(folder: Path) -> int:
    """The optimizer step a checkpoint folder is named after."""
    return int(folder.name.removeprefix(_PREFIX))


def list_folders(root: Path) -> list[Path]:
    """Checkpoint folders under ``root``, newest step first, complete or not."""
    if not root.is_dir():
        return []
    names = [p for p in root.iterdir() if p.is_dir() and p.name.startswith(_PREFIX)]
    return sorted((p for p in names if p.name.removeprefix(_PREFIX).isdigit()), key=step_of, reverse=True)


def flush(folder: Path, rank: int = 0, ranks: int = 1) -> dict[str, str]:
    """Flush the files that ``rank`` wrote, and the folders that hold them, to disk; return their checksums by name.

    Every rank flushes its own: on a network file system only the node that wrote a file can. Files that belong to no
    rank are rank 0's.
    """
    mine = [path for path in _files(folder) if _owner(path.relative_to(folder)) % ranks == rank]
    with ThreadPoolExecutor() as pool:
        list(pool.map(flush_file, mine))
    sums = _checksums(mine)
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
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
    if set(sizes) != set(sums):
        raise ValueError(
            f"{folder} changed while it was saved ({sorted(set(sizes) ^ set(sums))}): is another run there?"
        )
    write_json(folder / MANIFEST, {**manifest, "format": FORMAT, "files": sizes, "checksums": sums}, durable=True)
    flush_file(folder.parent)


def problem(folder: Path) -> str | None:
    """Why ``folder`` is not a usable checkpoint, judged by names and sizes, or None when it is complete."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files, version = dict(manifest["files"]), int(manifest.get("format", 1))
    except FileNotFoundError:
        return "it has no manifest: the save was interrupted"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read: {error}"
    if version > FORMAT:
        return f"its manifest has format {version}, this qa-train reads up to {FORMAT}: use the version that saved it"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, the manifest says {size}"
    return None


def damage(folder: Path) -> str | None:
    """As `problem`, and compare every file with its checksum; no pickle that the manifest does not list."""
    found = problem(folder)
    if found is not None:
        return found
    manifest = read_manifest(folder)
    sums = manifest.get("checksums")
    if sums is None:
        zero = any(name.startswith("global_step") for name in manifest["files"])
        # Without DeepSpeed everything is loaded as weights only, so an older version's checkpoint does no harm.
        return "it has no checksums (an older version saved it), and DeepSpeed would unpickle it" if zero else None
    for path in _files(folder):
        name = str(path.relative_to(folder))
        unfinished = any(part.endswith(UNIVERSAL) for part in path.relative_to(folder).parts)
        if path.suffix in _PICKLES and name not in sums and not unfinished:
            return f"{name} is not in its manifest: not from this run"
    found_sums = _checksums([folder / name for name in sums], manifest.get("format", 1))
    for (name, expected), digest in zip(sums.items(), found_sums, strict=True):
        if digest != expected:
            return f"{name} is not what was saved (checksum {digest[:12]}, manifest {expected[:12]})"
    return None


def newest_complete(root: Path, *, checked: bool = False) -> Path | None:
    """The newest complete checkpoint under ``root``; says which newer ones it skipped and why.

    Args:
        root: the run's ``checkpoints`` folder.
        checked: read every file and compare its checksum, as a resume must.
    """
    for folder in list_folders(root):
        reason = damage(folder) if checked else problem(folder)
        if reason is None:
            return folder
        logger.warning("skipping checkpoint %s: %s", folder, reason)
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete checkpoint."""
    return dict(json.loads((folder / MANIFEST).read_text()))


def best(root: Path, *, largest: bool) -> Path | None:
    """The complete checkpoint whose manifest holds the best ``best_value``; the newest of equals."""
    found = [(read_manifest(f).get("best_value"), f) for f in list_folders(root) if problem(f) is None]
    known = [(value if largest else -value, step_of(f), f) for value, f in found if value is not None]
    return max(known)[2] if known else None


def prune(root: Path, keep: int, *, every: int | None = None, also: Iterable[Path] = ()) -> None:
    """Delete complete checkpoints beyond the ``keep`` newest, and unfinished ones older than those.

    Args:
        root: the run's ``checkpoints`` folder.
        keep: so many of the newest stay, at least one.
        every: complete checkpoints whose step is a multiple of it stay too.
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


def _files(folder: Path) -> list[Path]:
    """Every file of a checkpoint but the manifest (and what is left of writing one)."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, MANIFEST + PART))


def _owner(name: Path) -> int:
    match = _OWN_FILE.search(name.as_posix())
    return int(match[1]) if match else 0


def _checksums(paths: list[Path], version: int = FORMAT) -> list[str]:
    """The checksum of every file, as manifests of that format hold it (see the module docstring)."""
    piece_sum = _crc32c if version > 1 else _sha256
    pieces = [(path, start) for path in paths for start in range(0, max(path.stat().st_size, 1), _PIECE)]
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(lambda piece: piece_sum(_read(*piece)), pieces))
    wholes = dict.fromkeys(paths, b"")
    for (path, _), found in zip(pieces, sums, strict=True):
        wholes[path] += found
    return [piece_sum(wholes[path]).hex() for path in paths]


def _read(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(_PIECE)


def _crc32c(raw: bytes) -> bytes:
    return int(crc32c.crc32c(raw)).to_bytes(4)


def _sha256(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()
