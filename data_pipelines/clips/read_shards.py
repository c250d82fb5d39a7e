"""Clips of finished shards, for pipelines that build on them: where they are, and their sound."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.data.audio.waveform import read_clip
from qa_train.data.shards.index import load_index


@dataclass(frozen=True)
class Place:
    """The location of a clip: shard, byte range of its first recording, and its metadata."""

    shard: str
    key: str
    offset: int
    size: int
    duration_s: float
    record: dict[str, Any]

    def wave(self) -> np.ndarray:
        """The recording, mono float32 [n] at 16 kHz."""
        with Path(self.shard).open("rb") as file:
            file.seek(self.offset)
            return read_clip(file.read(self.size))

    @property
    def origin(self) -> dict[str, str]:
        """Provenance, as it is kept in the record of what is made from the clip."""
        origin = {"shard": Path(self.shard).name, "key": self.key}
        kept = {name: str(self.record[name]) for name in ("source", "license") if self.record.get(name)}
        return origin | kept

    @property
    def facts(self) -> dict[str, Any]:
        """The fields that hold of whatever is said about the clip."""
        kept = ("language", "split", "source", "license", "speaker")
        return {name: self.record[name] for name in kept if name in self.record}


def shard_paths(paths: str | Sequence[str]) -> list[Path]:
    """The shards that a path or glob names, or several; ValueError when one names none."""
    found: list[Path] = []
    for pattern in [paths] if isinstance(paths, str) else paths:
        path = Path(pattern).expanduser()
        some = sorted(path.parent.glob(path.name)) if any(c in path.name for c in "*?[") else [path]
        if not some or not all(each.is_file() for each in some):
            raise ValueError(f"no shards at {pattern}: give .tar files or globs of them")
        found += some
    return found


def places(
    paths: str | Sequence[str],
    keep: Callable[[dict[str, Any]], bool] = lambda record: True,
    where: Mapping[str, Any] | None = None,
) -> list[Place]:
    """The clips of indexed shards, in order, for whose record ``keep`` is true and which has the values of ``where``.

    Records with several recordings are skipped.

    Raises:
        ValueError: a path without shards, or a shard without a sound index.
    """
    found = (each for path in shard_paths(paths) for each in first_recordings(path))
    wanted = (where or {}).items()
    return [
        place
        for place, recordings in found
        if recordings == 1 and all(place.record.get(name) == value for name, value in wanted) and keep(place.record)
    ]


def first_recordings(path: Path) -> Iterator[tuple[Place, int]]:
    """Each record that has recordings: the place of the first, and how many there are."""
    for row in load_index(str(path)).table.to_pylist():
        if row["offsets"]:
            first = (row["offsets"][0], row["sizes"][0], row["duration_s"])
            yield Place(str(path), row["key"], *first, json.loads(row["meta"])), len(row["offsets"])
