"""Rows of a source's shards, read when they are needed and kept while they are recent."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pyarrow

from qa_train.data.order.epoch import GROUP_SHARDS, Ints
from qa_train.data.shards.catalog import ShardTable

PLAN_COLUMNS = ("key", "num_samples", "duration_s", "meta")
CLIP_COLUMNS = ("names", "offsets", "sizes", "crc32c")
# Kept in memory by each process and source: two groups of shards, and more of small ones.
_CACHE_BYTES = 32 << 20
_CACHE_TABLES = 4 * GROUP_SHARDS


class RowReader:
    """Rows by number, counted through the shards; ``shard_lengths`` is 0 for shards that hold none. Picklable."""

    def __init__(self, table: ShardTable, shard_lengths: Ints) -> None:
        self._table = table
        self._ends = np.cumsum(shard_lengths)
        self._starts = self._ends - shard_lengths
        self._cache: OrderedDict[tuple[int, bool], pyarrow.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def first(self, shard: int) -> int:
        """Number of the shard's first row."""
        return int(self._starts[shard])

    def shard_of(self, row: int) -> int:
        """The shard that holds a row."""
        return int(np.searchsorted(self._ends, row, side="right"))

    def shards_of(self, rows: Ints) -> Ints:
        """The shards that hold the rows."""
        return np.searchsorted(self._ends, rows, side="right")

    def cell(self, column: str, row: int, *, clips: bool = False) -> Any:
        """One value; ``clips`` for the columns with the positions of the clips."""
        shard = self.shard_of(row)
        return self.rows(shard, clips=clips)[column][row - self.first(shard)].as_py()

    def rows(self, shard: int, *, clips: bool = False) -> pyarrow.Table:
        """The columns for planning, or those with the positions of the clips, for a whole shard."""
        if (shard, clips) not in self._cache:
            table = self._table.read(shard, CLIP_COLUMNS if clips else PLAN_COLUMNS)
            self._cache[shard, clips] = table.combine_chunks()
            size = sum(t.nbytes for t in self._cache.values())
            while len(self._cache) > _CACHE_TABLES and size > _CACHE_BYTES:
                size -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end((shard, clips))
        return self._cache[shard, clips]
