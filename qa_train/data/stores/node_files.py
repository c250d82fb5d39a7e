"""Files that one process of a node makes and all processes of the same user there read, in memory where it is large.

A name stands for one content, so that whoever finds the file may use it. A process that dies while it makes a file
frees its lock, and the next one makes it. The folder is bounded, and the last process that ends removes it.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import crc32c
import numpy as np
from numpy.typing import NDArray

from qa_train.utils.atomic import PART

T = TypeVar("T")

log = logging.getLogger(__name__)

_MEMORY = Path("/dev/shm")
# With less room than this, it is left to the batches of the loaders.
_ROOM = 8 << 30
# So long a process waits for another one that makes a file; then it makes the content for itself.
_WAIT_S = 120.0
_POLL_S = 0.01
# A file that nobody finished is old after so long.
_OLD_S = 3600.0


class NodeFiles:
    """Files of one kind, of at most ``most_bytes`` together: the least recently used are removed."""

    def __init__(self, kind: str, most_bytes: int) -> None:
        self.kind, self.most_bytes = kind, most_bytes

    def get(self, name: str, make: Callable[[], T], write: Callable[[T, Path], None], read: Callable[[Path], T]) -> T:
        """The content of that name: read, or made by this process alone and written for the others.

        Without a usable folder, or when another process takes too long, it is made and not shared.
        """
        found = self._get(name, make, write, read, time.monotonic() + _WAIT_S)
        return make() if found is None else found

    def find(self, name: str, read: Callable[[Path], T]) -> T | None:
        """The content of that name, or None if no process has made it."""
        folder = _folder()
        return None if folder is None else _read(folder / f"{self.kind}-{name}", read)

    def prepare(
        self, name: str, make: Callable[[], T], write: Callable[[T, Path], None], read: Callable[[Path], T]
    ) -> T | None:
        """As `get`, but None when another process is making it, or there is no folder to share it in."""
        return self._get(name, make, write, read, None)

    def _get(
        self,
        name: str,
        make: Callable[[], T],
        write: Callable[[T, Path], None],
        read: Callable[[Path], T],
        deadline: float | None,
    ) -> T | None:
        folder = _folder()
        if folder is None:
            return None
        path = folder / f"{self.kind}-{name}"
        while True:
            if (found := _read(path, read)) is not None:
                return found
            try:
                with _locked(path.with_name(path.name + PART)) as part:
                    if part is not None:
                        return self._made(path, part, make, write, read)
            except _Unusable:
                return None
            if deadline is None:
                return None
            if time.monotonic() > deadline:
                log.warning("another process has been making %s for %d s: made here as well", path.name, _WAIT_S)
                return None
            time.sleep(_POLL_S)

    def _made(
        self, path: Path, part: Path, make: Callable[[], T], write: Callable[[T, Path], None], read: Callable[[Path], T]
    ) -> T:
        # Another process may have finished between the look and the lock.
        if (found := _read(path, read)) is not None:
            part.unlink(missing_ok=True)
            return found
        try:
            made = make()
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        try:
            write(made, part)
            part.replace(path)
            self._tidy(path)
            return read(path)
        except OSError as error:
            log.warning("%s is not shared with the other processes of this node: %s", path.name, error)
            part.unlink(missing_ok=True)
            return made

    def _tidy(self, newest: Path) -> None:
        """Remove the least recently used files beyond the limit, and what dead processes left unfinished."""
        found = []
        for path in newest.parent.glob(f"{self.kind}-*"):
            with suppress(FileNotFoundError):
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
        total = sum(size for _, size, _ in found)
        for when, size, path in sorted(found):
            unfinished = path.name.endswith(PART)
            if path != newest and (time.time() - when > _OLD_S if unfinished else total > self.most_bytes):
                path.unlink(missing_ok=True)
                total -= size


class _Unusable(OSError):
    """The folder takes no locks or files."""


def _read(path: Path, read: Callable[[Path], T]) -> T | None:
    try:
        found = read(path)
        os.utime(path)  # the least recently used files are removed first
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        # A temporary folder on a disk may hold the remains of a power failure.
        log.warning("%s is damaged (%s): made again", path, error)
        path.unlink(missing_ok=True)
        return None
    return found


def save_numbers(values: NDArray[np.int64], path: Path) -> None:
    """Write a row of integers with its checksum."""
    with path.open("wb") as file:
        np.save(file, np.append(values, crc32c.crc32c(values.data)), allow_pickle=False)


def load_numbers(path: Path) -> NDArray[np.int64]:
    """What ``save_numbers`` wrote, as a view of the mapped file. Raises ValueError or OSError if it is not whole."""
    stored: NDArray[np.int64] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    if stored.ndim != 1 or not len(stored) or crc32c.crc32c(stored[:-1].data) != stored[-1]:
        raise ValueError("its checksum is another")
    return stored[:-1]


@contextmanager
def _locked(part: Path) -> Iterator[Path | None]:
    """Yield the unfinished file, locked by this process; None when another one has it or has just finished it."""
    try:
        handle = os.open(part, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _Unusable(*error.args) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(handle), part.stat())
        except (BlockingIOError, FileNotFoundError):
            mine = False
        except OSError as error:
            raise _Unusable(*error.args) from error
        yield part if mine else None
    finally:
        os.close(handle)


@lru_cache(maxsize=1)
def _folder() -> Path | None:
    """This user's folder, held open for reading by this process and those that it forks; None if there is none."""
    bases = [Path(tempfile.gettempdir())]
    with suppress(OSError):
        if shutil.disk_usage(_MEMORY).free >= _ROOM:
            bases.insert(0, _MEMORY)
    for base in bases:
        folder = base / f"qa-train-{os.getuid()}"
        with suppress(OSError):
            if (used := _claimed(folder)) is not None:
                atexit.register(_leave, folder, used, os.getpid())
                return folder
    log.warning("no folder that the processes of a node can share: each of them does all of the planning")
    return None


def _claimed(folder: Path) -> int | None:
    """Make or join the folder; the handle whose lock keeps it. None when it is not this user's alone."""
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = os.lstat(folder)
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
            return None
        try:
            handle = os.open(folder / "used", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # the last process before this one removed it just now
        fcntl.flock(handle, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), (folder / "used").stat()):
                return handle
        os.close(handle)


def _leave(folder: Path, used: int, owner: int) -> None:
    """Remove the folder if no other process uses it."""
    if os.getpid() != owner:
        return
    with suppress(OSError):
        fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
