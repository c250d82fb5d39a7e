"""Byte ranges of remote files on the local disk: bounded, least recently used first out, safe for many processes.

What is kept is what was asked for, clip by clip: a node of many reads a small share of every shard, so whole blocks
would mostly be other nodes' clips. A range is one file, ``xx/DIGEST``, whose bytes have the CRC32C of the index:
that they are still right is seen without asking the server. It is written under another name and then renamed, so that
readers see whole ranges only; the time of its last use is its modification time.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
import time
from pathlib import Path

import crc32c

from qa_train.data.stores.neighbours import Range
from qa_train.utils.masking import without_query

log = logging.getLogger(__name__)
# Room for the clips of a few batches.
MIN_BYTES = 16 << 20
# A sweep leaves this share of the limit, so that the next one is not due at once.
_KEEP = 0.9
_STALE_PART_S = 3600.0


class RangeCache:
    """Keeps byte ranges of remote files on disk. Picklable; threads and processes may share the folder."""

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        if max_bytes < MIN_BYTES:
            raise ValueError(
                f"a cache of {max_bytes} bytes is too small: data.storage.cache_gb must be {MIN_BYTES / 1e9:g} or more"
            )
        self.folder, self.max_bytes = Path(folder).expanduser(), max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hits = self.misses = 0
        self._written = max_bytes  # the first write sweeps: another run may have left the folder full

    def get(self, place: Range) -> bytes | None:
        """The bytes of a range; None when they are absent or damaged, or their checksum is not known."""
        path = self._path(place)
        try:
            raw = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            # Never stored, or swept by another process between two steps: read it again.
            raw = b""
        found = raw if _is_of(raw, place) else None
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def _path(self, place: Range) -> Path:
        # Whatever the signature: the checksum tells other content.
        name = f"{without_query(place.path)} {place.offset} {place.size} {place.crc32c}"
        digest = hashlib.sha256(name.encode()).hexdigest()[:32]
        return self.folder / digest[:2] / digest[2:]

    def put(self, place: Range, raw: bytes) -> None:
        """Keep the bytes of a range, if they are those of its checksum, and make room for them."""
        if not _is_of(raw, place):
            return
        path = self._path(place)
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            part.write_bytes(raw)
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
        """Delete the ranges unused for longest until the limit holds; one process at a time does it."""
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            except OSError:
                pass  # no locks on this storage: what another process deletes at the same time is not missed
            ranges, total = [], 0
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
                    ranges.append((stat.st_mtime_ns, stat.st_size, path))
            if total <= self.max_bytes:
                return
            for _, size, path in sorted(ranges):
                path.unlink(missing_ok=True)
                total -= size
                if total <= self.max_bytes * _KEEP:
                    return


def _is_of(raw: bytes, place: Range) -> bool:
    return len(raw) == place.size and crc32c.crc32c(raw) == place.crc32c
