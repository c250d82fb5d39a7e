"""Whether two sets of shards hold the same recordings, by the checksums in their indexes; no audio is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qa_train.data.shards.catalog import ShardTable

_THREADS = 16


def same_recordings(
    held_out: ShardTable, held_out_where: Mapping[str, Any], trained: ShardTable, trained_where: Mapping[str, Any]
) -> list[str]:
    """Keys of the records of ``held_out`` a clip of which is in a record of ``trained``, both after their ``where``.

    Clips are the same when their bytes are: a copy of a shard, or a recording imported twice by one reader. One that
    was encoded again is not found here (``qa_train.eval.contamination`` compares sounds).
    """
    wanted = np.unique(np.concatenate([*_each(held_out, _marks), np.zeros(0, np.uint64)]))
    common = [np.zeros(0, np.uint64)]
    for shard, marks in enumerate(_each(trained, _marks)):
        met = np.isin(marks, wanted)
        if met.any():
            common.append(_kept(trained, shard, marks, met, trained_where)[1])
    found = np.unique(np.concatenate(common))
    keys: list[str] = []
    for shard, marks in enumerate(_each(held_out, _marks) if len(found) else []):
        met = np.isin(marks, found)
        if met.any():
            keys += _kept(held_out, shard, marks, met, held_out_where)[0]
    return keys


def _each(table: ShardTable, read: Any) -> Any:
    """``read(table, shard)`` of every shard, in order, by several threads."""
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(lambda shard: read(table, shard), range(len(table)))


def _marks(table: ShardTable, shard: int) -> NDArray[np.uint64]:
    """Size and checksum of every clip of a shard, as one number [clips]."""
    columns = table.read(shard, ("sizes", "crc32c"))
    sizes, sums = (columns[name].combine_chunks().flatten().to_numpy() for name in ("sizes", "crc32c"))
    marks: NDArray[np.uint64] = (sizes.astype(np.uint64) << np.uint64(32)) | sums.astype(np.uint64)
    return marks


def _kept(
    table: ShardTable, shard: int, marks: NDArray[np.uint64], met: NDArray[np.bool_], where: Mapping[str, Any]
) -> tuple[list[str], NDArray[np.uint64]]:
    """Keys and marks of the records of a shard of which a clip was ``met``, and that pass ``where``."""
    columns = table.read(shard, ("key", "meta", "sizes"))
    owner = np.repeat(np.arange(len(columns)), [len(sizes) for sizes in columns["sizes"].to_pylist()])
    rows = np.unique(owner[met])
    some = columns.take(rows)
    records = zip(rows.tolist(), some["key"].to_pylist(), some["meta"].to_pylist(), strict=True)
    passed = {row: key for row, key, meta in records if _passes(json.loads(meta), where)}
    return list(passed.values()), marks[met & np.isin(owner, list(passed))]


def _passes(record: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    return all(record.get(name) in (wanted if isinstance(wanted, list) else [wanted]) for name, wanted in where.items())
