"""Indexes and catalogs that somebody else wrote: refused in one line, before memory is taken for what they state."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.audio import waveform
from qa_train.data.batches import open_data
from qa_train.data.shards.catalog import open_shards, write_catalog, write_lines
from qa_train.data.shards.index import scan
from qa_train.data.shards.row_reader import CLIP_COLUMNS, PLAN_COLUMNS
from qa_train.data.shards.sidecar import SCHEMA, SUFFIX, Summary, load_index, load_rows
from qa_train.data.shards.tar import DamagedShard, members
from tests.data.conftest import speech_record, write_shards
from tests.data.hostile import encoded, pax, pax_record, tar

NAN, INFINITE = float("nan"), float("inf")
LONG = json.dumps({"text": "a" * (5 << 20)})


def deep(levels: int) -> str:
    return '{"x": ' + "[" * levels + "]" * levels + "}"


# (column, value of the third row): what no scan of a shard writes.
CELLS: list[tuple[str, Any]] = [
    *((name, None) for name in SCHEMA.names),
    *((name, [None]) for name in ("names", "offsets", "sizes", "crc32c", "num_samples", "sample_rates")),
    *((name, []) for name in ("names", "offsets", "sizes", "crc32c", "num_samples", "sample_rates")),
    ("names", ["flac", "wav"]), ("names", ["../x.flac"]), ("names", ["\x1b[2Jflac"]), ("names", ["x" * 5000]),
    ("key", "../../etc/cron.d/x"), ("key", "/etc/passwd"), ("key", "a\nb"), ("key", "k" * 5000), ("key", "a/../b"),
    ("offsets", [-1]), ("offsets", [2**62]), ("offsets", [2**63 - 1]), ("offsets", [10**9]),
    ("sizes", [0]), ("sizes", [-5]), ("sizes", [2**40]), ("sizes", [10**8]),
    ("num_samples", [0]), ("num_samples", [-16000]), ("num_samples", [2**62]), ("num_samples", [16000, 16000]),
    ("sample_rates", [0]), ("sample_rates", [-1]), ("sample_rates", [2**31 - 1]),
    ("duration_s", NAN), ("duration_s", INFINITE), ("duration_s", -INFINITE), ("duration_s", -1.0),
    ("duration_s", 1e300), ("duration_s", 0.0),
    ("meta", ""), ("meta", "null"), ("meta", "[1]"), ("meta", "3"), ("meta", '"text"'), ("meta", "{"), ("meta", "NaN"),
    ("meta", '{"text": NaN}'), ("meta", '{"text": 5}'), ("meta", '{"text": ["a"]}'), ("meta", '{"language": true}'),
    ("meta", '{"age": 1e999}'), ("meta", '{"x": -Infinity}'), ("meta", '{"text": "\\ud800"}'),
    ("meta", '{"text": "a\\u0000b"}'), ("meta", deep(100)), ("meta", deep(100_000)), ("meta", LONG),
    ("meta", '{"messages": [{"role": "user"}]}'), ("meta", '{"messages": 3}'), ("meta", '{"audios": "a.flac"}'),
    ("meta", '{"words": [{"word": "a", "start": 2, "end": 1}]}'), ("meta", '{"translation": ["a"]}'),
    ("meta", '{"chosen": "a"}'), ("meta", '{"x": ' + "9" * 5000 + "}"), ("meta", json.dumps({"text": "a" * 300_000})),
]  # fmt: skip

SUMS = {"rows": 12, "seconds": 5.0, "values": {}}
# (name of the footer's entry, its text; None: it is not there)
FOOTERS: list[tuple[str, str | None]] = [
    *((name, None) for name in ("format", "shard_size", "fingerprint", "problems")),
    ("format", "2"), ("format", ""), ("shard_size", "x"), ("shard_size", "-1"), ("shard_size", "1" * 5000),
    ("shard_size", "1e9"), ("shard_size", "0"), ("problems", ""), ("problems", "null"), ("problems", "{}"),
    ("problems", "[1]"),
    ("problems", "[[]]"), ("problems", '[{"key": "a"}]'), ("problems", "[" * 100_000),
    ("problems", '[{"key": 1, "offset": 0, "reason": "a", "detail": "b"}]'),
    ("problems", '[{"key": "a", "offset": true, "reason": "a", "detail": "b"}]'),
    ("problems", '[{"key": "a", "offset": 0, "reason": [], "detail": "b"}]'),
    ("problems", '[{"key": "a", "offset": 0, "reason": "a", "detail": "b", "more": 1}]'),
    ("summary", ""), ("summary", "null"), ("summary", "[]"), ("summary", "{}"), ("summary", "{" * 10),
    *(("summary", json.dumps({**SUMS, "rows": rows})) for rows in (None, "12", True, -1, 1e9, 10**12, 10**30, [12])),
    *(("summary", json.dumps({**SUMS, "seconds": s})) for s in (None, "5", NAN, INFINITE, -1.0, 1e300, {})),
    *(("summary", json.dumps({**SUMS, "values": v})) for v in (None, [], "x", 3)),
]  # fmt: skip

# Counts of the field that where= asks for.
COUNTS: list[Any] = [
    [], "x", 3, {"en": None}, {"en": 3}, {"en": [1]}, {"en": [1, 2, 3]}, {"en": ["a", 1]}, {"en": [1, "a"]},
    {"en": [-1, 1.0]}, {"en": [1, -1.0]}, {"en": [1, NAN]}, {"en": [10**9, 1.0]}, {"en": [1.5, 1.0]},
    {"en": [12, 1.0], "fr": [12, 1.0]}, {"en": {"0": 1, "1": 2}},
]  # fmt: skip


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    return good_shard(tmp_path_factory.mktemp("gate"))


def good_shard(folder: Path) -> str:
    return write_shards(folder, "good", 12, 12, speech_record).replace("*", "000")


def tampered(
    shard: str, folder: Path, column: str = "", value: Any = None, footer: tuple[str, str | None] | None = None
) -> str:
    """A copy of the shard whose index is good but for one cell, or one entry of its footer."""
    copy = folder / "x.tar"
    copy.write_bytes(Path(shard).read_bytes())
    table = pyarrow.parquet.read_table(shard + SUFFIX)
    if column:
        rows = table.to_pylist()
        rows[2][column] = value
        table = pyarrow.Table.from_pylist(rows, schema=table.schema)
    if footer is not None:
        entries = {**table.schema.metadata, footer[0].encode(): footer[1]}
        table = table.replace_schema_metadata({k: v for k, v in entries.items() if v is not None})
    pyarrow.parquet.write_table(table, f"{copy}{SUFFIX}")
    return str(copy)


def read_all(path: str, where: dict[str, Any] | None = None) -> None:
    """All that training and tools read of an index."""
    (table,) = (open_shards([path], where),)
    for columns in (PLAN_COLUMNS, CLIP_COLUMNS):
        table.read(0, columns)
    load_index(path)


def refused(read: Callable[[], Any]) -> str:
    """The message of a refusal, which is one line."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize(("column", "value"), CELLS, ids=lambda v: str(v)[:30])
def test_a_cell_that_no_scan_writes_is_refused(column: str, value: Any, shard: str, tmp_path: Path) -> None:
    path = tampered(shard, tmp_path, column, value)
    message = refused(lambda: read_all(path))
    assert f"{path}{SUFFIX}" in message
    assert "index" in message


@pytest.mark.parametrize(("entry", "text"), FOOTERS, ids=lambda v: str(v)[:30])
def test_a_footer_that_no_scan_writes_is_refused(entry: str, text: str | None, shard: str, tmp_path: Path) -> None:
    path = tampered(shard, tmp_path, footer=(entry, text))
    assert "qa-train data index" in refused(lambda: read_all(path))


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_counts_by_value_are_looked_at_where_they_are_used(counts: Any, shard: str, tmp_path: Path) -> None:
    said = json.dumps({**SUMS, "values": {"language": counts}})
    path = tampered(shard, tmp_path, footer=("summary", said))
    refused(lambda: open_shards([path], {"language": "en"}))
    write_catalog([path], tmp_path / "x.catalog.parquet")
    refused(lambda: open_shards([str(tmp_path / "x.catalog.parquet")], {"language": "en"}))
    assert len(open_shards([path])) == 1


@pytest.mark.parametrize("name", ["", "a\x1b[2J.tar", "a\nb.tar", "x.tar\0", "\x9b2J.tar"])
def test_a_catalog_names_shards_that_can_be_printed(name: str, tmp_path: Path) -> None:
    catalog = tmp_path / "x.catalog.parquet"
    write_lines([("good.tar", Summary(1, 1.0, "f", {})), (name, Summary(1, 1.0, "g", {}))], catalog)
    assert "path of its row 1 is empty or holds" in refused(lambda: open_shards([str(catalog)]))


@pytest.mark.parametrize("meta", [value for column, value in CELLS if column == "meta" and value is not None],
                         ids=lambda v: v[:30])  # fmt: skip
def test_training_refuses_the_records_as_the_tools_do(meta: str, shard: str, tmp_path: Path, tokenizer: Any) -> None:
    path = tampered(shard, tmp_path, "meta", meta)
    cfg = DataConfig(sources={"s": SourceConfig(name="s", shards=[path], task="asr")})
    assert path in refused(lambda: open_data(cfg, tokenizer, 80, seed=0, batches_per_step=1).sources[0].eligible.counts)


TYPES: list[tuple[str, pyarrow.DataType]] = [
    ("key", pyarrow.int64()), ("key", pyarrow.binary()), ("names", pyarrow.string()), ("offsets", pyarrow.int64()),
    ("offsets", pyarrow.list_(pyarrow.string())), ("sizes", pyarrow.list_(pyarrow.float64())),
    ("num_samples", pyarrow.list_(pyarrow.list_(pyarrow.int64()))), ("duration_s", pyarrow.string()),
    ("duration_s", pyarrow.int64()), ("meta", pyarrow.list_(pyarrow.string())), ("meta", pyarrow.binary()),
    ("meta", pyarrow.struct([("text", pyarrow.string())])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), TYPES, ids=str)
def test_madeof_other_types_are_refused(name: str, kind: pyarrow.DataType, shard: str, tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(shard + SUFFIX)
    place = table.schema.names.index(name)
    footer = table.schema.metadata
    table = table.set_column(place, pyarrow.field(name, kind), pyarrow.nulls(len(table), kind))
    (tmp_path / "x.tar").write_bytes(Path(shard).read_bytes())
    pyarrow.parquet.write_table(table.replace_schema_metadata(footer), tmp_path / f"x.tar{SUFFIX}")
    assert "another format" in refused(lambda: read_all(str(tmp_path / "x.tar")))


def bombs() -> Iterator[tuple[str, pyarrow.Table, dict[str, Any]]]:
    """(name, table without footer, options of the writer) of small files that ask for gigabytes."""
    few = pyarrow.Table.from_pylist(
        [{"key": "k", "names": ["flac"], "offsets": [512], "sizes": [9], "crc32c": [0], "num_samples": [16000],
          "sample_rates": [16000], "duration_s": 1.0, "meta": "{}"}], schema=SCHEMA
    )  # fmt: skip
    options = {"dictionary_pagesize_limit": 1 << 30, "data_page_size": 1 << 30, "compression": "zstd"}

    def same(rows: int, **columns: Any) -> pyarrow.Table:
        indices = pyarrow.array(np.zeros(rows, dtype=np.int32))
        table = few
        for name, value in columns.items():
            table = table.set_column(
                table.schema.names.index(name), SCHEMA.field(name), pyarrow.array([value], SCHEMA.field(name).type)
            )
        made = []
        for field in SCHEMA:
            column = table[field.name].combine_chunks()
            if field.type == pyarrow.string():
                made.append(pyarrow.DictionaryArray.from_arrays(indices, column))
            else:
                made.append(column.take(indices))
        return pyarrow.Table.from_arrays(made, names=SCHEMA.names)

    yield "meta of 1 MB, 20,000 times", same(20_000, meta=json.dumps({"text": "a" * (1 << 20)})), options
    yield "keys of 1 MB, 20,000 times", same(20_000, key="k" * (1 << 20)), options
    yield "600,000 rows", same(600_000), options
    names = pyarrow.Table.from_pylist([{**few.to_pylist()[0], "names": ["x"] * 2_000_000}], schema=SCHEMA)
    yield "a row of two million clips", names, options


@pytest.mark.parametrize(("name", "table", "options"), bombs(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_small_file_that_asks_for_gigabytes_is_refused(
    name: str, table: pyarrow.Table, options: dict[str, Any], shard: str, tmp_path: Path
) -> None:
    # With ARROW:schema, so that the types are those of an index.
    side = shard + SUFFIX
    footer = {**pyarrow.parquet.read_metadata(side).metadata, **pyarrow.parquet.read_schema(side).metadata}
    (tmp_path / "x.tar").write_bytes(Path(shard).read_bytes())
    made = tmp_path / f"x.tar{SUFFIX}"
    with pyarrow.parquet.ParquetWriter(made, table.schema, store_schema=False, **options) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(footer)
    del table
    assert made.stat().st_size < 20 << 20
    pool = pyarrow.default_memory_pool()
    before, started = pool.max_memory(), time.process_time()
    fingerprint = footer[b"fingerprint"].decode()
    for read in (
        lambda: load_rows(str(tmp_path / "x.tar"), fingerprint, SCHEMA.names),
        lambda: load_index(str(tmp_path / "x.tar")),
    ):
        assert re.search(r"unpacks to \d+ bytes|states .* (rows|values)", refused(read))
    assert pool.max_memory() - before < 300 << 20
    assert time.process_time() - started < 5


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_chain_of_extended_headers_is_refused(kind: bytes) -> None:
    record = pax_record(b"path", b"a.json") if kind in b"xg" else b"a.json"
    raw = pax(record, kind)[: -512 - 1024] * 20_000
    started = time.process_time()
    with pytest.raises(DamagedShard, match="more than 8 extended headers"):
        list(members(io.BytesIO(raw), "x.tar", len(raw)))
    assert time.process_time() - started < 2


@pytest.mark.parametrize("text", ["a" * 1_000_000, "a " * 300_000, "\x00", "漢" * 200_001])
def test_a_transcript_is_bounded_as_the_texts_of_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar(("a.flac", encoded("FLAC")), ("a.txt", text.encode())))
    index = scan(str(tmp_path / "x.tar"))
    assert (len(index), len(index.problems)) == (0, 1)


def test_a_clip_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the caller allows, and before its samples are decoded."""
    monkeypatch.setattr(waveform, "MAX_WHOLE_SAMPLES", 4000)
    with pytest.raises(waveform.BadAudio, match="longer than"):
        waveform.read_clip(encoded("FLAC"), max_duration_s=waveform.MAX_CLIP_S)
    monkeypatch.setattr(waveform, "MAX_WHOLE_SAMPLES", 4800)
    assert len(waveform.read_clip(encoded("FLAC"), max_duration_s=waveform.MAX_CLIP_S)) == 4800


@pytest.mark.parametrize(("rate", "channels"), [(192_000, 3), (192_000, 8), (96_000, 5), (96_000, 8), (64_000, 7)])
def test_rate_and_channels_together_are_bounded_by_every_reader(rate: int, channels: int) -> None:
    raw = encoded("FLAC", wave=np.zeros((4800, channels), np.float32), rate=rate)
    for read in (waveform.read_clip, waveform.read_header, waveform.decoded_length):
        with pytest.raises(waveform.BadAudio, match="384000 samples a second"):
            read(raw)
