"""Where shards live: local paths and globs, or URLs of an allowed scheme, read by byte range.

There is no ``pipe:`` and no command source: a data path can never run a program.
"""

from __future__ import annotations

import glob
import io
import os
import re
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import braceexpand

from qa_train.config import StorageConfig
from qa_train.data.shards.cache import BlockCache
from qa_train.data.shards.remote import RemoteFile, RemoteInfo, read_range, remote_info
from qa_train.utils.masking import masked, without_query

SCHEMES = ("http", "https", "s3", "gs", "memory")
MAX_OPEN_FILES = 64
# That braces may stand for; a catalog holds more shards.
MAX_NAMES = 100_000
_BRACES = re.compile(r"\{[^{}]*(?:\.\.|,)[^{}]*\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_READ_AHEAD_BYTES = 1 << 20


# Files that are taken for shards, and what to do with them.
_OTHER_KINDS = {
    ".jsonl": "a list: make shards of it with qa-train data from-jsonl, or qa-train data import jsonl",
    ".csv": "a table: make shards of it with qa-train data import table",
    ".tsv": "a table: make shards of it with qa-train data import table",
    ".index.parquet": "the index of one: name the .tar",
    ".catalog.parquet": "a catalog, which only data.sources take: name the shards it lists",
    ".parquet": "a table: make shards of it with qa-train data import huggingface",
    ".arrow": "a table: make shards of it with qa-train data import huggingface",
    ".gz": "a compressed file, without byte ranges: unpack it (gunzip) and index the .tar",
    ".tgz": "a compressed tar, without byte ranges: unpack it (gunzip) and index the .tar",
}


def expand(patterns: Iterable[str | Path]) -> list[str]:
    """Shard paths of paths, folders, globs and WebDataset's braces (``x-{000..099}.tar``), also in URLs.

    Raises:
        ValueError: nothing was found; a file of another kind is named (the message tells how to make shards of it);
            braces stand for more than `MAX_NAMES` names.
    """
    patterns = list(patterns)
    found: list[str] = []
    for pattern in (name for each in patterns for name in unbraced(str(each))):
        place = without_query(pattern)
        kind = next((kind for kind in _OTHER_KINDS if place.lower().endswith(kind)), None)
        if kind is not None and not glob.has_magic(place):
            raise ValueError(f"{masked(pattern)} is not a shard but {_OTHER_KINDS[kind]}")
        if "://" in pattern:
            found.append(_checked(pattern))
            continue
        path = Path(pattern).expanduser()
        if path.is_dir():
            # Not those in hidden folders, which are being made.
            found += sorted(glob.glob(f"{glob.escape(str(path))}/**/*.tar", recursive=True))
        elif glob.has_magic(pattern):
            found += sorted(glob.glob(str(path), recursive=True))
        else:
            found.append(str(path))
    if not found:
        raise ValueError(f"no shard matches {list(map(str, patterns))}: give .tar files, a folder or a glob")
    return list(dict.fromkeys(found))


def unbraced(pattern: str) -> Iterable[str]:
    """The names that braces in ``pattern`` stand for; the pattern itself when it has none, or is the name of a file.

    The notation is that of the webdataset library, which also uses braceexpand. Its own ``expand_urls`` has no bound,
    inserts environment variables and cuts an address at "::".
    """
    # os.path.exists answers False where Path.exists fails, for names that no file can have.
    if not _BRACES.search(pattern) or os.path.exists(Path(pattern).expanduser()):  # noqa: PTH110
        return [pattern]
    try:
        # Ranges are built before they are multiplied, so they are judged before they are built.
        if any(abs(int(last) - int(first)) >= MAX_NAMES for first, last in _RANGE.findall(pattern)):
            raise ValueError(f"more than {MAX_NAMES:,} names")
        names = list(islice(braceexpand.braceexpand(pattern, escape=False), MAX_NAMES + 1))
        if len(names) > MAX_NAMES:
            raise ValueError(f"more than {MAX_NAMES:,} names")
    except ValueError as error:
        raise ValueError(f"the braces of {masked(pattern)[:300]} cannot be expanded: {error}") from error
    return names


def beside(path: str, suffix: str) -> str:
    """``path`` + ``suffix``; of a signed URL, whose query opens both: ``https://h/x.tar.index.parquet?sig``."""
    place = without_query(path)
    # A query that names the file is part of the name.
    return place + suffix + path[len(place) :] if place.endswith(".tar") else path + suffix


def open_binary(path: str, cfg: StorageConfig | None = None) -> IO[bytes]:
    """Open for reading; remote files are read by byte range as they are needed."""
    if "://" not in path:
        return Path(path).open("rb")
    cfg = cfg or StorageConfig()
    raw = RemoteFile(remote_info(_checked(path), cfg).size, partial(_read_remote, path, cfg))
    return cast("IO[bytes]", io.BufferedReader(raw, _READ_AHEAD_BYTES))


def size_of(path: str, cfg: StorageConfig | None = None) -> int:
    """Size in bytes; FileNotFoundError if the file does not exist."""
    if "://" in path:
        return remote_info(_checked(path), cfg or StorageConfig()).size
    return Path(path).stat().st_size


def exists(path: str, cfg: StorageConfig | None = None) -> bool:
    """Whether the file is there; a remote that cannot be asked is an error."""
    try:
        size_of(path, cfg)
    except FileNotFoundError:
        return False
    return True


class RangeReader:
    """Reads byte ranges, keeping the most recent local shards open, and remote ones in a cache on disk.

    Every process opens its own files: a forked worker would share the read position of its parent.
    """

    def __init__(self, cfg: StorageConfig | None = None) -> None:
        self.cfg = cfg or StorageConfig()
        self.cache = BlockCache(self.cfg.cache_dir, int(self.cfg.cache_gb * 1e9)) if self.cfg.cache_dir else None
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._infos: dict[str, RemoteInfo] = {}
        self._process = os.getpid()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset``; fewer when the file is shorter."""
        if "://" in path:
            return self._remote(path, offset, size)
        if self._process != os.getpid():
            self._files, self._process = OrderedDict(), os.getpid()
        file = self._files.pop(path, None) or open_binary(path)
        self._files[path] = file
        if len(self._files) > MAX_OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        parts = []
        # Bypass Python's buffer: clips are not adjacent, so nothing read ahead is used.
        while size > 0 and (part := os.pread(file.fileno(), size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close every open file."""
        while self._files:
            self._files.popitem()[1].close()

    def _remote(self, url: str, offset: int, size: int) -> bytes:
        if url not in self._infos:
            self._infos[url] = remote_info(_checked(url), self.cfg)
        info = self._infos[url]
        size = max(0, min(size, info.size - offset))
        if not size:
            return b""
        fetch = partial(_read_remote, url, self.cfg)
        if self.cache is None:
            return fetch(offset, size)
        # Another signature is still the same file if the server reports versions.
        name = without_query(url) if info.version.strip() else url
        return self.cache.read(f"{name} {info.size} {info.version}", info.size, offset, size, fetch)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}


def _read_remote(url: str, cfg: StorageConfig, offset: int, size: int) -> bytes:
    return read_range(url, offset, size, cfg)


def _checked(url: str) -> str:
    scheme = url.split("://", 1)[0]
    if scheme not in SCHEMES:
        raise ValueError(f"{masked(url)!r}: scheme {scheme!r} is not allowed; use a local path or one of {SCHEMES}")
    return url
