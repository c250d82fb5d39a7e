"""Reading and writing the sidecar of a shard, ``X.tar.index.parquet``: one row per record (see ``index``).

The rows hold: key; for each clip its member name, offset, size, CRC32C, samples at 16 kHz and
sample rate; the record's JSON. The footer holds the shard's size, a fingerprint, skipped records and a summary, so that
a corpus opens without reading rows.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow
import pyarrow.parquet

from qa_train.config import StorageConfig
from qa_train.data.shards import gate
from qa_train.data.stores import storage
from qa_train.data.stores.folders import writable, written
from qa_train.data.stores.remote import RemoteError
from qa_train.utils.masking import name_of
from qa_train.utils.progress import duration

SUFFIX = ".index.parquet"
# Reasons of skips that are not faults: members that are not audio, JSON or text (no key), and records that `data clean`
# removed.
IGNORED, CLEANED = "ignored", "taken out by data clean"
FORMAT = 1
# Fields of the records with at most so many different short texts are counted in the footer.
_SUMMARY_VALUES = 64
_SUMMARY_VALUE_LENGTH = 64
SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        ("names", pyarrow.list_(pyarrow.string())),
        ("offsets", pyarrow.list_(pyarrow.int64())),
        ("sizes", pyarrow.list_(pyarrow.int64())),
        ("crc32c", pyarrow.list_(pyarrow.uint32())),
        ("num_samples", pyarrow.list_(pyarrow.int64())),
        ("sample_rates", pyarrow.list_(pyarrow.int32())),
        ("duration_s", pyarrow.float64()),
        ("meta", pyarrow.string()),
    ]
)


@dataclass(frozen=True)
class Problem:
    """A record that the index skips, and why."""

    key: str
    offset: int
    reason: str
    detail: str

    def __str__(self) -> str:
        if self.reason == IGNORED and not self.key:
            return f"ignored {self.detail}"
        return f"skipped {self.key or '-'} at byte {self.offset}: {self.reason}, {self.detail}"


@dataclass(repr=False)
class ShardIndex:
    """The index of one shard in memory."""

    path: str
    table: pyarrow.Table
    shard_size: int
    fingerprint: str
    problems: list[Problem] = field(default_factory=list)
    # The layout of a file that is no tar of KEY.flac and KEY.json, as "nemo": its records are where the index has them.
    origin: str = ""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        audio = duration(sum(self.table["duration_s"].to_pylist()))
        out = skipped(self.problems)
        left = "; skipped: " + ", ".join(f"{n} {reason}" for reason, n in out.items()) if out else ""
        return f"{self.path}: {len(self)} records, {audio}{left}"


@dataclass(frozen=True)
class Summary:
    """The footer of a shard's index, without its rows.

    ``values`` counts records and seconds of audio by value of each text field of the records; None stands for a field
    with too many values, or values that are not texts. ``problems`` counts skipped records, by reason.
    """

    rows: int
    seconds: float
    fingerprint: str
    values: dict[str, dict[str, tuple[int, float]] | None]
    problems: Counter[str] = field(default_factory=Counter)
    first_problem: Problem | None = None


def load_index(path: str, cfg: StorageConfig | None = None) -> ShardIndex:
    """Read the index of a shard and check that the shard has not changed since. ``cfg``: how remote ones are read, here
    and below.
    """
    with _sidecar(path, cfg) as (read, footer):
        table = read(SCHEMA.names)
        gate.check_records(table)
        problems = _problems(footer)
    size = _check_size(path, int(footer["shard_size"]), cfg)
    table = table.replace_schema_metadata(footer)
    return ShardIndex(path, table, size, footer["fingerprint"], problems, footer.get("origin", ""))


def origin_of(path: str, cfg: StorageConfig | None = None) -> str:
    """The layout of a file that was indexed in place; "" for our own shards, and without an index of this very file."""
    try:
        with _sidecar(path, cfg) as (_, footer):
            origin = footer.get("origin", "")
        return origin if origin and storage.size_of(path, cfg) == int(footer["shard_size"]) else ""
    except RemoteError:
        # Nothing is known of the index of a server that does not answer.
        raise
    except (ValueError, OSError):
        return ""


def load_summary(path: str, cfg: StorageConfig | None = None, place: str = "") -> Summary:
    """The summary of a shard, from its index's footer alone; checks that the shard has not changed since. ``place``: of
    an index that is not next to its shard.
    """
    with _sidecar(path, cfg, place) as (read, footer):
        if "summary" in footer:
            said = gate.parsed(footer["summary"], dict, "sums")
        else:
            # Indexes written by earlier versions hold none.
            table = read(["num_samples", "duration_s", "meta"])
            gate.check_records(table)
            said = _summarize(table)
        rows, seconds, values = (said.get(name) for name in ("rows", "seconds", "values"))
        gate.check_sum(rows, seconds)
        if not isinstance(values, dict):
            raise gate.Refused("its sums have no counts by value")
        problems = _problems(footer)
    _check_size(path, int(footer["shard_size"]), cfg)
    bad = [problem for problem in problems if problem.reason != IGNORED]
    counts = skipped(problems)
    first = bad[0] if bad else None
    return Summary(rows, seconds, footer["fingerprint"], values, counts, first)


def skipped(problems: Iterable[Problem]) -> Counter[str]:
    """Records that an index skips, by reason; members of other types are not records."""
    reasons = ((problem.key, problem.reason) for problem in problems)
    return Counter(CLEANED if reason == IGNORED else reason for key, reason in reasons if key or reason != IGNORED)


def load_rows(path: str, fingerprint: str, columns: Sequence[str], cfg: StorageConfig | None = None) -> pyarrow.Table:
    """Some columns of an index; ValueError when it is not the one that was planned with.

    The shard itself is not looked at: every clip is checked against the index when it is read.
    """
    with _sidecar(path, cfg) as (read, footer):
        if footer["fingerprint"] != fingerprint:
            raise ValueError(
                f"the index of {path} was rewritten since the data were opened or their catalog was written: "
                "restore the shard, or make the catalog again with qa-train data catalog"
            )
        table = read(columns)
    return table.replace_schema_metadata(None)


def _problems(footer: dict[str, str]) -> list[Problem]:
    return [Problem(**gate.check_problem(entry)) for entry in gate.parsed(footer["problems"], list, "problems")]


@contextlib.contextmanager
def _sidecar(
    path: str, cfg: StorageConfig | None, place: str = ""
) -> Iterator[tuple[Callable[..., pyarrow.Table], dict[str, str]]]:
    """The index of a shard: reads columns of it, checked (``gate``), while it is open; and its footer."""
    side = place or storage.beside(path, SUFFIX)
    try:
        with storage.open_binary(side, cfg) as handle, gate.named(side, _remedy(path)):
            # Nothing is read ahead, and nothing by Arrow's threads: they hold the Python file a moment longer than the
            # read takes, and one that releases it while the interpreter ends aborts the process ("terminate called
            # without an active exception", apache/arrow#34314 and #33975).
            file = pyarrow.parquet.ParquetFile(handle, pre_buffer=False)
            footer = gate.footer_of(file, SCHEMA)
            if footer.get("format") != str(FORMAT) or not {"problems", "fingerprint"} <= set(footer):
                raise gate.Refused("it is of another format")
            if not footer.get("shard_size", "").isdecimal() or len(footer["shard_size"]) > 16:
                raise gate.Refused(f"its shard has {footer.get('shard_size')!r} bytes; expected a number")
            if not re.fullmatch(r"[\w-]{0,64}", footer.get("origin", "")):
                raise gate.Refused(f"it is of the layout {footer['origin'][:80]!r}; expected a name")

            def read(columns: Sequence[str]) -> pyarrow.Table:
                table = gate.read_columns(handle, file, columns)
                gate.check_rows(table, int(footer["shard_size"]))
                return table

            yield read, footer
    except FileNotFoundError as error:
        if not storage.exists(path, cfg):
            raise ValueError(f"{path} and its index do not exist: check the path of the shard") from error
        raise ValueError(f"{path} has no index; {_remedy(path)}") from error


def _remedy(path: str) -> str:
    if writable(path):
        return f"run: qa-train data index {path}"
    return f"run: qa-train data index {path} out=DIR, and put {name_of(path)}{SUFFIX} of DIR next to the shard"


def _check_size(path: str, expected: int, cfg: StorageConfig | None) -> int:
    try:
        size = storage.size_of(path, cfg)
    except FileNotFoundError as error:
        raise ValueError(f"{storage.beside(path, SUFFIX)} exists, but its shard {path} does not") from error
    if size != expected:
        raise ValueError(
            f"{path} has {size} bytes, its index was made for {expected}: the shard was changed or cut. "
            f"Restore it, or {_remedy(path)}"
        )
    return size


def _summarize(table: pyarrow.Table) -> dict[str, Any]:
    """Records, seconds, and both by value of every text field with at most ``_SUMMARY_VALUES`` values."""
    values: dict[str, dict[str, list[float]] | None] = {}
    durations = table["duration_s"].to_pylist()
    for meta, seconds in zip(table["meta"].to_pylist(), durations, strict=True):
        for name, value in json.loads(meta).items():
            counts = values.setdefault(name, {})
            if counts is None or value is None:
                continue
            if not isinstance(value, str) or len(value) > _SUMMARY_VALUE_LENGTH:
                values[name] = None
                continue
            entry = counts.setdefault(value, [0, 0.0])
            entry[0] += 1
            entry[1] = round(entry[1] + seconds, 3)
            if len(counts) > _SUMMARY_VALUES:
                values[name] = None
    return {"rows": table.num_rows, "seconds": round(sum(durations), 3), "values": values}


def write_index(index: ShardIndex, place: str = "", cfg: StorageConfig | None = None) -> None:
    """Write the sidecar whole or not at all, next to the shard or at ``place``; ``cfg``: how a store is written to.

    Raises:
        ValueError: nothing can be written there.
    """
    footer = {
        "format": str(FORMAT),
        "shard_size": str(index.shard_size),
        "fingerprint": index.fingerprint,
        "problems": json.dumps([vars(p) for p in index.problems], ensure_ascii=False),
        "summary": json.dumps(_summarize(index.table), ensure_ascii=False),
    }
    if index.origin:
        footer["origin"] = index.origin
    table = index.table.replace_schema_metadata(footer)
    with written(place or storage.beside(index.path, SUFFIX), cfg) as part:
        pyarrow.parquet.write_table(table, part, compression="zstd")
