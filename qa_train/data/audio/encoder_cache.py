"""A frozen encoder's outputs on disk, so that each clip is encoded once for all epochs and stages.

A folder per encoder holds parts, each filled by one process: ``N.f16`` (float16, one row of ``D`` values
per audio token, clips joined) and ``N.jsonl`` (one line per clip: id, first row, rows, D). A line is
written after its states, so a killed writer loses at most the clip it was at; the next writer that takes
the part goes on from there.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor


class EncoderCache:
    """Reads cached states by clip id; ``cache_writer`` adds to them. Picklable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Part, first row and rows of each clip.
        self._rows: dict[str, tuple[int, int, int]] = {}
        self.width = 0
        self._states: dict[int, np.ndarray] = {}
        self.refresh()

    @staticmethod
    def open(folder: str | Path, key: str) -> EncoderCache:
        """The cache of one encoder inside ``folder``; ``key`` names its weights and mel bins."""
        path = Path(folder) / key
        path.mkdir(parents=True, exist_ok=True)
        return EncoderCache(path)

    def refresh(self) -> None:
        """Read the parts again, after writers have added to them."""
        self._rows, self.width, self._states = {}, 0, {}
        for path in sorted(self.folder.glob("*.jsonl")):
            rows, width = _read_index(path)
            self._rows |= {clip: (int(path.stem), *place) for clip, place in rows.items()}
            self.width = self.width or width

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._rows

    def get(self, clip_id: str) -> Tensor | None:
        """States of a clip, float32 [T, D], or None when it is not cached."""
        if clip_id not in self._rows:
            return None
        part, start, count = self._rows[clip_id]
        if part not in self._states:
            path = self.folder / f"{part}.f16"
            rows = path.stat().st_size // (2 * self.width)
            self._states[part] = np.memmap(path, dtype=np.float16, mode="r", shape=(rows, self.width))
        return torch.from_numpy(self._states[part][start : start + count].astype(np.float32))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_states": {}}


class CacheWriter:
    """Context manager that appends clips to the first part that no other process is writing."""

    def __init__(self, cache: EncoderCache, width: int) -> None:
        self.cache, self.width = cache, width

    def __enter__(self) -> CacheWriter:
        folder = self.cache.folder
        self.cache.refresh()
        if len(self.cache) and self.cache.width != self.width:
            raise ValueError(f"{folder} holds states of width {self.cache.width}, not {self.width}: delete the folder")
        part = 0
        while True:
            self._index: IO[str] = (folder / f"{part}.jsonl").open("a+", encoding="utf-8")
            try:
                fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                self._index.close()
                part += 1
        rows, _ = _read_index(folder / f"{part}.jsonl")
        # Remove what a killed writer left half-written: first the index's last line, then the states.
        text = "".join(_line(clip, *place, self.width) for clip, place in rows.items())
        self._index.truncate(len(text))
        self._next = sum(count for _, count in rows.values())
        self._states: IO[bytes] = (folder / f"{part}.f16").open("ab")
        self._states.truncate(self._next * self.width * 2)
        self._written: set[str] = set()
        return self

    def write(self, clip_id: str, states: Tensor) -> None:
        """Add a clip's states [T, D] unless it is there; values beyond float16 are an error, not an infinity."""
        values = states.detach().to("cpu", torch.float16).numpy()
        if values.ndim != 2 or values.shape[1] != self.width:
            raise ValueError(f"{clip_id}: states of shape {values.shape}; expected [T, {self.width}]")
        if not np.isfinite(values).all():
            raise ValueError(f"{clip_id}: encoder states that are not finite in float16; train without the cache")
        if clip_id in self.cache or clip_id in self._written:
            return
        self._states.write(values.tobytes())
        self._states.flush()
        self._index.write(_line(clip_id, self._next, len(values), self.width))
        self._index.flush()
        self._written.add(clip_id)
        self._next += len(values)

    def __exit__(self, *error: object) -> None:
        self._states.flush()
        os.fsync(self._states.fileno())
        self._states.close()
        self._index.flush()
        os.fsync(self._index.fileno())
        self._index.close()


def cache_writer(folder: str | Path, key: str, width: int) -> CacheWriter:
    """Append to the cache of that key, whose states have ``width`` values; each process writes its own part."""
    return CacheWriter(EncoderCache.open(folder, key), width)


def _line(clip_id: str, start: int, count: int, width: int) -> str:
    return json.dumps([clip_id, start, count, width]) + "\n"


def _read_index(path: Path) -> tuple[dict[str, tuple[int, int]], int]:
    """Complete entries of a part whose states are on disk (first row, rows), and the width D."""
    rows: dict[str, tuple[int, int]] = {}
    width = 0
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines(keepends=True)
    states = path.with_suffix(".f16")
    size = states.stat().st_size if states.exists() else 0
    for line in lines:
        if not line.endswith("\n"):
            break
        clip_id, start, count, width = json.loads(line)
        if (start + count) * width * 2 > size:
            break
        rows[clip_id] = (start, count)
    return rows, width
