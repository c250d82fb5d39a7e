"""Strict reading of WebDataset tars: regular files only, and no silent end.

Python's ``tarfile`` stops without a word at a damaged header, at a cut between members and at
zero blocks in the middle; here each of these is an error that names the shard, the last good key
and the byte offset. Member names are only ever keys, never paths.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

AUDIO_EXTENSIONS = ("flac", "wav", "ogg", "opus", "mp3")
TEXT_EXTENSIONS = ("json", "txt")
MAX_MEMBER_BYTES = 1 << 29
MAX_MEMBERS = 2_000_000
_BLOCK = 512


class DamagedShard(ValueError):
    """A tar that cannot be read to its end; the message names shard, offset and last good key."""

    def __init__(self, shard: str, offset: int, last: str | None, what: str) -> None:
        after = f"after member {last!r}" if last else "before its first member"
        super().__init__(f"{shard}: {what}, at byte {offset}, {after}; rebuild or download the shard again")
        self.offset = offset


@dataclass(frozen=True)
class Member:
    """A regular file of the tar: ``offset`` is that of its bytes."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """Name up to the first dot of its last component (the WebDataset convention)."""
        return self.name[: len(self.name) - len(self.extension) - 1] if self.extension else self.name

    @property
    def extension(self) -> str:
        """Everything after that first dot: "flac", "1.flac", "json"."""
        return self.name.rpartition("/")[2].partition(".")[2]

    @property
    def kind(self) -> str:
        """The last part of the extension, in lower case."""
        return self.extension.rpartition(".")[2].lower()


def members(file: IO[bytes], shard: str, size: int) -> Iterator[Member]:
    """The regular files of an uncompressed tar in order; raises DamagedShard where it breaks."""
    last: str | None = None
    count = 0
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (closed with its file)
        while (info := archive.next()) is not None:
            end = info.offset_data + info.size
            if info.size < 0 or end > size:
                what = f"member {info.name!r} of {info.size} bytes ends beyond the file ({size} bytes): cut short"
                raise DamagedShard(shard, info.offset, last, what)
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise DamagedShard(shard, info.offset, last, f"member {info.name!r} is not a regular file: refused")
            if info.size > MAX_MEMBER_BYTES:
                what = f"member {info.name!r} has {info.size} bytes; at most {MAX_MEMBER_BYTES} are accepted"
                raise DamagedShard(shard, info.offset, last, what)
            count += 1
            if count > MAX_MEMBERS:
                raise DamagedShard(shard, info.offset, last, f"more than {MAX_MEMBERS} members")
            yield Member(info.name, info.offset_data, info.size)
            last = info.name
            # tarfile keeps every header it has read: a shard of a million members would fill memory.
            archive.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, UnicodeError, ValueError, OverflowError, EOFError) as error:
        if isinstance(error, DamagedShard):
            raise
        raise DamagedShard(shard, file.tell(), last, f"not a readable tar header ({error})") from error
    _check_end(file, shard, archive.offset, size, last)


def _check_end(file: IO[bytes], shard: str, offset: int, size: int, last: str | None) -> None:
    """The archive must end with zero blocks only, and with at least one of them."""
    if size - offset < _BLOCK:
        raise DamagedShard(shard, offset, last, "the end-of-archive blocks are missing: cut between members")
    file.seek(offset)
    first = file.read(_BLOCK)
    if first.count(0) != len(first):
        raise DamagedShard(shard, offset, last, "the next header is damaged")
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            raise DamagedShard(shard, offset, last, "zero blocks, and data after them")
