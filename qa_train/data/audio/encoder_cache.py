"""A frozen encoder's outputs on disk, so that each clip is encoded once for all epochs and stages.

A folder per encoder holds a folder per shard, named by the digest of the shard's index. In it are parts, each filled by
one process: ``N.f16`` (float16, one row of ``D`` values per audio token, clips joined) and ``N.jsonl`` (one line per
clip: id, first row, rows, D, CRC32C of its states, which is compared when they are read). A line is written after its
states, so a killed writer loses at most the clip it was at; the next writer that takes the part goes on from there.

``TAKEN.I.N.done`` is the shard's manifest: all clips of share I of N are here, of those that a source takes (TAKEN is
the digest of its choice), but for the listed ones, which cannot be decoded. Whether a cache is complete is read from
the names of these files: no clip is looked at.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import crc32c
import numpy as np
import torch
from torch import Tensor

from qa_train.utils.atomic import named, write_json

# Clips whose places in their parts a process remembers: 28 bytes each.
_REMEMBERED = 1 << 20


class EncoderCache:
    """The cached states of one encoder, of width ``D``, by shard and clip. Picklable."""

    def __init__(self, folder: str | Path, key: str, width: int) -> None:
        """The cache inside ``folder`` under ``key``, which names the encoder's weights, mel bins and arithmetic."""
        self.folder, self.width = Path(folder) / key, width
        self._shards: OrderedDict[str, _Places] = OrderedDict()

    def get(self, shard: str, clip_id: str) -> Tensor | None:
        """States of a clip, float16 [T, D], or None when it is not cached. ``shard``: digest of the shard's index."""
        if shard not in self._shards:
            self._shards[shard] = _Places(self.folder_of(shard), self.width)
            clips = sum(map(len, self._shards.values()))
            while clips > _REMEMBERED and len(self._shards) > 1:
                clips -= len(self._shards.popitem(last=False)[1])
        self._shards.move_to_end(shard)
        return self._shards[shard].get(clip_id)

    def writer(self, shard: str) -> CacheWriter:
        """Adds clips of a shard."""
        return CacheWriter(self.folder_of(shard), self.width)

    def complete(self, shard: str) -> set[str]:
        """Choices of the shard's records whose clips are all here, by their digests."""
        shares: dict[tuple[str, str], int] = defaultdict(int)
        try:
            names = os.listdir(self.folder_of(shard))  # noqa: PTH208 (names alone: one call to the file system)
        except FileNotFoundError:
            return set()
        for name in names:
            if name.endswith(".done"):
                taken, _, of, _ = name.split(".")
                shares[taken, of] += 1
        return {taken for (taken, of), found in shares.items() if found == int(of)}

    def mark(self, shard: str, taken: str, share: int, of: int, lost: Mapping[str, str]) -> None:
        """Note that all clips of a share of that choice are here but ``lost``, which cannot be decoded: id, reason."""
        folder = self.folder_of(shard)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{taken}.{share}.{of}.done", dict(lost), durable=True)

    def folder_of(self, shard: str) -> Path:
        """The folder of a shard. Its digest is hashed again: it is read from a file, and could be any text."""
        return self.folder / hashlib.sha256(shard.encode()).hexdigest()[:32]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict()}


class _Places:
    """Where the clips of one shard are. Ids are kept as hashes of this process, 64 bits long."""

    def __init__(self, folder: Path, width: int) -> None:
        self._folder, self._width = folder, width
        self._states: dict[int, np.ndarray] = {}
        rows = [
            (hash(clip), int(path.stem), *place)
            for path in sorted(folder.glob("*.jsonl"))
            for clip, place in _read_index(path, width).items()
        ]
        table = np.asarray(rows, dtype=np.int64).reshape(-1, 5)
        table = table[np.argsort(table[:, 0], kind="stable")]
        self._ids, self._at = table[:, 0].copy(), table[:, 1:4].astype(np.int32)
        # Of what an earlier version wrote there is none: 0, as of nothing.
        self._sums = table[:, 4].astype(np.uint32)

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, clip_id: str) -> Tensor | None:
        place = int(np.searchsorted(self._ids, hash(clip_id)))
        if place == len(self._ids) or self._ids[place] != hash(clip_id):
            return None
        part, start, count = self._at[place].tolist()
        if part not in self._states:
            path = self._folder / f"{part}.f16"
            rows = path.stat().st_size // (2 * self._width)
            self._states[part] = np.memmap(path, dtype=np.float16, mode="r", shape=(rows, self._width))
        states = np.array(self._states[part][start : start + count])
        if (known := int(self._sums[place])) and crc32c.crc32c(states.tobytes()) != known:
            raise ValueError(
                f"{self._folder / f'{part}.f16'}: the states of {clip_id} do not match their checksum: delete "
                f"{self._folder}, and they are encoded again"
            )
        return torch.from_numpy(states)


class CacheWriter:
    """Context manager that appends clips to the shard's first part that no other process is writing."""

    def __init__(self, folder: Path, width: int) -> None:
        self._folder, self._width = folder, width

    def __enter__(self) -> CacheWriter:
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
        self._known = {clip for path in folder.glob("*.jsonl") for clip in _read_index(path, self._width)}
        part = 0
        while True:
            self._index: IO[str] = (folder / f"{part}.jsonl").open("a+", encoding="utf-8")
            try:
                fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self._index.close()
                part += 1
            except OSError as error:
                self._index.close()
                raise ValueError(
                    f"{folder} cannot be locked ({error.strerror}): put data.encoder_cache on storage with file locks"
                ) from error
        rows = _read_index(folder / f"{part}.jsonl", self._width)
        # Remove what a killed writer left half-written: first the index's last line, then the states.
        text = "".join(_line(clip, *place, self._width) for clip, place in rows.items())
        self._index.truncate(len(text))
        self._next = sum(count for _, count, _ in rows.values())
        self._states: IO[bytes] = (folder / f"{part}.f16").open("ab")
        self._states.truncate(self._next * self._width * 2)
        return self

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._known

    def write(self, clip_id: str, states: Tensor) -> None:
        """Add a clip's states [T, D] unless it is there; values beyond float16 are an error, not an infinity."""
        values = states.detach().to("cpu", torch.float16).numpy()
        if values.ndim != 2 or values.shape[1] != self._width:
            raise ValueError(f"{clip_id}: states of shape {values.shape}; expected [T, {self._width}]")
        if not np.isfinite(values).all():
            raise ValueError(f"{clip_id}: encoder states that are not finite in float16; train without the cache")
        if clip_id in self._known:
            return
        with named(self._states.name):
            self._states.write(values.tobytes())
            self._states.flush()
            self._index.write(_line(clip_id, self._next, len(values), crc32c.crc32c(values.tobytes()), self._width))
            self._index.flush()
        self._known.add(clip_id)
        self._next += len(values)

    def __exit__(self, *error: object) -> None:
        for file in (self._states, self._index):
            with named(file.name):
                file.flush()
            os.fsync(file.fileno())
            file.close()


def share_of(clip_id: str, of: int) -> int:
    """Which of ``of`` equal shares of its shard a clip is in; the same for every source and process."""
    return zlib.crc32(clip_id.encode()) % of


def _line(clip_id: str, start: int, count: int, checksum: int, width: int) -> str:
    return json.dumps([clip_id, start, count, width, *([checksum] if checksum else [])]) + "\n"


def _read_index(path: Path, width: int) -> dict[str, tuple[int, int, int]]:
    """First row, number of rows and checksum (or 0) of a part's complete entries, whose states are on disk."""
    rows: dict[str, tuple[int, int, int]] = {}
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines(keepends=True)
    states = path.with_suffix(".f16")
    size = states.stat().st_size if states.exists() else 0
    for line in lines:
        if not line.endswith("\n"):
            break
        try:
            clip_id, *numbers = json.loads(line)
            start, count, found, checksum = numbers if len(numbers) == 4 else (*numbers, 0)
            whole = isinstance(clip_id, str) and all(type(n) is int and n >= 0 for n in (start, count, found, checksum))
            whole = whole and checksum < 1 << 32
        except (ValueError, TypeError):
            whole = False
        if not whole:
            raise ValueError(f"{path}, entry {len(rows) + 1} is damaged ({line[:40]!r}): delete its folder")
        if found != width:
            raise ValueError(f"{path} holds states of width {found}, not {width}: delete its folder")
        if (start + count) * width * 2 > size:
            break
        rows[clip_id] = (start, count, checksum)
    return rows
