"""Signed URLs: the query opens the shard, its index, its ranges and its catalog, and is written and said nowhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import crc32c
import pytest

from qa_train.config import DataConfig, SourceConfig, StorageConfig
from qa_train.data.batches import open_data
from qa_train.data.shards.catalog import write_catalog
from qa_train.data.shards.index import scan
from qa_train.data.shards.sidecar import load_index, load_summary
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores import storage
from qa_train.data.stores.remote import RemoteError
from tests.data.conftest import noise

SIGNATURE = "sv=2024&sp=rl&sig=ab%2Fcd/ef+gh=="
QUICK = StorageConfig(retries=0, timeout_s=5)


class Store(ThreadingHTTPServer):
    """Serves a folder to who has the signature. ``opens``: what it is good for; ``log``: the paths that were asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.log = folder, list[str]()
        self.opens: Any = lambda name: True


class Handler(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        name = place.path.lstrip("/")
        self.server.log.append(self.path)
        if place.query not in (SIGNATURE, "sig=new") or not self.server.opens(name):
            self.send_error(403)
            return
        if not (self.server.folder / name).is_file():
            self.send_error(404)
            return
        raw = (self.server.folder / name).read_bytes()
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(raw)}")
        self.end_headers()
        self.wfile.write(raw[first : last + 1])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with ShardWriter(tmp_path / "a.tar") as writer:
        for i in range(3):
            writer.write(f"k{i}", {"text": f"number {i}"}, noise(0.5, seed=i))
    with Store(tmp_path) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()


def url(store: Store, name: str, query: str = SIGNATURE) -> str:
    return f"http://127.0.0.1:{store.server_address[1]}/{name}?{query}"


def test_the_query_opens_index_and_ranges(store: Store) -> None:
    shard = url(store, "a.tar")
    assert load_summary(shard, QUICK).rows == 3
    local = str(store.folder / "a.tar")
    assert load_index(shard, QUICK).table.equals(load_index(local).table)
    for row in load_index(local).table.to_pylist():
        place = (row["offsets"][0], row["sizes"][0])
        assert storage.RangeReader(QUICK).read(shard, *place) == storage.RangeReader().read(local, *place)
    assert {path.partition("?")[0] for path in store.log} == {"/a.tar", "/a.tar.index.parquet"}


def test_an_index_of_a_damaged_shard_does_not_hold_the_query(store: Store) -> None:
    path = store.folder / "a.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    (problem,) = scan(url(store, "a.tar"), keep_damaged=True, cfg=QUICK).problems
    assert problem.reason == "damaged shard"
    assert "a.tar?***: " in problem.detail


@pytest.mark.parametrize("catalog", [False, True])
def test_training_on_signed_urls_has_the_order_of_local_files(store: Store, tokenizer: Any, catalog: bool) -> None:
    name = "a.tar"
    if catalog:
        name = "all.catalog.parquet"
        write_catalog([store.folder / "a.tar"], store.folder / name)

    def opened(path: str) -> Any:
        cfg = DataConfig({"s": SourceConfig(shards=[path], task="asr")}, storage=QUICK)
        return open_data(cfg, tokenizer, 80, seed=0, batches_per_step=1)

    signed, local = opened(url(store, name)), opened(str(store.folder / "a.tar"))
    assert signed.fingerprint == local.fingerprint
    assert signed.keys(0) == local.keys(0)
    assert all(key.startswith("a.tar:k") for key in signed.keys(0))
    assert signed.build(0)["input_ids"].tolist() == local.build(0)["input_ids"].tolist()


def test_a_signature_of_one_file_is_refused_with_the_remedy(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.opens = lambda name: name == "a.tar"
    with pytest.raises(
        RemoteError, match=r"a\.tar\.index\.parquet\?\*\*\*.*403.*sign the folder.*storage.options"
    ) as e:
        load_summary(url(store, "a.tar"), QUICK)
    assert "sig=" not in str(e.value) + caplog.text


def test_errors_and_warnings_hold_no_signature(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    (store.folder / "a.tar.index.parquet").unlink()
    said = []
    for broken in (url(store, "a.tar"), url(store, "b.tar"), url(store, "a.tar", "sig=run-out")):
        with pytest.raises((ValueError, OSError)) as error:
            load_index(broken, QUICK)
        said.append(str(error.value))
    store.server_close()
    with pytest.raises(RemoteError) as error:
        load_index(f"http://user:sig=pw@127.0.0.1:9/a.tar?{SIGNATURE}", StorageConfig(retries=1, first_wait_s=0.01))
    assert "again in" in caplog.text
    from qa_train.utils.masking import masked

    # ValueErrors pass through the one line of the command, which masks.
    assert "sig=" not in masked("\n".join(said)) + str(error.value) + caplog.text


def test_a_catalog_holds_no_signatures(store: Store) -> None:
    for secret in (url(store, "a.tar"), f"http://a:b@127.0.0.1:{store.server_address[1]}/a.tar"):
        with pytest.raises(ValueError, match="catalog would hold its signature"):
            write_catalog([secret], store.folder / "x.catalog.parquet", QUICK)
    assert not (store.folder / "x.catalog.parquet").exists()


def test_another_signature_finds_the_cached_clip(store: Store, tmp_path: Path) -> None:
    cfg = StorageConfig(retries=0, cache_dir=str(tmp_path / "cache"))
    raw = (store.folder / "a.tar").read_bytes()[:100]
    for signature in ((), ("sig=new",)):
        reader = storage.RangeReader(cfg)
        assert reader.read(url(store, "a.tar", *signature), 0, 100, crc32c.crc32c(raw)) == raw
        assert reader.cache is not None
        assert reader.cache.hits == len(signature)


@pytest.mark.parametrize(
    ("path", "index"),
    [
        ("/data/a.tar", "/data/a.tar.index.parquet"), ("/data/a?b/c.tar", "/data/a?b/c.tar.index.parquet"),
        ("https://h/a.tar", "https://h/a.tar.index.parquet"), ("s3://b/a.tar", "s3://b/a.tar.index.parquet"),
        ("https://h/a.tar?sig=/x/y.z", "https://h/a.tar.index.parquet?sig=/x/y.z"),
        ("https://h/get?file=a.tar", "https://h/get?file=a.tar.index.parquet"),
    ],
)  # fmt: skip
def test_where_the_index_of_a_shard_lies(path: str, index: str) -> None:
    assert storage.beside(path, ".index.parquet") == index


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tar.index.parquet", "x.tgz", "x.parquet"])
def test_other_kinds_are_known_behind_a_signature(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not a shard but") as error:
        storage.expand([f"https://h/{name}?{SIGNATURE}"])
    assert "sig=" not in str(error.value)
