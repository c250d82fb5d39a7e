"""Where shards live: local paths and globs, or URLs of an allowed scheme through fsspec.

There is no ``pipe:`` and no command source: a data path can never run a program.
"""

from __future__ import annotations

import glob
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import fsspec

SCHEMES = ("file", "http", "https", "s3", "gs", "memory")
MAX_OPEN_FILES = 64


def expand(patterns: Iterable[str | Path]) -> list[str]:
    """Sorted shard paths of paths, folders and globs; URLs pass unchanged. Nothing found is an error."""
    found: list[str] = []
    for pattern in map(str, patterns):
        if "://" in pattern:
            found.append(_checked(pattern))
            continue
        path = Path(pattern).expanduser()
        if path.is_dir():
            found += sorted(map(str, path.rglob("*.tar")))
        elif glob.has_magic(pattern):
            found += sorted(glob.glob(str(path), recursive=True))
        else:
            found.append(str(path))
    if not found:
        raise ValueError(f"no shard matches {list(map(str, patterns))}: give .tar files, a folder or a glob")
    return list(dict.fromkeys(found))


def open_binary(path: str) -> IO[bytes]:
    """Open for reading; remote files read by byte range."""
    if "://" in path:
        handle: Any = fsspec.open(_checked(path), "rb").open()
        return handle
    return Path(path).open("rb")


def size_of(path: str) -> int:
    """Size in bytes."""
    if "://" in path:
        fs, name = fsspec.core.url_to_fs(_checked(path))
        return int(fs.size(name))
    return Path(path).stat().st_size


class RangeReader:
    """Reads byte ranges, keeping one open file per shard and the most recent shards open.

    Every process opens its own files: a forked worker would share the read position of its parent.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._process = os.getpid()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset``; fewer when the file is shorter."""
        if self._process != os.getpid():
            self._files, self._process = OrderedDict(), os.getpid()
        file = self._files.pop(path, None) or open_binary(path)
        self._files[path] = file
        if len(self._files) > MAX_OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        file.seek(offset)
        return file.read(size)

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": OrderedDict(), "_process": self._process}


def _checked(url: str) -> str:
    scheme = url.split("://", 1)[0]
    if scheme not in SCHEMES:
        raise ValueError(f"{url!r}: scheme {scheme!r} is not allowed; use a local path or one of {SCHEMES}")
    return url
