"""Read complete shards again, and report every fault with its shard, key and byte offset."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.config import StorageConfig
from qa_train.data.shards.index import SUFFIX, ShardIndex, load_index, scan
from qa_train.data.shards.sidecar import IGNORED
from qa_train.data.stores.storage import beside, exists
from qa_train.jobs.executor import HERE, Engine, each
from qa_train.utils import draws
from qa_train.utils.atomic import json_text
from qa_train.utils.progress import counted, duration

Digests = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong; ``offset`` is the byte in the shard where the member or the damage starts."""

    shard: str
    key: str
    offset: int
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.key or '-'} at byte {self.offset}: {self.reason}: {self.detail}"


@dataclass
class ShardReport:
    """The result for one shard; ``contents`` are digests of key and content of each record."""

    path: str
    records: int
    seconds: float
    indexed: bool
    ignored: int
    faults: list[Fault]
    contents: Digests


@dataclass
class Summary:
    """Totals over all shards."""

    shards: int = 0
    records: int = 0
    seconds: float = 0.0
    without_index: int = 0
    # Shards that hold members of other types.
    ignored: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def faults(self) -> int:
        """How many faults were found."""
        return sum(self.reasons.values())

    def __str__(self) -> str:
        found = ", ".join(f"{n} {reason}" for reason, n in self.reasons.most_common()) or "none"
        text = f"{counted(self.shards, 'shard')}, {counted(self.records, 'intact record')}, {duration(self.seconds)}"
        text += f"; faults: {found}"
        if self.ignored:
            text += f"; members that are not audio, JSON or text were ignored in {self.ignored} shards"
        if self.without_index:
            text += f"; {self.without_index} shards have no index, so their checksums could not be compared"
        return text


def validate(
    paths: Sequence[str],
    show: Callable[[Fault], object],
    *,
    decode: bool = True,
    engine: Engine = HERE,
    report: str | Path | None = None,
    storage: StorageConfig | None = None,
) -> Summary:
    """Check tar structure, JSON, audio (decoded to the end when ``decode``), checksums against the index, and
    records that occur twice over all shards. ``show`` gets each fault as it is found; ``report`` is a JSONL
    file of them, ``storage``: how remote shards are read."""
    summary = Summary()
    contents: list[Digests] = []
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(Path(report).open("w", encoding="utf-8")) if report is not None else None
        for fault in _faults(paths, decode, engine, summary, contents, storage):
            summary.reasons[fault.reason] += 1
            show(fault)
            if file is not None:
                file.write(json_text(asdict(fault)) + "\n")
    return summary


def validate_shard(path: str, decode: bool = True, storage: StorageConfig | None = None) -> ShardReport:
    """Read one shard whole and compare it with its index, when it has one."""
    try:
        fresh = scan(path, decode=decode, keep_damaged=True, cfg=storage)
        indexed = exists(beside(path, SUFFIX), storage)
    except (OSError, ValueError) as error:
        return _unread(path, str(error))
    problems = [p for p in fresh.problems if p.reason != IGNORED]
    faults = [Fault(path, p.key, p.offset, p.reason, p.detail) for p in problems]
    if indexed:
        faults += _against_index(path, fresh, storage)
    seconds = float(sum(fresh.table["duration_s"].to_pylist()))
    ignored = len(fresh.problems) - len(problems)
    return ShardReport(path, len(fresh), seconds, indexed, ignored, faults, _contents(fresh))


def _unread(path: str, why: str) -> ShardReport:
    fault = Fault(path, "", 0, "unreadable", why)
    return ShardReport(path, 0, 0.0, False, 0, [fault], np.empty(0, np.uint64))


def _faults(
    paths: Sequence[str], decode: bool, engine: Engine, summary: Summary, contents: list[Digests],
    storage: StorageConfig | None,
) -> Iterator[Fault]:  # fmt: skip
    for report in each(validate_shard, paths, decode, storage, engine=engine, what="validate", died=_unread):
        summary.shards += 1
        summary.records += report.records
        summary.seconds += report.seconds
        summary.without_index += not report.indexed
        summary.ignored += bool(report.ignored)
        contents.append(report.contents)
        yield from report.faults
    yield from _repeated(paths, contents, storage)


def _against_index(path: str, fresh: ShardIndex, storage: StorageConfig | None) -> Iterator[Fault]:
    """Records that differ from the index, or no longer exist."""
    try:
        known = load_index(path, storage)
    except (ValueError, OSError) as error:
        reason = "stale index" if isinstance(error, ValueError) else "unreadable index"
        yield Fault(path, "", 0, reason, str(error))
        return
    if known.fingerprint == fresh.fingerprint:
        return
    rows = {row["key"]: row for row in fresh.table.to_pylist()}
    reported = {problem.key for problem in fresh.problems}
    for row in known.table.to_pylist():
        offset = int(row["offsets"][0]) if row["offsets"] else 0
        found = rows.get(row["key"])
        if found is None:
            if row["key"] not in reported:
                yield Fault(path, row["key"], offset, "missing record", "the index lists it, the shard lacks it")
            continue
        changed = [name for name in ("crc32c", "meta", "offsets", "sizes", "num_samples") if found[name] != row[name]]
        if changed:
            what = f"{', '.join(changed)} differ from the index: the shard was damaged or replaced after indexing"
            yield Fault(path, row["key"], offset, "checksum", what)


def _contents(index: ShardIndex) -> Digests:
    """Eight bytes for each record's key and content: enough to find repeats, little to keep."""
    rows = zip(*(index.table[name].to_pylist() for name in ("key", "crc32c", "meta")), strict=True)
    digests = [draws.digest(row) for row in rows]
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def _repeated(paths: Sequence[str], contents: list[Digests], storage: StorageConfig | None) -> Iterator[Fault]:
    """Records with the key, audio and JSON of an earlier one. (Equal keys alone are usual in other people's shards.)"""
    everything = np.concatenate([np.empty(0, np.uint64), *contents])
    values, counts = np.unique(everything, return_counts=True)
    twice = set(values[counts > 1].tolist())
    first: dict[int, str] = {}
    for path, digests in zip(paths, contents, strict=True):
        if twice.isdisjoint(digests.tolist()):
            continue
        table = scan(path, keep_damaged=True, cfg=storage).table
        for row, digest in zip(table.to_pylist(), _contents_of(table, path), strict=True):
            if digest not in twice:
                continue
            if digest not in first:
                first[digest] = f"{path}: {row['key']}"
                continue
            offset = int(row["offsets"][0]) if row["offsets"] else 0
            yield Fault(path, row["key"], offset, "duplicate record", f"the same record as {first[digest]}")


def _contents_of(table: Any, path: str) -> list[int]:
    return [int(v) for v in _contents(ShardIndex(path, table, 0, ""))]
