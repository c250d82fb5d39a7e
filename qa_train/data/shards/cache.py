"""Blocks of remote files on the local disk: bounded in size, least recently used first out, safe for many processes.

A block is one file, ``xx/DIGEST-NUMBER``: the bytes and their CRC32C. It is written under another name and then
renamed, so that readers see whole blocks only; the time of its last use is its modification time.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import crc32c

log = logging.getLogger(__name__)
BLOCK_BYTES = 4 << 20
# A sweep leaves this share of the limit, so that the next one is not due at once.
_KEEP = 0.9
_STALE_PART_S = 3600.0


class BlockCache:
    """Reads byte ranges of remote files through blocks on disk. Picklable; processes may share the folder."""

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        if max_bytes < 4 * BLOCK_BYTES:
            raise ValueError(
                f"a cache of {max_bytes} bytes is too small: data.storage.cache_gb must hold 4 blocks of 4 MiB"
            )
        self.folder, self.max_bytes = Path(folder).expanduser(), max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hits = self.misses = 0
        self._verified: set[Path] = set()
        self._written = max_bytes  # the first write sweeps: another run may have left the folder full

    def read(self, name: str, size: int, offset: int, length: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """``length`` bytes at ``offset`` of the file called ``name`` (with its version) of ``size`` bytes.

        ``fetch(offset, length)`` reads missing bytes from the source.
        """
        end = min(offset + length, size)
        parts = []
        for number in range(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1 if end > offset else 0):
            start = number * BLOCK_BYTES
            block = min(BLOCK_BYTES, size - start)
            low, high = max(offset - start, 0), min(end - start, block)
            parts.append(self._part(self._path(name, number), start, block, low, high, fetch))
        return b"".join(parts)

    def _path(self, name: str, number: int) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self.folder / digest[:2] / f"{digest}-{number}"

    def _part(
        self, path: Path, start: int, block: int, low: int, high: int, fetch: Callable[[int, int], bytes]
    ) -> bytes:
        found = self._stored(path, block, low, high)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        raw = fetch(start, block)
        self._store(path, raw)
        return raw[low:high]

    def _stored(self, path: Path, block: int, low: int, high: int) -> bytes | None:
        """Bytes low to high of a stored block; None when it is absent or damaged."""
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != block + 4:
                    return None
                if path in self._verified:
                    file.seek(low)
                    found = file.read(high - low)
                else:
                    raw = file.read()
                    if struct.unpack("<I", raw[-4:])[0] != crc32c.crc32c(raw[:-4]):
                        return None
                    self._verified.add(path)
                    found = raw[low:high]
            os.utime(path)
        except FileNotFoundError:
            # Never stored, or swept by another process between two steps: read it again.
            return None
        return found if len(found) == high - low else None

    def _store(self, path: Path, raw: bytes) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            part.write_bytes(raw + struct.pack("<I", crc32c.crc32c(raw)))
            part.replace(path)
        except OSError as error:
            # A full disk must not stop a run that can read without the cache.
            log.warning("%s: not cached: %s", path, error)
            part.unlink(missing_ok=True)
            return
        self._written += len(raw)
        if self._written >= self.max_bytes * (1 - _KEEP) / 4:
            self._written = 0
            self.sweep()

    def sweep(self) -> None:
        """Delete the blocks unused for longest until the limit holds; one process at a time does it."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            blocks, total = [], 0
            for path in self.folder.glob("??/*"):
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue
                if path.suffix == ".part" and time.time() - stat.st_mtime > _STALE_PART_S:
                    path.unlink(missing_ok=True)
                    continue
                total += stat.st_size
                if path.suffix != ".part":
                    blocks.append((stat.st_mtime_ns, stat.st_size, path))
            if total <= self.max_bytes:
                return
            for _, size, path in sorted(blocks):
                path.unlink(missing_ok=True)
                self._verified.discard(path)
                total -= size
                if total <= self.max_bytes * _KEEP:
                    return
