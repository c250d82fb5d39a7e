"""Indexes of shards in stores and on servers: each is read once, through faults, and its index is that of the disk."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.catalogue import corpus_of
from qa_train.cli import main
from qa_train.config import CleanConfig, StorageConfig
from qa_train.data.shards.index import index_shard, load_index, scan
from qa_train.data.stores import read_through
from qa_train.data.stores.read_through import ReadThrough
from qa_train.data.stores.remote import RemoteError
from qa_train.data.tools.clean import clean
from tests.data.conftest import speech_record, write_shards
from tests.data.serving import Server, http_server, s3_server

TABLE = Path(__file__).parents[1] / "data_pipelines/corpora/sets/huggingface/data/train-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed") / "served"
    folder.mkdir()
    write_shards(folder, "speech", 40, 20, speech_record)
    return folder


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[Server]:
    bare = tmp_path / "bare"
    bare.mkdir()
    for tar in folder.glob("*.tar"):
        shutil.copy(tar, bare)
    with http_server(bare) as found:
        yield found


@pytest.fixture
def s3(folder: Path, tmp_path: Path) -> Iterator[tuple[Server, Any, dict[str, Any]]]:
    """A server with the bare shards; its file system, and the options that open it."""
    with s3_server(tmp_path / "s3") as found:
        options = {"key": "key", "secret": "secret", "endpoint_url": found.url}
        fs: Any = fsspec.filesystem("s3", **options)
        fs.mkdir("bucket")
        for tar in folder.glob("*.tar"):
            fs.put_file(str(tar), f"bucket/set/{tar.name}")
        yield found, fs, options


def words(options: dict[str, Any]) -> list[str]:
    return [f"storage.options.s3.{name}={value}" for name, value in options.items()]


def run(*given: str) -> int:
    """The exit code of `qa-train data`."""
    with pytest.raises(SystemExit) as ended:
        main(["data", *given, "storage.first_wait_s=0.01"])
    return int(ended.value.code or 0)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def index_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.index.parquet")}


def test_every_block_is_read_once_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_through, "BLOCK_BYTES", 1000)
    raw, asked, draw = np.random.default_rng(0).bytes(50_500), list[int](), random.Random(0)

    def read(offset: int, size: int) -> bytes:
        asked.append(offset)
        return raw[offset : offset + size]

    through, at = ReadThrough(len(raw), read), 0
    while at < len(raw):
        # Forward, with steps back of less than a block, as a record's members are read after the next one's header.
        for place in (at, max(0, at - draw.randrange(900))):
            found = through(place, draw.randrange(1, 3000))
            assert found
            assert raw[place:].startswith(found)
            assert len(through._blocks) <= 4
        at += draw.randrange(1, 400)
    assert sorted(asked) == list(range(0, len(raw), 1000))


def test_a_shard_is_read_once_and_its_index_put_elsewhere(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(read_through, "BLOCK_BYTES", 64 << 10)
    urls = f"{server.url}/speech-{{000..001}}.tar"
    server.fail()
    assert run("index", urls) == 2
    assert "nothing can be written next to this shard: give out=DIR for its index" in said(capsys)
    assert server.requests == []
    server.fail("ok", "ok", "ok", "503", "ok", "cut")
    assert run("index", urls, f"out={tmp_path}/indexes") == 0
    assert index_bytes(tmp_path / "indexes") == index_bytes(folder)
    size = (folder / "speech-000.tar").stat().st_size
    asked = [line.split() for line in server.requests if "/speech-000.tar " in line]
    whole = sorted(int(each[1][6:].split("-")[0]) for each in asked if each[0] == "ok" and each[1] != "bytes=0-0")
    assert whole == list(range(0, size, 64 << 10))
    server.fail()
    assert run("index", urls, f"out={tmp_path}/indexes", "missing=true") == 0
    assert {line.split()[1] for line in server.requests} == {"bytes=0-0"}, "only sizes were asked for"
    # Two shards of one name.
    (server.folder / "more").mkdir()
    shutil.copy(server.folder / "speech-000.tar", server.folder / "more")
    assert run("index", urls, f"{server.url}/more/speech-000.tar", f"out={tmp_path}/indexes") == 2
    assert "2 of the shards would have the index" in said(capsys)


def test_a_shard_that_breaks_or_goes_away_gets_no_index(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = server.folder / "speech-000.tar"
    tar.write_bytes(tar.read_bytes()[:30_000])
    server.fail()
    urls = [f"{server.url}/speech-{{000..001}}.tar", f"{server.url}/none.tar"]
    assert run("index", *urls, f"out={tmp_path}") == 2
    assert {path.name for path in tmp_path.glob("*.parquet")} == {"speech-001.tar.index.parquet"}
    told = said(capsys)
    assert "/speech-000.tar: member" in told
    assert "none.tar: no such file" in told
    assert "2 of 3 shards were refused" in told
    server.fail(*["ok", *["503"] * 9])
    with pytest.raises(RemoteError, match="not read in 3 attempts"):
        index_shard(f"{server.url}/speech-001.tar", cfg=StorageConfig(retries=2, first_wait_s=0.01), out=str(tmp_path))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_index_in_a_store_is_that_of_the_disk(
    workers: int, s3: tuple[Server, Any, dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, fs, options = s3
    monkeypatch.setattr(read_through, "BLOCK_BYTES", 64 << 10)
    server.fail("ok", "503", "cut")
    assert run("index", "s3://bucket/set/*.tar", *words(options), f"num_workers={workers}") == 0
    assert [line.split()[0] for line in server.requests if line[:2] != "ok"] == ["503", "cut"]
    fs.invalidate_cache()
    made = {name.rpartition("/")[2]: fs.cat_file(name) for name in fs.glob("bucket/set/*.index.parquet")}
    assert made == index_bytes(folder)
    assert run("validate", "s3://bucket/set/*.tar", *words(options)) == 0


def test_records_are_taken_out_of_indexes_in_a_store(folder: Path, tmp_path: Path) -> None:
    fs: Any = fsspec.filesystem("memory")
    tar = folder / "speech-000.tar"
    for suffix in ("", ".index.parquet"):
        fs.put_file(f"{tar}{suffix}", f"/cleaned/{tar.name}{suffix}")
        shutil.copy(f"{tar}{suffix}", tmp_path)
    limits = CleanConfig(max_same_text=1)
    for path in (f"memory://cleaned/{tar.name}", str(tmp_path / tar.name)):
        assert clean([path], limits, apply=True).dropped
    assert fs.cat_file(f"/cleaned/{tar.name}.index.parquet") == (tmp_path / f"{tar.name}.index.parquet").read_bytes()
    assert len(load_index(f"memory://cleaned/{tar.name}")) < len(load_index(str(tar)))
    assert scan(f"memory://cleaned/{tar.name}").fingerprint == load_index(str(tar)).fingerprint
    with pytest.raises(ValueError, match="nothing can be written next to this shard"):
        clean(["https://h/x.tar"], limits, apply=True)


def test_the_options_of_a_store_open_its_tables(s3: tuple[Server, Any, dict[str, Any]], tmp_path: Path) -> None:
    _, fs, options = s3
    fs.put_file(str(TABLE), "bucket/tables/train-0.parquet")
    there = {"storage": StorageConfig(options={"s3": options}), "workers": 1}
    reports = []
    for name, path, more in (("here", str(TABLE), {}), ("there", "s3://bucket/tables/*.parquet", there)):
        known = {"path": path, "out": str(tmp_path / name), "split": "train", "error_budget": 0.0, "audio": "keep"}
        reports += import_corpus(corpus_of("huggingface"), ImportConfig(**(known | more)))
    assert [report.made for report in reports] == [4, 4]
    tars = [next((tmp_path / name).glob("*.tar")).read_bytes() for name in ("here", "there")]
    assert tars[0] == tars[1]
    # Where the keys could be seen.
    assert not [path for path in (tmp_path / "there").rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
