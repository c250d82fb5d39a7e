"""Rows of a source's shards, read when they are needed; the processes of a node share them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from qa_train.data.order.epoch import Ints
from qa_train.data.shards.catalog import ShardTable
from qa_train.data.shards.process_cache import KEPT
from qa_train.data.stores.node_files import NodeFiles
from qa_train.data.text.records import BadRecord, stored_record

PLAN_COLUMNS = ("key", "num_samples", "duration_s", "meta")
CLIP_COLUMNS = ("names", "offsets", "sizes", "crc32c")
# Unpacked once per node and mapped into the memory of every process that reads them.
_FILES = NodeFiles("rows", 2 << 30)


class RowReader:
    """Rows by number, counted through the shards; ``shard_lengths`` is 0 for shards that hold none. Picklable."""

    def __init__(self, table: ShardTable, shard_lengths: Ints) -> None:
        self._table = table
        self._ends = np.cumsum(shard_lengths)
        self._starts = self._ends - shard_lengths

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
        return self.cells((column,), row, clips=clips)[0]

    def cells(self, columns: Sequence[str], row: int, *, clips: bool = False) -> list[Any]:
        """Several values of a row, for which its shard is looked up once; ``clips`` as in `cell`."""
        shard = self.shard_of(row)
        table, number = self.rows(shard, clips=clips), row - self.first(shard)
        return [table[column][number].as_py() for column in columns]

    def rows(self, shard: int, *, clips: bool = False) -> pyarrow.Table:
        """The columns for planning, or those with the positions of the clips, for a whole shard."""
        columns = CLIP_COLUMNS if clips else PLAN_COLUMNS
        key = (self._table.paths[shard], self._table.fingerprints[shard], columns)

        def load() -> tuple[pyarrow.Table, int]:
            table = self._table.read(shard, columns).combine_chunks()
            return table, table.nbytes

        found = KEPT.get(key)
        if found is None:
            found, own = _FILES.get(hashlib.sha256(repr(key).encode()).hexdigest()[:32], load, _write, _mapped)
            KEPT.put(key, found, own)
        return found


def records_of(metas: Iterable[str], path: str, first: int = 0) -> Iterator[dict[str, Any]]:
    """The records of a shard's index from row ``first`` on; ValueError for one that no shard's JSON could be."""
    for number, meta in enumerate(metas, first):
        try:
            yield stored_record(meta)
        except BadRecord as error:
            raise ValueError(f"{path}, row {number} of its index: {error}; index it again") from error


def _write(made: tuple[pyarrow.Table, int], part: Path) -> None:
    with pyarrow.OSFile(str(part), "wb") as file, pyarrow.ipc.new_file(file, made[0].schema) as out:
        out.write_table(made[0])


def _mapped(path: Path) -> tuple[pyarrow.Table, int]:
    # The memory stays mapped when the file is closed, so that no open file is kept for a table.
    with pyarrow.memory_map(str(path)) as file:
        table = pyarrow.ipc.open_file(file).read_all()
    # Shared, but a removed file takes memory as long as anybody maps it: a process keeps some 2 GiB at most.
    return table, table.nbytes // 10
