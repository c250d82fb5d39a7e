"""Recordings outside the folder of their list: packed as requested, and reported."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


class Outside:
    """Counts files outside the given folders, with ``..``, links and absolute paths resolved. Lists may name recordings
    anywhere, which is often wanted; but shards are shared, and a foreign list may name files that should not be.
    """

    def __init__(self, given: Iterable[str | Path]) -> None:
        """``given``: folders, or files, which mean their folders; with none, nothing is reported."""
        places = (Path(place) for place in given)
        self._below = [os.path.realpath(place if place.is_dir() else place.parent) for place in places]
        self._parents: dict[str, str] = {}
        self.seen = 0
        self.outside: list[str] = []

    def look(self, path: str | Path) -> None:
        """Count one file; an address is none."""
        if "://" in str(path):
            return
        self.seen += 1
        place = Path(path)
        if place.name in ("", "..") or os.path.islink(place):  # noqa: PTH114 (of any name, also one that is too long)
            real = os.path.realpath(place)
        else:
            # Files share folders, and looking up every part of a path of millions takes minutes.
            parent = str(place.parent)
            if parent not in self._parents:
                self._parents[parent] = os.path.realpath(parent)
            real = f"{self._parents[parent]}/{place.name}"
        if not any(real.startswith(f"{folder.rstrip('/')}/") for folder in self._below):
            self.outside.append(str(path))

    def note(self) -> str | None:
        """One line, or None when all are inside."""
        if not self.outside or not self._below:
            return None
        return (
            f"{len(self.outside)} of {self.seen} recordings are outside {', '.join(self._below)} (absolute paths, .. "
            f"or links) and are packed as well, e.g. {self.outside[0]}"
        )
