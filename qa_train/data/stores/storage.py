"""Where shards live: local paths and globs, or URLs of an allowed scheme, read by byte range.

There is no ``pipe:`` and no command source: a data path can never run a program.
"""

from __future__ import annotations

import glob
import io
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import braceexpand

from qa_train.config import StorageConfig
from qa_train.data.stores.background import submit
from qa_train.data.stores.cache import RangeCache
from qa_train.data.stores.folders import STORES
from qa_train.data.stores.neighbours import Range, joined
from qa_train.data.stores.read_through import ReadThrough
from qa_train.data.stores.remote import RemoteFile, read_range, remote_names, remote_size
from qa_train.data.stores.web_ranges import HUB
from qa_train.data.stores.web_ranges import SCHEMES as WEB
from qa_train.utils.masking import masked, without_query

SCHEMES = (*WEB, *STORES)
MAX_OPEN_FILES = 64
# That braces may stand for; a catalog holds more shards.
MAX_NAMES = 100_000
_BRACES = re.compile(r"\{[^{}]*(?:\.\.|,)[^{}]*\}")
# "?" begins a query.
_GLOB = re.compile(r"[*\[]")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_READ_AHEAD_BYTES = 1 << 20


# Files that are taken for shards, and what to do with them.
_OTHER_KINDS = {
    ".jsonl": "a list: make shards of it with qa-train data from-jsonl, or qa-train data import jsonl",
    ".csv": "a table: make shards of it with qa-train data import table",
    ".tsv": "a table: make shards of it with qa-train data import table",
    ".index.parquet": "the index of one: name the .tar",
    ".catalog.parquet": "a catalog: name the shards it lists",
    ".parquet": "a table: make shards of it with qa-train data import huggingface",
    ".arrow": "a table: make shards of it with qa-train data import huggingface",
    ".gz": "a compressed file, without byte ranges: unpack it (gunzip) and index the .tar",
    ".tgz": "a compressed tar, without byte ranges: unpack it (gunzip) and index the .tar",
}


def expand(patterns: str | Path | Iterable[str | Path], cfg: StorageConfig | None = None) -> list[str]:
    """Shard paths of paths, folders, globs and WebDataset's braces (``x-{000..099}.tar``), also in URLs.

    Object stores and the hub are listed for folders and for globs of ``*`` and ``[...]``; ``cfg``: how.

    Raises:
        ValueError: nothing was found; a file of another kind is named (the message tells how to make shards of it);
            braces stand for more than `MAX_NAMES` names, or a listing has more; a web server would have to be listed.
        RemoteError: a store that cannot be listed.
    """
    # A text is a list of characters, of which "/" is the whole disk.
    patterns = [patterns] if isinstance(patterns, str | Path) else list(patterns)
    found: list[str] = []
    for pattern in (name for each in patterns for name in unbraced(str(each))):
        place = without_query(pattern)
        kind = next((kind for kind in _OTHER_KINDS if place.lower().endswith(kind)), None)
        if kind is not None and not glob.has_magic(place):
            raise ValueError(f"{masked(pattern)} is not a shard but {_OTHER_KINDS[kind]}")
        if "://" in pattern:
            found += _listed(_checked(pattern), cfg or StorageConfig())
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


def _listed(url: str, cfg: StorageConfig) -> list[str]:
    """The shard that a URL names, or those that its folder or glob stands for."""
    place = without_query(url)
    # Hosts have brackets too: http://[::1]/x.tar.
    several = _GLOB.search(place.split("/", 3)[-1]) is not None or place.endswith("/")
    if place.endswith(".tar") and not several:
        return [url]
    if url.startswith(("http://", "https://")):
        if several:
            raise ValueError(
                f"{masked(url)}: web servers list no folders; name the shards, with braces for many: x-{{000..099}}.tar"
            )
        return [url]
    names = remote_names(url, cfg)
    if len(names) > MAX_NAMES:
        raise ValueError(f"{masked(url)} stands for more than {MAX_NAMES:,} shards: make a catalog of them")
    # A single file may have any name.
    return names or ([] if several else [url])


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


def open_binary(path: str, cfg: StorageConfig | None = None, *, through: bool = False) -> IO[bytes]:
    """Open for reading; remote files are read by byte range as they are needed, or ``through``: from their beginning to
    their end, in large blocks.
    """
    if "://" not in path:
        return Path(path).open("rb")
    cfg = cfg or StorageConfig()
    size, read = remote_size(_checked(path), cfg), partial(read_range, path, cfg=cfg)
    raw = RemoteFile(size, ReadThrough(size, read) if through else read)
    return cast("IO[bytes]", io.BufferedReader(raw, _READ_AHEAD_BYTES))


def size_of(path: str, cfg: StorageConfig | None = None) -> int:
    """Size in bytes; FileNotFoundError if the file does not exist."""
    if "://" in path:
        return remote_size(_checked(path), cfg or StorageConfig())
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

    A forked process begins anew: the threads that fetch for its parent do not follow.
    """

    def __init__(self, cfg: StorageConfig | None = None) -> None:
        self.cfg = cfg or StorageConfig()
        self.cache = RangeCache(self.cfg.cache_dir, int(self.cfg.cache_gb * 1e9)) if self.cfg.cache_dir else None
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[str, IO[bytes]] = OrderedDict()
        self._ahead: dict[Range, Future[dict[Range, bytes]]] = {}

    def fetch(self, *groups: Iterable[Range]) -> None:
        """Start reading the remote ones of these ranges in the background, the first group first, neighbours together;
        `read` then waits for its own. What an earlier call fetched and this one does not name is dropped.
        """
        if self._process != os.getpid():
            self._begin()
        remote = [[each for each in group if "://" in each.path] for group in groups]
        wanted = {each for group in remote for each in group}
        kept = {each: future for each, future in self._ahead.items() if each in wanted}
        for dropped in {*self._ahead.values()} - {*kept.values()}:
            dropped.cancel()
        self._ahead = kept
        for group in remote:
            for ranges in joined(each for each in group if each not in self._ahead):
                self._ahead |= dict.fromkeys(ranges, submit(partial(self._remote, ranges)))

    def read(self, path: str, offset: int, size: int, crc32c: int = -1) -> bytes:
        """``size`` bytes at ``offset``; fewer when the file is shorter. Those of a known CRC32C are cached."""
        if self._process != os.getpid():
            self._begin()
        if "://" in path:
            place = Range(path, offset, size, crc32c)
            ahead = self._ahead.get(place)
            return (ahead.result() if ahead is not None else self._remote([place]))[place]
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

    def _remote(self, ranges: Sequence[Range]) -> dict[Range, bytes]:
        """Neighbouring ranges of one file: what the cache lacks is read at once. They end where the file does.

        Nothing is asked of the server but these bytes: in a large job a process reads a clip or two of a shard.
        """
        found = {each: self.cache.get(each) for each in ranges} if self.cache else {}
        missing = [each for each in ranges if found.get(each) is None]
        if missing:
            start, end = missing[0].offset, max(each.end for each in missing)
            body = read_range(_checked(ranges[0].path), start, end - start, self.cfg)
            for each in missing:
                found[each] = part = body[each.offset - start : each.end - start]
                if self.cache:
                    self.cache.put(each, part)
        return {each: part or b"" for each, part in found.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"cfg": self.cfg, "cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


def _checked(url: str) -> str:
    scheme = url.split("://", 1)[0]
    if scheme not in SCHEMES:
        raise ValueError(f"{masked(url)!r}: scheme {scheme!r} is not allowed; use a local path or one of {SCHEMES}")
    if scheme == "hf" and not HUB.fullmatch(url):
        raise ValueError(f"{masked(url)!r} is not allowed; write hf://datasets/OWNER/NAME/PATH, or NAME@REVISION")
    return url
