"""A frozen encoder's outputs on disk, so that each clip is encoded once for all epochs and stages.

A folder per encoder holds ``states.f16`` (float16, one row of ``D`` values per audio token, clips
joined) and ``index.jsonl`` (one line per clip: id, first row, rows, D). A line is written after its
states, so a killed writer loses at most the clip it was at, and a later one goes on from there.
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
        self._rows: dict[str, tuple[int, int]] = {}
        self.width = 0
        self._states: np.ndarray | None = None
        self.refresh()

    @staticmethod
    def open(folder: str | Path, key: str) -> EncoderCache:
        """The cache of one encoder inside ``folder``; ``key`` names its weights and mel bins."""
        path = Path(folder) / key
        path.mkdir(parents=True, exist_ok=True)
        return EncoderCache(path)

    def refresh(self) -> None:
        """Read the index again, after a writer has added to it."""
        self._rows, self.width = _read_index(self.folder)
        self._states = None

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._rows

    def get(self, clip_id: str) -> Tensor | None:
        """States of a clip, float32 [T, D], or None when it is not cached."""
        if clip_id not in self._rows:
            return None
        if self._states is None:
            path = self.folder / "states.f16"
            rows = path.stat().st_size // (2 * self.width)
            self._states = np.memmap(path, dtype=np.float16, mode="r", shape=(rows, self.width))
        start, count = self._rows[clip_id]
        return torch.from_numpy(self._states[start : start + count].astype(np.float32))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_states": None}


class CacheWriter:
    """Context manager that appends clips; a second writer on the same folder is refused."""

    def __init__(self, cache: EncoderCache, width: int) -> None:
        self.cache, self.width = cache, width

    def __enter__(self) -> CacheWriter:
        folder = self.cache.folder
        self._index: IO[str] = (folder / "index.jsonl").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._index.close()
            raise ValueError(f"{folder} is being filled by another process; wait for it") from error
        self.cache.refresh()
        if len(self.cache) and self.cache.width != self.width:
            self._index.close()
            raise ValueError(f"{folder} holds states of width {self.cache.width}, not {self.width}: delete the folder")
        rows = sum(count for _, count in self.cache._rows.values())
        # What a killed writer left half-written goes: first the index's last line, then the states.
        text = "".join(_line(i, s, n, self.width) for i, (s, n) in self.cache._rows.items())
        self._index.truncate(len(text))
        self._states: IO[bytes] = (folder / "states.f16").open("ab")
        self._states.truncate(rows * self.width * 2)
        self._next = rows
        return self

    def write(self, clip_id: str, states: Tensor) -> None:
        """Add a clip's states [T, D]; values beyond float16 are an error, not an infinity."""
        values = states.detach().to("cpu", torch.float16).numpy()
        if values.ndim != 2 or values.shape[1] != self.width:
            raise ValueError(f"{clip_id}: states of shape {values.shape}; expected [T, {self.width}]")
        if not np.isfinite(values).all():
            raise ValueError(f"{clip_id}: encoder states that are not finite in float16; train without the cache")
        if clip_id in self.cache._rows:
            return
        self._states.write(values.tobytes())
        self._states.flush()
        self._index.write(_line(clip_id, self._next, len(values), self.width))
        self._index.flush()
        self.cache._rows[clip_id] = (self._next, len(values))
        self._next += len(values)

    def __exit__(self, *error: object) -> None:
        self._states.flush()
        os.fsync(self._states.fileno())
        self._states.close()
        self._index.flush()
        os.fsync(self._index.fileno())
        self._index.close()
        self.cache.refresh()


def cache_writer(folder: str | Path, key: str, width: int) -> CacheWriter:
    """Append to the cache of that key, whose states have ``width`` values; one writer at a time."""
    return CacheWriter(EncoderCache.open(folder, key), width)


def _line(clip_id: str, start: int, count: int, width: int) -> str:
    return json.dumps([clip_id, start, count, width]) + "\n"


def _read_index(folder: Path) -> tuple[dict[str, tuple[int, int]], int]:
    """Complete entries whose states are on disk, and the width D."""
    path = folder / "index.jsonl"
    rows: dict[str, tuple[int, int]] = {}
    width = 0
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ()
    states = folder / "states.f16"
    size = states.stat().st_size if states.exists() else 0
    for line in lines:
        if not line.endswith("\n"):
            break
        clip_id, start, count, width = json.loads(line)
        if (start + count) * width * 2 > size:
            break
        rows[clip_id] = (start, count)
    return rows, width
