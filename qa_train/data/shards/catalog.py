"""The shard table: a few numbers per shard, read without touching their rows.

They come from the footers of the sidecar indexes, read by several threads, or from one catalog
file (``NAME.catalog.parquet``, made by ``qa-train data catalog``) for corpora of many shards.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from qa_train.config import StorageConfig
from qa_train.data.order.epoch import Ints
from qa_train.data.shards import gate
from qa_train.data.shards.sidecar import Problem, Summary, load_rows, load_summary
from qa_train.data.stores import storage
from qa_train.utils.atomic import whole
from qa_train.utils.masking import masked, without_query

CATALOG_SUFFIX = ".catalog.parquet"
MAX_SHARDS = 10_000_000
_REMEDY = "make it again with qa-train data catalog"
_THREADS = 16
# Indexes that show how long one takes.
_TRIED = 16
_SCHEMA = pyarrow.schema(
    [
        ("path", pyarrow.string()),
        ("fingerprint", pyarrow.string()),
        ("rows", pyarrow.int64()),
        ("seconds", pyarrow.float64()),
        ("values", pyarrow.string()),
        ("problems", pyarrow.string()),
    ]
)


@dataclass
class ShardTable:
    """Shards in order: path, digest, records, audio in seconds, and the records and seconds that pass a ``where``.

    ``matching`` is exact for a ``where`` of one field with few values, else an upper bound. A shard with the same
    records as an earlier one is skipped and counted in ``copies``.
    """

    paths: list[str]
    fingerprints: list[str]
    rows: Ints
    seconds: NDArray[np.float64]
    matching: Ints
    matching_seconds: NDArray[np.float64]
    # Records skipped when indexing, by reason (without "ignored" members), and the first of them.
    problems: Counter[str] = field(default_factory=Counter)
    first_problem: tuple[str, Problem] | None = None
    copies: int = 0
    # Reads columns of a shard's rows: (path, fingerprint, columns) -> table.
    load: Callable[[str, str, Sequence[str]], pyarrow.Table] = load_rows

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, shard: int, columns: Sequence[str]) -> pyarrow.Table:
        """Some columns of one shard's rows; ValueError when its index changed since."""
        return self.load(self.paths[shard], self.fingerprints[shard], columns)


def open_shards(
    patterns: str | Path | Iterable[str | Path],
    where: Mapping[str, Any] | None = None,
    cfg: StorageConfig | None = None,
) -> ShardTable:
    """The table of all shards of paths, folders, globs, URLs and catalogs; ``cfg``: how remote ones are read. Raises
    ValueError when a shard has no index, or has changed since it was indexed.
    """
    return make_table(list_shards(patterns, cfg, values=bool(where)), where or {}, cfg)


def list_shards(
    patterns: str | Path | Iterable[str | Path], cfg: StorageConfig | None = None, *, values: bool = True
) -> list[tuple[str, Summary]]:
    """Paths and summaries of the shards of ``open_shards``; ``values=False``: not always with counts by value."""
    catalogs, others = _named(patterns)
    listed = [line for path in catalogs for line in read_catalog(path, cfg, values=values)]
    if others or not catalogs:
        paths = storage.expand(others, cfg)
        listed += zip(paths, _summaries(paths, cfg), strict=True)
    return listed


def shard_paths(patterns: Iterable[str | Path], cfg: StorageConfig | None = None) -> list[str]:
    """The distinct paths of the shards of ``open_shards``, whose indexes are not looked at. Raises ValueError when
    nothing is found, or as `read_catalog`.
    """
    catalogs, others = _named(patterns)
    found = [path for catalog in catalogs for path, _ in read_catalog(catalog, cfg, values=False)]
    return list(dict.fromkeys(found + (storage.expand(others, cfg) if others or not catalogs else [])))


def _named(patterns: str | Path | Iterable[str | Path]) -> tuple[list[str], list[str]]:
    """The catalogs of these names, and the others."""
    named = [str(patterns)] if isinstance(patterns, str | Path) else list(map(str, patterns))
    catalogs = [path for path in named if without_query(path).endswith(CATALOG_SUFFIX)]
    return catalogs, [path for path in named if path not in catalogs]


def make_table(
    listed: Iterable[tuple[str, Summary]], where: Mapping[str, Any], cfg: StorageConfig | None = None
) -> ShardTable:
    """The table of the given paths and summaries; ``cfg``: how remote ones are read."""
    none = np.zeros(0, dtype=np.int64)
    table = ShardTable([], [], none, np.zeros(0), none, np.zeros(0), load=partial(load_rows, cfg=cfg))
    numbers: list[tuple[int, float, int, float]] = []
    seen: set[str] = set()
    for path, summary in listed:
        table.problems.update(summary.problems)
        if table.first_problem is None and summary.first_problem is not None:
            table.first_problem = (path, summary.first_problem)
        if summary.fingerprint in seen and summary.rows:
            table.copies += summary.rows
            continue
        seen.add(summary.fingerprint)
        table.paths.append(path)
        table.fingerprints.append(summary.fingerprint)
        with gate.named(path, "index it again, or make its catalog again"):
            rows, seconds = matching(summary, where)
        numbers.append((summary.rows, summary.seconds, rows, seconds))
    columns = [np.asarray(column) for column in zip(*numbers, strict=True)]
    table.rows, table.seconds, table.matching, table.matching_seconds = columns
    return table


def matching(summary: Summary, where: Mapping[str, Any]) -> tuple[int, float]:
    """At most how many records of a shard pass ``where``, and their seconds of audio."""
    rows, seconds = summary.rows, summary.seconds
    for name, wanted in where.items():
        counts = summary.values.get(name, {})
        if counts is None:
            # Too many values, or no texts: not summarized.
            continue
        gate.check_counts(counts, name, summary.rows)
        allowed = wanted if isinstance(wanted, list) else [wanted]
        hits = [counts[value] for value in allowed if isinstance(value, str) and value in counts]
        if None in allowed:
            present = list(counts.values())
            hits.append((summary.rows - sum(n for n, _ in present), summary.seconds - sum(s for _, s in present)))
        rows = min(rows, sum(n for n, _ in hits))
        seconds = min(seconds, sum(s for _, s in hits))
    return rows, max(0.0, seconds)


def write_catalog(
    patterns: Iterable[str | Path], out: str | Path, cfg: StorageConfig | None = None, *, append: bool = False
) -> int:
    """Write the table of all shards into one file; returns the number of its shards. ``cfg``: how remote ones are read.

    Local shards are named relative to the catalog's folder, so that both can move together. ``append``: keep the lines
    of an existing catalog, and read the indexes of the shards that it lacks only.

    Raises:
        ValueError: a URL is signed or has a password, which must not be in a shared file.
    """
    paths = storage.expand(patterns, cfg)
    if secret := [path for path in paths if masked(path) != path]:
        raise ValueError(
            f"{masked(secret[0])}: a catalog would hold its signature; make the catalog of local copies, and upload "
            "it next to the shards: the query of its own URL then opens them too"
        )
    folder = Path(out).parent.resolve()

    def name(path: str) -> str:
        # A link stays one: its index is next to it, not next to the file.
        return path if "://" in path else os.path.relpath(Path(path).parent.resolve() / Path(path).name, folder)

    kept = {name(path): line for path, line in read_catalog(str(out), cfg)} if append and Path(out).exists() else {}
    new = [path for path in paths if name(path) not in kept]
    return write_lines([*kept.items(), *zip(map(name, new), _summaries(new, cfg), strict=True)], out)


def _summaries(paths: Sequence[str], cfg: StorageConfig | None) -> Iterator[Summary]:
    """What the indexes say, in order. Threads read them where the first ones show that reading is mostly waiting.

    On a local disk it is not, and threads that take turns in Python double the time.
    """
    read = partial(load_summary, cfg=cfg)
    started, worked = time.perf_counter(), time.thread_time()
    yield from [read(path) for path in paths[:_TRIED]]
    rest = paths[_TRIED:]
    if time.perf_counter() - started < 2 * (time.thread_time() - worked):
        yield from map(read, rest)
    elif rest:
        with ThreadPoolExecutor(_THREADS) as threads:
            yield from threads.map(read, rest)


def write_lines(listed: Iterable[tuple[str, Summary]], out: str | Path) -> int:
    """Write a catalog of shard names and summaries, whole or not at all; returns their number."""
    if not str(out).endswith(CATALOG_SUFFIX):
        raise ValueError(f"{out}: the name of a catalog must end in {CATALOG_SUFFIX}")
    rows = []
    for name, summary in listed:
        first = summary.first_problem
        problems = {"counts": dict(summary.problems), "first": vars(first) if first else None}
        rows.append(
            {
                "path": name,
                "fingerprint": summary.fingerprint,
                "rows": summary.rows,
                "seconds": summary.seconds,
                "values": json.dumps(summary.values, ensure_ascii=False),
                "problems": json.dumps(problems, ensure_ascii=False) if summary.problems else "",
            }
        )
    with whole(out) as part:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA), part, compression="zstd")
    return len(rows)


def read_catalog(path: str, cfg: StorageConfig | None = None, *, values: bool = True) -> Iterator[tuple[str, Summary]]:
    """Paths and summaries of a catalog; the shards themselves are checked when their rows are read.

    ``values=False`` skips the counts by value, most of the work with many shards.
    """
    try:
        with storage.open_binary(path, cfg) as handle, gate.named(path, _REMEDY):
            # On this thread alone, as the sidecars (qa_train.data.shards.sidecar).
            file = pyarrow.parquet.ParquetFile(handle, pre_buffer=False)
            gate.footer_of(file, _SCHEMA, MAX_SHARDS)
            table = gate.read_columns(handle, file, _SCHEMA.names, MAX_SHARDS)
            gate.check_texts(table)
            gate.check_paths(table["path"])
            paths = table["path"].to_pylist()
            gate.check_sums(table["rows"].to_numpy(), table["seconds"].to_numpy(), paths)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; make it with: qa-train data catalog {path} SHARDS") from error
    place = without_query(path)
    folder, query = place.rpartition("/")[0], path[len(place) :]
    for batch in table.to_batches(max_chunksize=1024):
        columns = [batch[name].to_pylist() for name in _SCHEMA.names]
        for name, fingerprint, rows, seconds, counts, problems in zip(*columns, strict=True):
            if "://" not in name and not name.startswith("/"):
                name = f"{folder}/{name}{query}" if folder else name
            with gate.named(path, _REMEDY):
                left, first = _problems(problems)
                by_value = gate.parsed(counts, dict, "counts by value") if values else {}
            yield name, Summary(rows, seconds, fingerprint, by_value, left, first)


def _problems(text: str) -> tuple[Counter[str], Problem | None]:
    """Counts of records that a shard's index skips, by reason, and the first of them."""
    found = gate.parsed(text, dict, "problems") if text else {}
    counts, first = found.get("counts", {}), found.get("first")
    if not isinstance(counts, dict) or not all(type(n) is int and n >= 0 for n in counts.values()):
        raise gate.Refused(f"its problems are counted as {str(counts)[:80]!r}; expected numbers by reason")
    return Counter(counts), Problem(**gate.check_problem(first)) if first else None
