"""Parquet and Arrow files, of this machine or at an address, read block by block without any code of the dataset."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from qa_train.config import StorageConfig
from qa_train.data.stores.remote import RemoteError
from qa_train.data.stores.storage import open_binary


@dataclass(frozen=True)
class TableFile:
    """A table; ``storage``: how it is read if it is at an address. Files and blocks are kept by their path alone."""

    path: str
    storage: StorageConfig = field(default_factory=StorageConfig, compare=False)

    @property
    def starts(self) -> tuple[int, ...]:
        """First row of each row group (Parquet) or batch (Arrow), and the number of rows at the end."""
        return _starts(self)

    @property
    def schema(self) -> pyarrow.Schema:
        """Its columns; ValueError when it is neither Parquet nor Arrow."""
        try:
            return _parquet(self).schema_arrow if self.is_parquet else _arrow(self.path)[0].schema
        except (pyarrow.ArrowInvalid, UnicodeDecodeError, OSError, IndexError) as error:
            raise ValueError(f"{self.path}: not a readable Parquet or Arrow file, or empty ({error})") from error

    @property
    def is_parquet(self) -> bool:
        """By its name."""
        return self.path.endswith(".parquet")

    def lengths(self, column: str) -> Iterator[int]:
        """How many clips the list in a column has, of each row; of Parquet without reading their bytes."""
        for block in range(len(self.starts) - 1):
            part = _block(self, block, (_path_leaf(self, column) if self.is_parquet else column,))
            yield from (length or 0 for length in pyarrow.compute.list_value_length(part[column]).to_pylist())

    def rows(self, start: int, columns: tuple[str, ...], stop: int | None = None) -> list[dict[str, Any]]:
        """Rows ``start`` to ``stop`` (default: one), read block by block. Raises ValueError where it is damaged."""
        stop, found = start + 1 if stop is None else stop, list[dict[str, Any]]()
        block = bisect_right(self.starts, start) - 1
        while start < stop:
            first, end = self.starts[block : block + 2]
            part = _block(self, block, columns).slice(start - first, min(stop, end) - start)
            with _damage_told(self):
                found += part.to_pylist()
            start, block = end, block + 1
        return found


@contextmanager
def _damage_told(table: TableFile) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, UnicodeDecodeError, OSError) as error:
        # Arrow has OSErrors of its own; those of the system have a number.
        if isinstance(error, RemoteError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        # Columns of objects beyond 2 GiB in a row group; codecs such as LZO, which are an OSError.
        if isinstance(error, pyarrow.ArrowNotImplementedError) or "compression" in str(error):
            raise ValueError(
                f"{table.path}: pyarrow {pyarrow.__version__} does not read this form of Parquet "
                f"({str(error).strip()}): write it again with smaller row groups, compressed by zstd or snappy"
            ) from error
        raise ValueError(f"{table.path}: damaged, download it again ({str(error).strip()})") from error


@lru_cache(maxsize=64)
def _starts(table: TableFile) -> tuple[int, ...]:
    starts = [0]
    with _damage_told(table):
        if table.is_parquet:
            file = _parquet(table)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        else:
            sizes = [batch.num_rows for batch in _arrow(table.path)]
    for size in sizes:
        starts.append(starts[-1] + size)
    return tuple(starts)


@lru_cache(maxsize=2)
def _block(table: TableFile, block: int, columns: tuple[str, ...]) -> pyarrow.Table:
    with _damage_told(table):
        if table.is_parquet:
            return _parquet(table).read_row_group(block, columns=list(columns))
        return pyarrow.Table.from_batches([_arrow(table.path)[block]]).select(list(columns))


def _parquet(table: TableFile) -> pyarrow.parquet.ParquetFile:
    """A Parquet file; of one at an address only the parts are read that are asked for."""
    path = table.path
    return pyarrow.parquet.ParquetFile(open_binary(path, table.storage) if "://" in path else path)


def _path_leaf(table: TableFile, column: str) -> str:
    """The paths in a column of lists of {bytes, path}; the column itself where its clips have none."""
    with _damage_told(table):
        names = [leaf.path for leaf in _parquet(table).schema]
    return next((name for name in names if name.startswith(f"{column}.") and name.endswith(".path")), column)


@lru_cache(maxsize=8)
def _arrow(path: str) -> list[pyarrow.RecordBatch]:
    """Record batches of a memory-mapped Arrow stream (what `datasets` saves) or file."""
    try:
        return list(pyarrow.ipc.open_stream(pyarrow.memory_map(path)))
    except pyarrow.ArrowInvalid:
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(path))
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def class_names(schema: pyarrow.Schema) -> dict[str, list[str]]:
    """Column -> names of its classes, where `datasets` wrote the file with columns of ClassLabel or of lists of it."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if not raw:
        return {}
    features = json.loads(raw).get("info", {}).get("features", {})
    found: dict[str, list[str]] = {}
    for column, feature in features.items():
        while isinstance(feature, dict | list) and feature and (isinstance(feature, list) or "feature" in feature):
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            found[column] = [str(name) for name in feature["names"]]
    return found
