"""Byte ranges that lie close together in a file, joined: one request costs as much time as the bytes between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from qa_train.data.stores.remote import MAX_REQUEST_BYTES

# Bytes that are read for nothing rather than asked around: 64 KiB take 5 ms at 100 Mbit/s, less than another request.
MAX_GAP_BYTES = 64 << 10


class Range(NamedTuple):
    """``size`` bytes at ``offset`` of a file, and their CRC32C if it is known, else -1."""

    path: str
    offset: int
    size: int
    crc32c: int = -1

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.size


def joined(ranges: Iterable[Range]) -> list[list[Range]]:
    """The distinct ranges in groups for one request each: of one file, in order, with gaps of at most `MAX_GAP_BYTES`
    and `MAX_REQUEST_BYTES` altogether. Groups are in the order of their first member's place in ``ranges``.
    """
    places = {each: place for place, each in enumerate(dict.fromkeys(ranges))}
    groups: list[list[Range]] = []
    end = 0
    for each in sorted(places):
        group = groups[-1] if groups and groups[-1][0].path == each.path else None
        if group and each.offset <= end + MAX_GAP_BYTES and max(end, each.end) - group[0].offset <= MAX_REQUEST_BYTES:
            group.append(each)
            end = max(end, each.end)
        else:
            groups.append([each])
            end = each.end
    return sorted(groups, key=lambda group: min(places[each] for each in group))
