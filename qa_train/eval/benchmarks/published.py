"""A benchmark's lists and clips as they are found on disk, whatever their names say."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qa_train.data.audio.table_clip import table_rows
from qa_train.data.text.json_rows import objects
from qa_train.eval.benchmarks.benchmark import Benchmark

Row = dict[str, Any]
CLIP_ENDINGS = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".mp4")


def find_list(data_root: Path, path: str, tables: str | None = None) -> Path | None:
    """Where a benchmark's list is: at ``path``, under its other name (.json or .jsonl), or as ``tables``.

    ``tables`` is a pattern of Parquet files, as on the hub. None: nowhere.
    """
    place = data_root / path
    other = {".json": ".jsonl", ".jsonl": ".json"}.get(place.suffix)
    for each in (place, place.with_suffix(other)) if other else (place,):
        if each.exists():
            return each
    if tables is not None and any(data_root.glob(tables)):
        return data_root / tables
    return None


def read_list(path: Path) -> list[Row]:
    """The objects of a JSON list or of JSON lines, detected by content; or of all Parquet files of a pattern.

    Rows of a Parquet file have ``audio`` (``qa_train.data.audio.table_clip``) and ``table``, the part of its name that
    names the split.

    Raises:
        ValueError: no such file, or another content.
    """
    if path.suffix == ".parquet":
        return [
            row | {"table": file.name.partition("-")[0]}
            for file in sorted(path.parent.glob(path.name))
            for row in table_rows(file)
        ]
    if not path.is_file():
        raise ValueError(f"no file {path}")
    return [row for _, _, row in objects(path)]


def in_order(benchmark: Benchmark, key: object, choices: list[str]) -> list[str]:
    """The options as published, or with ``shuffle_options`` in an order drawn from that seed for each item."""
    if benchmark.shuffle_options is None:
        return choices
    digest = hashlib.sha256(f"{benchmark.shuffle_options}/{key}".encode()).digest()
    return random.Random(digest).sample(choices, len(choices))


def clip_named(folder: Path, stem: str) -> str:
    """The clip of that name, whatever its format; a missing one is found out when it is read."""
    return next((str(p) for e in CLIP_ENDINGS if (p := folder / f"{stem}{e}").is_file()), str(folder / f"{stem}.wav"))


def clip_beside(listing: Path, row: Row, names: Sequence[str]) -> str:
    """The existing clip named by the first of the fields ``names``, relative to the list.

    A path that begins with "/" means the list's folder too, unless there is such a file ("/audio/x.wav" of MMSU); a
    clip of that name in another format is used if the named one is missing. Raises ValueError if none is named.
    """
    named = [str(row[name]) for name in names if row.get(name)]
    if not named:
        raise ValueError(f"{listing}: an item without {' or '.join(names)}: {str(row)[:200]}")
    path = named[0]
    place = Path(path)
    if not place.is_absolute() or not (place.is_file() or place.parent.is_file()):
        place = listing.parent / path.lstrip("/")
    other = Path(clip_named(place.parent, place.stem))
    return str(place if place.is_file() or not other.is_file() else other)
