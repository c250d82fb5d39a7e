"""The order of one epoch of a source: shards shuffled, then rows shuffled within groups of shards.

Only the shard table is permuted as a whole; the rows of a group are permuted when the group is
reached, so time and memory do not grow with the corpus. Orders are sorted hashes, not draws of a
random generator, so that they are the same in every version of numpy.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qa_train.utils import draws

Ints = NDArray[np.int64]
# Rows of so many shards are mixed, and of more when the shards are small: a shard is often one
# speaker or one book, and a window must not be.
GROUP_SHARDS = 4
GROUP_ROWS = 16_384
_GROUPS_KEPT = 3


class EpochOrder:
    """Where the raw positions of one epoch lead: ``rows(position, count)``, every row once.

    ``shard_lengths`` holds the rows of each shard; row numbers count through the shards. ``shards``: the numbers of
    those that are part of the epoch, by default all that have rows.
    """

    def __init__(self, shard_lengths: Ints, *key: Any, shards: Ints | None = None) -> None:
        self._key = key
        used = np.flatnonzero(shard_lengths > 0) if shards is None else shards
        self.shards = used[np.argsort(hashes(len(used), *key, "shards"), kind="stable")]
        self._lengths = shard_lengths[self.shards]
        self._starts = (np.cumsum(shard_lengths) - shard_lengths)[self.shards]
        self.total = int(self._lengths.sum())
        per_shard = max(1, self.total // max(1, len(used)))
        self.group_shards = max(GROUP_SHARDS, -(-GROUP_ROWS // per_shard))
        # Position at which each group begins, and the end.
        groups = np.add.reduceat(self._lengths, np.arange(0, len(used), self.group_shards))
        self._bounds = np.concatenate([[0], np.cumsum(groups)])
        self._groups: OrderedDict[int, Ints] = OrderedDict()

    def rows(self, position: int, count: int) -> Ints:
        """Row numbers at the positions ``position`` to ``position + count``, cut at the end of the epoch."""
        stop = min(position + count, self.total)
        parts = []
        while position < stop:
            group = int(np.searchsorted(self._bounds, position, side="right")) - 1
            start = int(self._bounds[group])
            part = self._group(group)[position - start : stop - start]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def split(self, position: int) -> tuple[int, Ints]:
        """Where the group of shards ends that is being read at ``position``, and the shards after it."""
        group = int(np.searchsorted(self._bounds, position, side="left"))
        return int(self._bounds[group]), self.shards[group * self.group_shards :]

    def _group(self, number: int) -> Ints:
        if number not in self._groups:
            part = slice(number * self.group_shards, (number + 1) * self.group_shards)
            spans = [np.arange(s, s + n) for s, n in zip(self._starts[part], self._lengths[part], strict=True)]
            rows = np.concatenate(spans)
            self._groups[number] = rows[np.argsort(hashes(len(rows), *self._key, "rows", number), kind="stable")]
            if len(self._groups) > _GROUPS_KEPT:
                self._groups.popitem(last=False)
        self._groups.move_to_end(number)
        return self._groups[number]


def hashes(count: int, *key: Any) -> NDArray[np.uint64]:
    """``count`` 64-bit hashes: splitmix64 (Steele et al. 2014) of a counter, keyed by BLAKE2b of ``key``."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(draws.seed(key))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
