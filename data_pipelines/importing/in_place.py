"""Clips that stay where they are: a shard is then a link to a foreign file, with an index of our own next to it."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.corpora.base import Item
from data_pipelines.corpora.recordings import Recording
from qa_train.data.shards.tar import Member


def container_of(item: Item) -> str:
    """The one local file of which all clips of an item are parts; "" when there is none."""
    inside = [place for place in item.audio if (place.offset is not None and not place.packed) or place.row is not None]
    paths = {place.path for place in inside if "://" not in place.path}
    return str(Path(paths.pop()).resolve()) if len(inside) == len(item.audio) and len(paths) == 1 else ""


class InFile:
    """Finds clips as byte ranges of the file that holds them.

    Members of tars and the like have their place already. A cell of a table is searched: what is found is equal to the
    clip, whatever the format, its version and its encodings. Where one is not there in one piece, the table is
    compressed, and no other is searched.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._bytes: mmap.mmap | None = None
        # Of the next cell, which usually comes after the last one; -1: compressed.
        self._next = 0
        self._known: dict[tuple[int, str, int | None], int] = {}

    def members(
        self, key: str, places: Sequence[Recording], kinds: Sequence[str], clips: Sequence[bytes | np.ndarray]
    ) -> tuple[Member, ...] | None:
        """The clips of a record as members of the file, named as in our shards; None: one is not in it as it is."""
        found = []
        for number, (place, kind, raw) in enumerate(zip(places, kinds, clips, strict=False)):
            offset = self._offset(place, raw) if isinstance(raw, bytes) else -1
            if offset < 0:
                return None
            found.append(Member(f"{key}.{number}.{kind}" if number else f"{key}.{kind}", offset, len(raw)))
        return tuple(found) if len(found) == len(places) else None

    def _offset(self, place: Recording, raw: bytes) -> int:
        if place.row is None:
            return -1 if place.offset is None else place.offset
        cell = (place.row, place.column, place.clip)
        if cell not in self._known and self._next >= 0:
            if self._bytes is None:
                with Path(self._path).open("rb") as file:
                    self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            at = self._bytes.find(raw, self._next)
            self._next = at if at < 0 else at + len(raw)
            self._known[cell] = at
        return self._known.get(cell, -1)
