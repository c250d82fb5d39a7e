"""Lazy sources: footers and catalogs instead of rows, at any size."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from functools import cache
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from qa_train.config import DataConfig, SourceConfig, StorageConfig
from qa_train.data.batches import open_data
from qa_train.data.order.batch_plan import Plan
from qa_train.data.shards import catalog
from qa_train.data.shards.catalog import make_table, open_shards, write_catalog
from qa_train.data.shards.process_cache import KEPT
from qa_train.data.shards.sidecar import SCHEMA, SUFFIX, Summary, load_summary
from qa_train.data.source import Source
from qa_train.data.text.prompts import PromptBank
from tests.data.conftest import mixture, speech_record, write_shards


@cache
def columns_of_every_shard() -> dict[str, Any]:
    """1000 rows but for their keys."""
    known: dict[str, list[Any]] = {
        "num_samples": [[16_000 + 160 * (i % 100)] for i in range(1000)],
        "duration_s": [1 + (i % 100) / 100 for i in range(1000)],
        "meta": [json.dumps({"text": "hello", "language": ("en", "fr")[i % 2]}) for i in range(1000)],
    }
    return {name: pyarrow.array(values, SCHEMA.field(name).type) for name, values in known.items()}


def rows(number: int, columns: Sequence[str]) -> pyarrow.Table:
    """Rows of a shard that exists nowhere."""
    known = {**columns_of_every_shard(), "key": [f"{number}-{i}" for i in range(1000)]}
    schema = pyarrow.schema([SCHEMA.field(name) for name in columns])
    return pyarrow.Table.from_pydict({name: known[name] for name in columns}, schema=schema)


def huge(tokenizer: Any, shards: int, **options: Any) -> tuple[Source, list[int]]:
    """A source of that many shards of 1000 rows, and the numbers of the shards whose rows were read."""
    half = {"en": (500, 747.5), "fr": (500, 747.5)}
    listed = ((f"{n}.tar", Summary(1000, 1495.0, str(n), {"language": half})) for n in range(shards))
    cfg = SourceConfig(name="huge", shards=["x"], task="asr", **options)
    table = make_table(listed, cfg.where)
    read: list[int] = []

    def load(path: str, fingerprint: str, columns: Sequence[str]) -> pyarrow.Table:
        read.append(int(fingerprint))
        return rows(int(fingerprint), columns)

    table.load = load
    return Source("huge", cfg, DataConfig(), PromptBank.load(), tokenizer, seed=0, pairs=False, table=table), read


def test_opening_and_seeking_read_few_of_19000_shards(tokenizer: Any) -> None:
    """19 million samples here; scripts/benchmark_plan.py does it with 190 million and measures time and memory."""
    source, read = huge(tokenizer, 19_000, where={"language": "fr"})
    assert read == []
    options = {"seed": 0, "tokens_per_batch": 3000, "batches_per_step": 2, "shuffle_window": 400}
    plan = Plan([source], **options)
    state = list(plan.seek_hint(0))
    assert len(read) <= 17
    # Anywhere in the epoch: window, its first batch, the batch, and the position of the source.
    state[0], state[1], state[2], state[9] = 20_000, 400_000, 400_000, 9_500_123
    read.clear()
    plan = Plan([source], **options)
    plan.seek(*state)
    batch = plan.batch(400_000)
    assert len(set(read)) <= 34
    assert {source.record(ref.row)["language"] for ref in batch} == {"fr"}
    # The first screen extrapolates.
    assert source.eligible.overview.exact is False
    assert source.eligible.overview.samples == pytest.approx(9_500_000, rel=0.01)
    assert KEPT.bytes <= KEPT.most_bytes


def test_max_samples_is_spread_over_the_shards_and_fixed(tokenizer: Any) -> None:
    source, _ = huge(tokenizer, 6, max_samples=100)
    assert source.quotas is not None
    assert source.quotas.max() <= 17
    chosen = list(source.rows())
    assert len(chosen) == source.eligible.counts.samples == 100
    plan = Plan([source], seed=1, tokens_per_batch=3000, batches_per_step=2, shuffle_window=100)
    for epoch in (0, 1):
        refs = [ref for batch in plan.window(epoch).batches for ref in batch]
        assert sorted(ref.row for ref in refs) == chosen
        assert {ref.epoch for ref in refs} == {epoch}


def test_shards_without_a_match_are_never_read(tokenizer: Any, shards: dict[str, str]) -> None:
    table = open_shards([shards["speech"]], {"language": "fr"})
    assert table.matching.tolist() == [0, 0, 0]
    assert open_shards([shards["speech"]], {"language": "es", "split": ["train", "dev"]}).matching.sum() == 30
    source = SourceConfig(name="s", shards=[shards["speech"]], task="asr", where={"language": "fr"})
    cfg = DataConfig(sources={"s": source})
    with pytest.raises(ValueError, match=r"'filtered by where': 90"):
        open_data(cfg, tokenizer, 80, seed=0, batches_per_step=1)


def test_a_catalog_opens_the_same_data(tokenizer: Any, shards: dict[str, str], tmp_path: Path) -> None:
    plain = open_data(mixture(shards), tokenizer, 80, seed=3, batches_per_step=4)
    catalogs = {name: str(tmp_path / f"{name}.catalog.parquet") for name in shards}
    for name, path in catalogs.items():
        assert write_catalog([shards[name]], path) == {"speech": 3, "sound": 1}[name]
    listed = open_data(mixture(catalogs), tokenizer, 80, seed=3, batches_per_step=4)
    assert listed.fingerprint == plain.fingerprint
    assert listed.table() == plain.table()
    assert listed.build(3)["input_ids"].equal(plain.build(3)["input_ids"])
    with pytest.raises(ValueError, match=r"must end in \.catalog\.parquet"):
        write_catalog([shards["speech"]], tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="does not exist; make it with"):
        open_shards([str(tmp_path / "none.catalog.parquet")])


def test_sources_of_the_same_shards_read_their_indexes_once(
    tokenizer: Any, shards: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(catalog, "load_summary", lambda path, cfg=None: read.append(path) or load_summary(path, cfg))
    data = open_data(mixture(shards), tokenizer, 80, seed=3, batches_per_step=4)
    asr, st, _ = data.sources
    assert asr.shards == st.shards
    assert sorted(read) == sorted(asr.shards + data.sources[2].shards)


def test_a_catalog_grows(shards: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only new shards are read; lines of shards that are not named stay."""
    path = tmp_path / "all.catalog.parquet"
    first, second, third = sorted(glob(shards["speech"]))
    assert write_catalog([first, second], path, append=True) == 2
    read: list[str] = []
    monkeypatch.setattr(catalog, "load_summary", lambda path, cfg=None: read.append(path) or load_summary(path, cfg))
    assert write_catalog([third, second], path, append=True) == 3
    assert write_catalog([shards["speech"]], path, append=True) == 3
    assert read == [third]
    grown, whole = open_shards([path]), open_shards([shards["speech"]])
    assert grown.fingerprints == whole.fingerprints
    assert grown.rows.tolist() == whole.rows.tolist()
    assert grown.problems == whole.problems


def test_a_shard_indexed_anew_is_noticed(tokenizer: Any, shards: dict[str, str]) -> None:
    data = open_data(mixture(shards), tokenizer, 80, seed=3, batches_per_step=4)
    source = data.sources[0]
    source.table.fingerprints[0] = "other"
    with pytest.raises(ValueError, match="rewritten since"):
        list(source.rows())


def test_indexes_without_a_summary_open_as_well(shards: dict[str, str], tmp_path: Path) -> None:
    """Those of earlier versions: the same summary, from their rows."""
    path = shards["speech"].replace("*", "000")
    summary = load_summary(path)
    table = pyarrow.parquet.read_table(path + SUFFIX)
    footer = {k: v for k, v in table.schema.metadata.items() if k != b"summary"}
    (tmp_path / "a.tar").write_bytes(Path(path).read_bytes())
    pyarrow.parquet.write_table(table.replace_schema_metadata(footer), tmp_path / f"a.tar{SUFFIX}")
    assert load_summary(str(tmp_path / "a.tar")) == summary
    assert summary.rows == 30
    assert summary.values["split"] == {"train": (30, pytest.approx(summary.seconds))} or summary.values["split"] == {
        "train": [30, pytest.approx(summary.seconds, abs=0.02)]
    }


def test_sources_are_weighted_by_hours_and_records(tokenizer: Any, shards: dict[str, str]) -> None:
    for by in ("temperature", "epochs"):
        cfg = mixture(shards)
        cfg.mixture.by = by
        for source in cfg.sources.values():
            source.weight = 1
        data = open_data(cfg, tokenizer, 80, seed=3, batches_per_step=4)
        weights = {s.name: s.weight for s in data.sources}
        hours = [source.eligible.counts.seconds for source in data.sources]
        wanted = 20 / 90 if by == "epochs" else hours[2] / hours[0]
        assert weights["sounds"] / weights["asr"] == pytest.approx(wanted, rel=1e-3)


def test_loaded_rows_are_plain_numbers(tokenizer: Any) -> None:
    source, _ = huge(tokenizer, 3)
    lengths = source.lengths(np.asarray([0, 1, 1500, 2999]), 0)
    assert lengths.tokens.dtype == np.int64
    assert (lengths.audio == [sum(source.clip_tokens(row)) for row in (0, 1, 1500, 2999)]).all()
    assert lengths.tokens.tolist() == [source.lengths(np.asarray([row]), 0).tokens[0] for row in (0, 1, 1500, 2999)]


@pytest.mark.parametrize("wait_s", [0.0, 0.02])
def test_indexes_are_read_by_threads_where_reading_is_waiting(
    wait_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = set()
    read = catalog.load_summary

    def slow(path: str, cfg: StorageConfig | None = None) -> Any:
        used.add(threading.get_ident())
        time.sleep(wait_s)
        return read(path, cfg)

    shards = write_shards(tmp_path, "a", 40, 1, speech_record)
    expected = open_shards([shards])
    monkeypatch.setattr(catalog, "load_summary", slow)
    monkeypatch.setattr(catalog, "_TRIED", 4)
    found = open_shards([shards])
    assert (found.paths, found.fingerprints) == (expected.paths, expected.fingerprints)
    assert len(found.paths) == 40
    # A busy machine waits, too.
    assert (len(used) > 2) if wait_s else (threading.get_ident() in used)
