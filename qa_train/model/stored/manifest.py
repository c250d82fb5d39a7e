"""The manifest of a checkpoint: its files with their sizes and checksums, written last.

A checksum is the CRC-32C of the CRC-32Cs of a file's 64 MiB pieces, which threads compute side by side. It finds what
was damaged, cut or exchanged after the manifest was written. It does not say who wrote the folder. Manifests without a
``format`` are of versions that took SHA-256 instead; they are compared by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import crc32c

from qa_train.utils.atomic import PART

MANIFEST = "manifest.json"
# Of a folder in RUN/checkpoints, before the step.
_PREFIX = "checkpoint-"
# What torch.load would unpickle; anything else is safetensors, JSON or text.
_PICKLES = {".pt", ".pth", ".bin", ".pkl"}
_PIECE = 64 << 20
# Of the manifest; those without one are of format 1.
FORMAT = 2
# Folders of a conversion that was not finished (see qa_train.train.job.reshape); nothing reads them.
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete checkpoint."""
    return dict(json.loads((folder / MANIFEST).read_text()))


def fingerprint(folder: Path) -> str:
    """SHA-256 that tells a folder's weights from others without reading them: of the checksums in its manifest, or
    without one of the names, sizes and times of its safetensors files.
    """
    told: Any = None
    with suppress(OSError, ValueError):
        told = read_manifest(folder).get("checksums")
    if not told:
        stats = {path.name: path.stat() for path in folder.glob("*.safetensors")}
        told = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def problem(folder: Path) -> str | None:
    """Why ``folder`` is not a usable checkpoint, judged by names and sizes, or None when it is complete."""
    try:
        manifest = read_manifest(folder)
        _check(manifest)
    except FileNotFoundError:
        return "it has no manifest: the save was interrupted"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return f"its manifest cannot be read: {error}"
    if (version := manifest.get("format", 1)) > FORMAT:
        return f"its manifest has format {version}, this qa-train reads up to {FORMAT}: use the version that saved it"
    for name, size in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, the manifest says {size}"
    return None


def _check(manifest: dict[str, Any]) -> None:
    """ValueError for fields that no `qa-train` wrote."""
    files, sums, version = manifest.get("files"), manifest.get("checksums"), manifest.get("format", 1)
    if type(version) is not int or version < 1:
        raise ValueError(f"format is {version!r:.80}, expected a whole number")
    if not isinstance(files, dict) or any(type(size) is not int for size in files.values()):
        raise ValueError("files is not an object of sizes in bytes by name")
    if sums is not None and (not isinstance(sums, dict) or any(type(each) is not str for each in sums.values())):
        raise ValueError("checksums is not an object of checksums by name")
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name[0] == "/" or ".." in parts or "\0" in name or max(len(p.encode()) for p in parts) > 255:
            raise ValueError(f"files has {name!r:.80}, expected names inside the folder")


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
    for path in files_of(folder):
        name = str(path.relative_to(folder))
        unfinished = any(part.endswith(UNIVERSAL) for part in path.relative_to(folder).parts)
        if path.suffix in _PICKLES and name not in sums and not unfinished:
            return f"{name} is not in its manifest: not from this run"
    return changed(folder, manifest["files"])


def changed(folder: Path, names: Collection[str]) -> str | None:
    """The first of the files ``names`` that differs from the manifest of ``folder``, and how; None if all are.

    Every byte of them is read, by threads. A checkpoint of a version that kept no checksums passes.
    """
    manifest = read_manifest(folder)
    sums = manifest.get("checksums")
    if sums is None:
        return None
    if foreign := sorted(set(names) - set(sums)):
        return f"{foreign[0]} is not in its manifest: it was added later"
    found = checksums([folder / name for name in names], manifest.get("format", 1))
    for name, digest in zip(names, found, strict=True):
        if digest != sums[name]:
            return f"{name} is not what was saved (checksum {digest[:12]}, manifest {str(sums[name])[:12]})"
    return None


def files_of(folder: Path) -> list[Path]:
    """Every file of a checkpoint but the manifest (and what is left of writing one)."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, MANIFEST + PART))


def checksums(paths: list[Path], version: int = FORMAT) -> list[str]:
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
