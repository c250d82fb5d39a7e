"""Token counts of a shard for one use, in a file next to its index: ``X.tar.tokens-DIGEST.parquet``, a row per record.

``qa-train data tokens`` writes them. Where a shard has none, a run counts while it trains, for the processes of its
node. A file is judged before it is used, as an index is (``gate``), and a batch with another length than was planned
stops the run (``qa_train.data.batches``).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from qa_train.config import StorageConfig
from qa_train.data.shards import gate
from qa_train.data.shards.catalog import ShardTable, open_shards
from qa_train.data.shards.process_cache import KEPT
from qa_train.data.shards.row_reader import records_of
from qa_train.data.stores import storage
from qa_train.data.stores.folders import writable, written
from qa_train.data.stores.node_files import NodeFiles
from qa_train.data.stores.remote import RemoteRefused
from qa_train.data.text.counting import REASONS, TokenCounts, Use, count_tokens
from qa_train.utils.masking import masked

log = logging.getLogger(__name__)

_FORMAT = "1"
_FILES = NodeFiles("tokens", 512 << 20)
# Tokens of one text at most, so that sums of squares stay within 64 bits.
_MOST_TOKENS = 1 << 26
# Wordings of all records of a shard together.
_MOST_VALUES = 1 << 26
_NUMBERS = pyarrow.list_(pyarrow.int32())
# ``wordings`` is empty but for the first record of each kind.
_SCHEMA = pyarrow.schema(
    [
        ("reason", pyarrow.int8()),
        ("silent", pyarrow.bool_()),
        ("text", _NUMBERS),
        ("scored", pyarrow.int32()),
        ("kind", pyarrow.int32()),
        ("wordings", _NUMBERS),
    ]
)
Records = Callable[[], Iterable[dict[str, Any]]]


class CountReader:
    """The token counts of a source's shards. Picklable."""

    def __init__(self, table: ShardTable, use: Use, cfg: StorageConfig | None = None) -> None:
        self._table, self._use, self._cfg = table, use, cfg
        self._digest = use.digest
        # Shards without a file next to them, so that a remote one is not asked for again and again.
        self._without: set[int] = set()

    def path(self, shard: int) -> str:
        """The file next to a shard."""
        return storage.beside(self._table.paths[shard], f".tokens-{self._digest[:16]}.parquet")

    def find(self, shard: int) -> TokenCounts | None:
        """The counts that are next to the shard, or that a process of this node made; None if there are none.

        Raises ValueError for a file that no count of this shard can have written.
        """
        key, name = self._key(shard)
        found: TokenCounts | None = KEPT.get(key)
        if found is None:
            found = self._next_to(shard) or _FILES.find(name, lambda path: self._shared(path, shard))
            if found is not None:
                KEPT.put(key, found, found.nbytes)
        return found

    def make(self, shard: int, records: Records) -> TokenCounts | None:
        """Count a shard's records for the processes of this node; None when another one is doing so."""
        return _FILES.prepare(
            self._key(shard)[1],
            lambda: count_tokens(records(), self._use),
            lambda counts, part: self._write(counts, shard, part),
            lambda path: self._shared(path, shard),
        )

    def write(self, shard: int, records: Records) -> str | None:
        """Count a shard's records and write the file next to it; its path, or None if it is there already."""
        place = self.path(shard)
        if not writable(place):
            raise ValueError(
                f"{masked(place)}: nothing can be written next to this shard; count a local copy, and put them there"
            )
        with suppress(ValueError):  # a faulty file is replaced
            if self._next_to(shard) is not None:
                return None
        counts = count_tokens(records(), self._use)
        with written(place, self._cfg) as part:
            self._write(counts, shard, part)
        return place

    def _key(self, shard: int) -> tuple[tuple[str, str, str], str]:
        key = (self._table.paths[shard], self._table.fingerprints[shard], self._digest)
        return key, hashlib.sha256(repr(key).encode()).hexdigest()[:32]

    def _next_to(self, shard: int) -> TokenCounts | None:
        place = self.path(shard)
        if shard in self._without:
            return None
        try:
            with (
                storage.open_binary(place, self._cfg) as handle,
                gate.named(place, "delete it, or make it again with qa-train data tokens"),
            ):
                return self._read(handle, shard)
        except FileNotFoundError:
            pass
        except RemoteRefused as error:
            # Object stores answer "forbidden" for what is not there. Counting here gives the same numbers.
            if not self._without:
                log.warning("%s is not read, the texts are counted instead: %s", masked(place), error)
        except _OfAnother as error:
            log.warning("%s is not used: %s; make it again with qa-train data tokens", masked(place), error)
        self._without.add(shard)
        return None

    def _shared(self, path: Path, shard: int) -> TokenCounts:
        with path.open("rb") as handle:
            return self._read(handle, shard)

    def _write(self, counts: TokenCounts, shard: int, part: Path) -> None:
        footer = {"format": _FORMAT, "fingerprint": self._table.fingerprints[shard], "use": self._digest}
        first = np.unique(counts.kind, return_index=True)[1]
        wordings: list[list[int]] = [[] for _ in range(len(counts))]
        for kind, row in enumerate(first.tolist()):
            wordings[row] = [n for n in counts.wordings[kind].tolist() if n >= 0]
        columns = [counts.reason, counts.silent, counts.text.tolist(), counts.scored, counts.kind, wordings]
        arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        table = pyarrow.Table.from_arrays(arrays, schema=_SCHEMA).replace_schema_metadata(footer)
        pyarrow.parquet.write_table(table, part, compression="zstd")

    def _read(self, handle: IO[bytes], shard: int) -> TokenCounts:
        """Counts of an open file; Refused when they cannot be right, _OfAnother when they are of other data."""
        file = pyarrow.parquet.ParquetFile(handle, pre_buffer=False)
        footer = gate.footer_of(file, _SCHEMA)
        for name, wanted in (
            ("format", _FORMAT), ("fingerprint", self._table.fingerprints[shard]), ("use", self._digest)
        ):  # fmt: skip
            if footer.get(name) != wanted:
                raise _OfAnother(f"its {name} is {str(footer.get(name))[:20]!r}, expected {wanted[:20]!r}")
        table = gate.read_columns(handle, file, _SCHEMA.names, _MOST_VALUES).combine_chunks()
        gate.check_texts(table)
        if table.num_rows != (rows := int(self._table.rows[shard])):
            raise gate.Refused(f"it has {table.num_rows} rows, the index {rows}")
        counts = _arrays(table, self._use.documents)
        _check(counts)
        return counts


def count_shard(path: str, use: Use, cfg: StorageConfig | None = None) -> str | None:
    """Write the token counts of one indexed shard; the file, or None if it is there already."""
    table = open_shards([path], cfg=cfg)
    return CountReader(table, use, cfg).write(0, lambda: records_of(table.read(0, ("meta",))["meta"].to_pylist(), path))


class _OfAnother(Exception):
    """The file is of an earlier index or tokenizer."""


def _arrays(table: pyarrow.Table, documents: int) -> TokenCounts:
    lengths = pyarrow.compute.list_value_length(table["text"]).to_numpy()
    if (lengths != documents).any():
        raise gate.Refused(f"text of its row {np.flatnonzero(lengths != documents)[0]} has not {documents} numbers")
    sizes = pyarrow.compute.list_value_length(table["wordings"]).to_numpy()
    sizes = sizes[sizes > 0]
    if len(sizes) * int(sizes.max(initial=1)) > gate.MAX_COLUMN_BYTES // 4:
        raise gate.Refused("its wordings are more than any task has")
    wordings = np.full((len(sizes), int(sizes.max(initial=1))), -1, dtype=np.int32)
    values = _values(table["wordings"])
    if (values < 0).any():
        raise gate.Refused("a number of its wordings is below 0")
    wordings[np.arange(wordings.shape[1]) < sizes[:, None]] = values
    numbers = {name: table[name].to_numpy() for name in ("reason", "silent", "scored", "kind")}
    return TokenCounts(text=_values(table["text"]).reshape(-1, documents), wordings=wordings, **numbers)


def _values(column: pyarrow.ChunkedArray) -> np.ndarray:
    flat = pyarrow.compute.list_flatten(column)
    if flat.null_count:
        raise gate.Refused("a number is null")
    return flat.to_numpy()


def _check(counts: TokenCounts) -> None:
    """Refuse numbers that no count has."""
    if not len(counts):
        return
    for name, values, most in (
        ("reason", counts.reason, len(REASONS) - 1),
        ("text", counts.text, _MOST_TOKENS),
        ("wordings", counts.wordings, _MOST_TOKENS),
        ("kind", counts.kind, len(counts.wordings) - 1),
        ("scored", counts.scored, int(counts.text.sum(1).max())),
    ):
        low = -1 if name == "wordings" else 0
        if values.min() < low or values.max() > most:
            raise gate.Refused(f"its {name} is from {values.min()} to {values.max()}; expected {low} to {most}")
