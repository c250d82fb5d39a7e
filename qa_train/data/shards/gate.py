"""What an index or a catalog must be before anything is made of it: whoever handed on the shards may have written it.

Footers are judged before rows are read, and rows as whole columns: a thousand rows take less than a millisecond.
Whoever asks adds the name of the file and what to do.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from qa_train.data.audio.waveform import MAX_CLIP_S, MAX_SAMPLE_RATE, MIN_CLIP_SAMPLES, MIN_SAMPLE_RATE, SAMPLE_RATE
from qa_train.data.shards.tar import MAX_MEMBER_BYTES, MAX_MEMBERS, MAX_NAME_BYTES
from qa_train.data.stores.remote import RemoteError
from qa_train.data.text.records import MAX_JSON_BYTES, BadRecord, stored_record
from qa_train.utils.masking import masked

# A record's JSON with its transcript, rewritten: other spaces, numbers and escapes.
MAX_META_BYTES = 4 * MAX_JSON_BYTES
# Text of one column, unpacked; equal texts are stored once, so that a small file may hold any number of them.
MAX_COLUMN_BYTES = 1 << 30
_MAX_SHARD_BYTES = 1 << 50
_MAX_SECONDS = MAX_MEMBERS * MAX_CLIP_S
_RANGES = {
    "offsets": (0, _MAX_SHARD_BYTES),
    "sizes": (1, MAX_MEMBER_BYTES),
    "num_samples": (MIN_CLIP_SAMPLES, int(MAX_CLIP_S * SAMPLE_RATE)),
    "sample_rates": (MIN_SAMPLE_RATE, MAX_SAMPLE_RATE),
}
_TEXT_LIMITS = {"key": MAX_NAME_BYTES, "names": MAX_NAME_BYTES, "meta": MAX_META_BYTES}
# Names are printed, and clips are written under them.
_BAD_NAME = r"\p{Cc}|^/|(^|/)\.\.(/|$)"


class Refused(ValueError):
    """A fault of an index or a catalog, without its name."""


@contextlib.contextmanager
def named(place: str, remedy: str) -> Iterator[None]:
    """Report a faulty file and the remedy, in one line."""
    try:
        yield
    except Refused as error:
        raise ValueError(f"{masked(place)}: {_short(error)}; {remedy}") from error
    except (pyarrow.ArrowException, MemoryError, UnicodeDecodeError, OSError) as error:
        # An unreachable server, an unreadable file: a new index would not help. Arrow's errors for damaged files are
        # OSErrors too, without a number.
        if isinstance(error, RemoteError) or getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"{masked(place)} is damaged ({_short(error)}); {remedy}") from error


def _short(error: BaseException) -> str:
    """The message in one line of bounded length: it may repeat contents of the file."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


def footer_of(file: pyarrow.parquet.ParquetFile, schema: pyarrow.Schema, rows: int = MAX_MEMBERS) -> dict[str, str]:
    """The metadata of a Parquet file; Refused when its columns differ, or it states more than ``rows`` rows."""
    found, metadata = file.schema_arrow, file.metadata
    if not found.equals(schema):
        raise Refused(f"it has the columns {found.names}, or types, of another format; expected {schema.names}")
    if not 0 <= metadata.num_rows <= rows:
        raise Refused(f"it states {metadata.num_rows} rows; expected at most {rows}")
    return {key.decode(): value.decode() for key, value in (found.metadata or {}).items()}


def read_columns(
    handle: IO[bytes], file: pyarrow.parquet.ParquetFile, columns: Sequence[str], rows: int = MAX_MEMBERS
) -> pyarrow.Table:
    """Columns of an open file of at most ``rows`` rows; Refused when they would take more memory than they may.

    Equal texts are stored once, so that a small file may hold any number of them: such columns are measured first.
    """
    metadata = file.metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if (parts := sum(group.num_rows for group in groups)) != metadata.num_rows:
        raise Refused(f"it states {metadata.num_rows} rows, its parts {parts}")
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        name, chunks = column.path.partition(".")[0], [group.column(number) for group in groups]
        stored, values = sum(c.total_uncompressed_size for c in chunks), sum(c.num_values for c in chunks)
        # Of a list without entries, too, one value is stored.
        if stored > MAX_COLUMN_BYTES or values > MAX_MEMBERS + rows:
            raise Refused(f"its column {name} states {stored} bytes and {values} values, more than a shard can have")
        if name in columns and column.physical_type == "BYTE_ARRAY" and stored * values > MAX_COLUMN_BYTES:
            packed = pyarrow.parquet.ParquetFile(
                handle, metadata=metadata, pre_buffer=False, read_dictionary=[column.path]
            ).read(columns=[name], use_threads=False)
            if (total := sum(map(_unpacked, packed[name].chunks))) > MAX_COLUMN_BYTES:
                raise Refused(f"its column {name} unpacks to {total} bytes; at most {MAX_COLUMN_BYTES} are accepted")
    return file.read(columns=list(columns), use_threads=False)


def _unpacked(chunk: Any) -> int:
    texts = chunk if pyarrow.types.is_dictionary(chunk.type) else chunk.flatten()
    lengths = pyarrow.compute.binary_length(texts.dictionary)
    return int(pyarrow.compute.sum(lengths.take(texts.indices)).as_py() or 0)


def check_rows(table: pyarrow.Table, shard_bytes: int) -> None:
    """Refuse columns of an index with values that no scan of a shard of that size could have written.

    ``meta`` is judged by its size alone; ``stored_record`` reads it.
    """
    table = table.combine_chunks()
    check_texts(table)
    lengths: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    for name in table.column_names:
        column, listed = table[name], pyarrow.types.is_list(table.schema.field(name).type)
        flat = column
        if listed:
            lengths[name] = pyarrow.compute.list_value_length(column).to_numpy()
            flat = pyarrow.compute.list_flatten(column)
            if flat.null_count:
                _refuse(_any_in(flat.is_null().to_numpy(), lengths[name]), name, "holds a null")
        if name in _TEXT_LIMITS:
            bad = pyarrow.compute.greater(pyarrow.compute.binary_length(flat), _TEXT_LIMITS[name])
            _refuse(_rows_of(bad, lengths.get(name)), name, f"has more than {_TEXT_LIMITS[name]} bytes")
        if name in ("key", "names"):
            bad = pyarrow.compute.match_substring_regex(flat, _BAD_NAME)
            _refuse(_rows_of(bad, lengths.get(name)), name, "holds control characters, or leaves its folder")
        if name in _RANGES:
            values[name] = flat.to_numpy()
            low, high = _RANGES[name]
            bad = (values[name] < low) | (values[name] > high)
            _refuse(_any_in(bad, lengths[name]), name, f"is not from {low} to {high}")
    _check_together(table, lengths, values, shard_bytes)


def _check_together(
    table: pyarrow.Table, lengths: dict[str, np.ndarray], values: dict[str, np.ndarray], shard_bytes: int
) -> None:
    """Columns against each other."""
    for name in lengths:
        first = next(iter(lengths))
        _refuse(lengths[name] != lengths[first], name, f"has another length than {first}")
    if "offsets" in values and "sizes" in values:
        beyond = values["offsets"] + values["sizes"] > shard_bytes
        _refuse(_any_in(beyond, lengths["sizes"]), "sizes", f"ends beyond the shard ({shard_bytes} bytes)")
    if "duration_s" in table.column_names and "num_samples" in values:
        ends = np.concatenate([[0], np.cumsum(values["num_samples"])])[np.cumsum(lengths["num_samples"])]
        seconds = np.diff(ends, prepend=0) / SAMPLE_RATE
        wrong = ~(np.abs(table["duration_s"].to_numpy() - seconds) < 1e-3)
        _refuse(wrong, "duration_s", "is not that of its samples")


def _rows_of(bad: Any, lengths: np.ndarray | None) -> Any:
    """Whether each row is bad; of lists, whether any of its entries is."""
    return bad if lengths is None else _any_in(bad.to_numpy(zero_copy_only=False), lengths)


def _any_in(bad: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    if not bad.any():
        return np.zeros(0, dtype=bool)
    return np.isin(np.arange(len(lengths)), np.repeat(np.arange(len(lengths)), lengths)[bad])


def _refuse(bad: Any, name: str, what: str) -> None:
    """Refuse the first row that is bad."""
    rows = np.flatnonzero(np.asarray(bad))
    if len(rows):
        raise Refused(f"{name} of its row {rows[0]} {what}")


def check_texts(table: pyarrow.Table) -> None:
    """Refuse a table with an empty cell, or with texts that are not UTF-8."""
    table.validate(full=True)
    for name in table.column_names:
        _refuse(table[name].combine_chunks().is_null(), name, "is null")


def check_paths(paths: pyarrow.ChunkedArray) -> None:
    """Refuse a shard's path or address that is empty or holds control characters: they are printed."""
    _refuse(pyarrow.compute.match_substring_regex(paths, r"\p{Cc}|^$"), "path", "is empty or holds control characters")


def check_records(table: pyarrow.Table) -> None:
    """Refuse records that no shard's JSON could be."""
    for row, meta in enumerate(table["meta"].to_pylist()):
        try:
            stored_record(meta)
        except BadRecord as error:
            raise Refused(f"meta of its row {row}: {error}") from error


def parsed(text: str, kind: type, what: str) -> Any:
    """JSON of a footer, an object or a list."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"its {what} are not JSON ({error})") from error
    if not isinstance(found, kind):
        raise Refused(f"its {what} are {str(found)[:40]!r}; expected a JSON {kind.__name__}")
    return found


def check_problem(entry: Any) -> dict[str, Any]:
    """The fields of a ``Problem``."""
    fields = {"key": str, "offset": int, "reason": str, "detail": str}
    if not isinstance(entry, dict) or {name: type(value) for name, value in entry.items()} != fields:
        raise Refused(f"its problems hold {str(entry)[:80]!r}; expected {', '.join(fields)}")
    return entry


def check_sum(rows: Any, seconds: Any) -> None:
    """Refuse the stated sums of a shard that no shard can have: no numbers, negative, endless."""
    for what, value, kinds, most in (
        ("rows", rows, (int,), MAX_MEMBERS),
        ("seconds", seconds, (int, float), _MAX_SECONDS),
    ):
        # Not isinstance: true is not a number.
        if type(value) not in kinds or not 0 <= value <= most:
            raise Refused(f"it states {what} {str(value)[:80]}; expected 0 to {most:g}")


def check_sums(rows: np.ndarray, seconds: np.ndarray, places: Sequence[str]) -> None:
    """The same for many shards, [n] each, of which ``places`` are the names."""
    wrong = ~((rows >= 0) & (rows <= MAX_MEMBERS) & (seconds >= 0) & (seconds <= _MAX_SECONDS))
    for place in np.flatnonzero(wrong)[:1].tolist():
        raise Refused(f"it states {rows[place]} rows and {seconds[place]} seconds of {places[place]}")


def check_counts(counts: Any, field: str, rows: int) -> None:
    """Refuse records and seconds by value of a field that are more than the shard has."""
    total = 0
    for entry in counts.values() if isinstance(counts, dict) else [None]:
        if not isinstance(entry, list | tuple) or len(entry) != 2:
            raise Refused(f"its counts of {field!r} are {str(counts)[:80]!r}; expected records and seconds by value")
        check_sum(entry[0], entry[1])
        total += entry[0]
    if total > rows:
        raise Refused(f"its counts of {field!r} are of {total} records, it has {rows}")
