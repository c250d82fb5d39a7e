"""Remote shards: a real HTTP server with injected faults, fsspec's memory, and the cache on disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crc32c
import fsspec
import numpy as np
import pytest
import webdataset

from data_pipelines.build_rewrites import RewriteConfig, rewrite
from qa_train.cli import main
from qa_train.commands.doctor import DoctorConfig
from qa_train.config import DataConfig, EvalSetConfig, SourceConfig, StorageConfig, parse_options
from qa_train.data.batches import open_data
from qa_train.data.shards.catalog import write_catalog
from qa_train.data.shards.index import index_shard, load_index, scan
from qa_train.data.shards.process_cache import KEPT
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores import node_files, storage
from qa_train.data.stores.cache import MIN_BYTES, RangeCache
from qa_train.data.stores.neighbours import Range
from qa_train.data.stores.remote import RemoteError
from qa_train.data.text.prompts import PromptBank
from qa_train.data.tools.validate import validate
from qa_train.doctor.files import examine_data
from qa_train.eval.contamination import contamination
from qa_train.eval.eval_sets import record_questions
from tests.data.conftest import noise
from tests.data.serving import Server, http_server

# Faults that last cost the time-out, and an answer that is later than it would be asked for again.
QUICK = StorageConfig(retries=2, first_wait_s=0.01, timeout_s=1.5)
RAW = np.random.default_rng(0).bytes((12 << 20) + 1000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "raw.bin").write_bytes(RAW)
    with ShardWriter(folder / "a.tar") as writer:
        for i in range(5):
            writer.write(f"k{i}", {"text": f"number {i}"}, noise(0.5, seed=i))
    with http_server(folder) as found:
        yield found


def test_shards_of_a_server_are_those_of_the_disk(server: Server) -> None:
    server.fail()
    url, path = f"{server.url}/a.tar", str(server.folder / "a.tar")
    assert scan(url).fingerprint == scan(path).fingerprint
    assert load_index(url).table.equals(load_index(path).table)
    assert str(validate([url], pytest.fail)).endswith("faults: none")
    for row in load_index(url).table.to_pylist():
        place = (row["offsets"][0], row["sizes"][0])
        assert storage.RangeReader().read(url, *place) == storage.RangeReader().read(path, *place)


@pytest.mark.parametrize("listed", [False, True])
def test_the_settings_reach_indexes_and_catalogs(
    listed: bool, server: Server, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all requests, up to the rows of the first batch, none is tried more often than the settings say."""
    if listed:
        write_catalog([server.folder / "a.tar"], server.folder / "all.catalog.parquet")
    name = "all.catalog.parquet" if listed else "a.tar"
    cfg = DataConfig({"s": SourceConfig(shards=[f"{server.url}/{name}"], task="asr")}, storage=QUICK)

    # Every time as the first process of a node.
    monkeypatch.setattr(node_files, "_folder", lambda: None)

    def plan() -> None:
        KEPT.clear()
        open_data(cfg, tokenizer, 80, seed=0, batches_per_step=1).plan.batch(0)

    server.fail()
    plan()
    needed = len(server.requests)
    assert needed >= 4
    for before in range(needed):
        server.fail(*["ok"] * before, *["500"] * 3)
        with pytest.raises((RemoteError, ValueError), match="not read in 3 attempts"):
            plan()


def test_a_store_that_forbids_what_is_not_there_has_no_token_counts(
    server: Server, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(node_files, "_folder", lambda: None)
    cfg = DataConfig({"s": SourceConfig(shards=[f"{server.url}/a.tar"], task="asr")}, storage=QUICK)
    server.fail()
    KEPT.clear()
    expected = open_data(cfg, tokenizer, 80, seed=0, batches_per_step=1).plan.batch(0)
    before = next(n for n, each in enumerate(server.requests) if "tokens-" in str(each))
    server.fail(*["ok"] * before, "403")
    KEPT.clear()
    assert open_data(cfg, tokenizer, 80, seed=0, batches_per_step=1).plan.batch(0) == expected
    assert "the texts are counted instead" in caplog.text


def test_the_settings_reach_the_indexes_of_evaluation_sets(server: Server) -> None:
    server.fail(*["500"] * 3)
    with pytest.raises((RemoteError, ValueError), match="not read in 3 attempts"):
        record_questions("s", EvalSetConfig([f"{server.url}/a.tar"], "asr"), PromptBank.load(), QUICK)


def _commands(url: str, folder: Path) -> dict[str, list[str]]:
    """Every command that reads shards, with a shard at ``url``."""
    return {
        "inspect": ["data", "inspect", url],
        "inspect a record": ["data", "inspect", f"{url}:k1"],
        "validate": ["data", "validate", url],
        "stats": ["data", "stats", url],
        "sample": ["data", "sample", url, "n=2"],
        "clean": ["data", "clean", url, "max_silence=null"],
        "catalog": ["data", "catalog", str(folder / "x.catalog.parquet"), url],
        "to-jsonl": ["data", "to-jsonl", url, f"out={folder}/x.jsonl", "task=ask_transcript"],
    }


def _run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.out + shown.err


@pytest.mark.parametrize("name", _commands("", Path()))
def test_every_command_takes_the_settings_of_training(
    name: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Passing faults change nothing; a lasting one ends the command after the attempts that were asked for."""
    settings = ["storage.retries=2", "storage.first_wait_s=0.01", "storage.timeout_s=1.5"]
    words = _commands(f"{server.url}/a.tar", tmp_path)[name]
    local = _commands(str(server.folder / "a.tar"), tmp_path)[name]
    server.fail()
    code, wanted, _ = _run(local, capsys)
    assert code == 0
    server.fail("503", "cut", "ok", "stall", "503", "ok", "503")
    found = _run([*words, *settings], capsys)[:2]
    assert len(server.requests) > 6
    assert found == (code, wanted.replace(str(server.folder / "a.tar"), f"{server.url}/a.tar"))
    needed = len([line for line in server.requests if line.startswith("ok")])
    for before in {0, needed // 2, needed - 1}:
        server.fail(*["ok"] * before, *["503"] * 3)
        code, _, shown = _run([*words, *settings], capsys)
        assert code != 0
        assert "not read in 3 attempts" in shown
        assert "the server answers 503" in shown
        assert "data index" not in shown.split("not read in 3 attempts")[1].replace("data index PATH", "")
        assert "Traceback" not in shown


def test_the_doctor_takes_them_too_and_prescribes_no_index_for_a_dead_server(server: Server) -> None:
    options = parse_options(DoctorConfig, ["data=x", "storage.retries=2", "storage.first_wait_s=0.01"], "doctor")
    server.fail("503", "cut")
    assert [f.state for f in examine_data([f"{server.url}/a.tar"], options.storage)] == ["ok", "note"]
    server.fail(*["503"] * 3)
    (finding,) = examine_data([f"{server.url}/a.tar"], options.storage)
    assert "not read in 3 attempts" in finding.found
    assert finding.remedy == "check the server, the network and the rights"
    server.fail("ok", "ok", *["404"] * 2)
    (finding,) = examine_data([f"{server.url}/nowhere.tar"], options.storage)
    assert "upload both" in finding.remedy


def test_the_settings_reach_what_compares_and_rewrites(server: Server, tmp_path: Path) -> None:
    options = RewriteConfig(shards=f"{server.url}/a.tar", out=str(tmp_path), model="none", share=0.0, storage=QUICK)
    for work in (
        lambda: contamination([], [f"{server.url}/a.tar"], tmp_path, QUICK),
        lambda: rewrite(options),
    ):
        server.fail(*["503"] * 3)
        with pytest.raises(RemoteError, match="not read in 3 attempts"):
            work()
    server.fail("503", "cut")
    with pytest.raises(ValueError, match="no chat in"):
        rewrite(options)


def test_no_index_is_told_from_a_server_that_does_not_answer(server: Server, tmp_path: Path) -> None:
    server.fail()
    shard = server.folder / "bare.tar"
    shard.write_bytes((server.folder / "a.tar").read_bytes())
    url = f"{server.url}/bare.tar"
    remedy = r"bare\.tar has no index; run: qa-train data index http.*/bare\.tar out=DIR, and put bare\.tar\.index\.par"
    with pytest.raises(ValueError, match=remedy):
        load_index(url, QUICK)
    with pytest.raises(ValueError, match=r"/nowhere\.tar and its index do not exist"):
        load_index(f"{server.url}/nowhere.tar", QUICK)
    with pytest.raises(ValueError, match=r"bare\.tar has no index; run: qa-train data index"):
        load_index(str(shard), QUICK)
    for fault, why in (("503", "not read in 3 attempts .*answers 503"), ("403", "403 Forbidden; stores return this")):
        server.fail(*[fault] * 3)
        with pytest.raises(RemoteError, match=why) as error:
            load_index(url, QUICK)
        assert "data index" not in str(error.value)
    side = Path(f"{shard}.index.parquet")
    side.write_bytes(b"PAR1 no index")
    server.fail()
    with pytest.raises(ValueError, match=r"bare\.tar\.index\.parquet is damaged .*; run: qa-train data index http"):
        load_index(url, QUICK)
    server.fail()
    with pytest.raises(ValueError, match="nothing can be written next to this shard"):
        index_shard(url)
    assert server.requests == []
    side.unlink()
    shard.unlink()


@pytest.mark.parametrize("fault", ["500", "stall", "drip", "cut", "shifted"])
def test_a_passing_fault_is_tried_again(fault: str, server: Server) -> None:
    reader = storage.RangeReader(QUICK)
    server.fail(fault, fault)
    assert reader.read(f"{server.url}/raw.bin", 1000, 500) == RAW[1000:1500]
    assert [line.split()[0] for line in server.requests] == [fault, fault, "ok"]


@pytest.mark.parametrize(
    ("fault", "why"),
    [("500", "answers 500"), ("stall", "[Tt]ime"), ("drip", "[Tt]ime"), ("cut", "250 bytes missing"),
     ("shifted", "asked for bytes 1000-1499, the answer is for 'bytes 1001-1500")],
)  # fmt: skip
def test_a_lasting_fault_names_url_and_attempts(fault: str, why: str, server: Server) -> None:
    reader = storage.RangeReader(QUICK)
    server.fail(*[fault] * 3)
    with pytest.raises(RemoteError, match=rf"raw.bin, bytes 1000 to 1499: not read in 3 attempts .*({why})"):
        reader.read(f"{server.url}/raw.bin", 1000, 500)


def test_what_trying_again_cannot_mend_fails_at_once(server: Server) -> None:
    server.fail("whole")
    with pytest.raises(RemoteError, match="ignores byte ranges"):
        storage.size_of(f"{server.url}/raw.bin", QUICK)
    server.fail()
    with pytest.raises(FileNotFoundError, match=r"nothing\.tar.*404"):
        storage.size_of(f"{server.url}/nothing.tar", QUICK)
    assert len(server.requests) == 1
    with pytest.raises(RemoteError, match=r"127.0.0.1:9/x, size: not read in 3 attempts"):
        storage.size_of("http://127.0.0.1:9/x", QUICK)


def test_the_jitter_leaves_the_random_numbers_of_training_alone(server: Server) -> None:
    import random

    random.seed(1)
    expected = random.random()
    random.seed(1)
    server.fail("500")
    storage.size_of(f"{server.url}/raw.bin", QUICK)
    assert random.random() == expected


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "pipe://x", "file:///etc/passwd", "ftp://x/y", "az://x"])
def test_other_schemes_are_refused(url: str) -> None:
    if "://" in url:
        with pytest.raises(ValueError, match="is not allowed"):
            storage.expand([url])
        with pytest.raises(ValueError, match="is not allowed"):
            storage.RangeReader().read(url, 0, 1)
    else:
        with pytest.raises(FileNotFoundError):
            storage.open_binary(url)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x-{00..03}.tar", ["x-00.tar", "x-01.tar", "x-02.tar", "x-03.tar"]),
        ("s3://b/{en,fr}/{8..10}.tar", [f"s3://b/{a}/{n}.tar" for a in ("en", "fr") for n in (8, 9, 10)]),
        ("https://h/x-{000..001}.tar?sig=1", ["https://h/x-000.tar?sig=1", "https://h/x-001.tar?sig=1"]),
        ("{a}.tar", ["{a}.tar"]),
        ("{}.tar", ["{}.tar"]),
    ],
)
def test_braces_are_those_of_webdataset(
    pattern: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.expand([pattern]) == names
    if "{a}" not in pattern and "{}" not in pattern:
        assert storage.expand([pattern]) == webdataset.shardlists.expand_urls(pattern)


def test_braces_insert_nothing_and_cut_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike `webdataset.shardlists.expand_urls`, which takes values from the environment and splits addresses."""
    monkeypatch.setenv("WDS_SECRET", "value")
    for pattern in ("http://[::1]:8000/x-0.tar", "https://h/${SECRET}.tar", "s3://b/a::b.tar"):
        assert storage.expand([pattern]) == [pattern]
        assert webdataset.shardlists.expand_urls(pattern) != [pattern]


def test_braces_and_globs_go_together_and_a_file_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a-1.tar", "b-1.tar", "b-2.tar", "c-1.tar", "{x,y}.tar"):
        (tmp_path / name).touch()
    assert storage.expand(["{a,b}-*.tar"]) == ["a-1.tar", "b-1.tar", "b-2.tar"]
    assert storage.expand(["{x,y}.tar"]) == ["{x,y}.tar"]


def test_object_stores_are_read_through_fsspec() -> None:
    fs: Any = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/raw.bin", RAW)
    reader = storage.RangeReader(QUICK)
    assert reader.read("memory://bucket/raw.bin", 5, 10) == RAW[5:15]
    assert reader.read("memory://bucket/raw.bin", len(RAW) - 5, 10) == RAW[-5:]
    assert storage.open_binary("memory://bucket/raw.bin").read() == RAW
    with pytest.raises(FileNotFoundError):
        storage.size_of("memory://bucket/none", QUICK)


def test_a_hanging_library_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    fs: Any = fsspec.filesystem("memory")
    monkeypatch.setattr(fs, "info", lambda path: time.sleep(3))
    with pytest.raises(RemoteError, match=r"no answer in 0\.1 s"):
        storage.size_of("memory://bucket/x", StorageConfig(retries=1, first_wait_s=0.01, timeout_s=0.1))


def known(offset: int, size: int, path: str = "http://h/a?sig=1") -> Range:
    """A range of RAW as an index knows it."""
    raw = RAW[offset : offset + size]
    return Range(path, offset, len(raw), crc32c.crc32c(raw))


def test_the_cache_gives_back_exactly_the_ranges_that_were_kept(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, 1 << 30)
    rng = np.random.default_rng(1)
    ranges = [known(int(rng.integers(0, len(RAW) - 1)), int(rng.integers(1, 1 << 20))) for _ in range(50)]
    for each in ranges:
        raw = RAW[each.offset : each.end]
        assert cache.get(each) is None
        cache.put(each, raw)
        assert RangeCache(tmp_path, 1 << 30).get(each) == raw
    # Another file, range or content is another entry.
    first = ranges[0]
    others = [("path", "http://h/b"), ("size", first.size + 1), ("offset", first.offset + 1), ("crc32c", 1)]
    for field, value in others:
        assert cache.get(first._replace(**{field: value})) is None
    assert (cache.hits, cache.misses) == (0, 54)
    # Wrong bytes are not kept: the server may have the right ones later. Nor are those that nothing is known of.
    cache.put(first._replace(crc32c=1), RAW[first.offset : first.end])
    cache.put(first._replace(crc32c=-1), RAW[first.offset : first.end])
    assert len(list(tmp_path.glob("??/*"))) == len(ranges)
    # A signature is not part of the name.
    assert cache.get(first._replace(path="http://h/a?sig=2")) == RAW[first.offset : first.end]


def test_what_is_damaged_or_missing_is_read_again(server: Server, tmp_path: Path) -> None:
    place, cfg = known(5, 10, f"{server.url}/raw.bin"), StorageConfig(cache_dir=str(tmp_path))
    server.fail()
    assert storage.RangeReader(cfg).read(*place) == RAW[5:15]
    (kept,) = tmp_path.glob("??/*")
    whole = kept.read_bytes()
    for damage, requests in ((whole, 0), (whole[:-1], 1), (b"x" + whole[1:], 1), (whole + b"x", 1), (b"", 1)):
        kept.write_bytes(damage)
        server.fail()
        assert storage.RangeReader(cfg).read(*place) == RAW[5:15]
        assert len(server.requests) == requests
        assert kept.read_bytes() == whole
    kept.unlink()
    assert storage.RangeReader(cfg).read(*place) == RAW[5:15]


def test_the_cache_holds_only_what_was_asked_for(server: Server, tmp_path: Path) -> None:
    """A node of 64 reads one clip of 64: its disk and its network must not carry the other 63."""
    server.fail()
    reader = storage.RangeReader(StorageConfig(cache_dir=str(tmp_path)))
    asked = [known(offset, 1000, f"{server.url}/raw.bin") for offset in range(0, len(RAW) - 1000, 1 << 20)]
    assert [reader.read(*each) for each in asked] == [RAW[each.offset : each.end] for each in asked]
    assert sum(path.stat().st_size for path in tmp_path.glob("??/*")) == len(asked) * 1000
    spans = [line.split()[1].removeprefix("bytes=").split("-") for line in server.requests]
    assert sum(int(last) - int(first) + 1 for first, last in spans) == len(asked) * 1000


def test_the_range_unused_for_longest_goes_first(tmp_path: Path) -> None:
    size = MIN_BYTES // 4
    cache, limit = RangeCache(tmp_path, 5 * size), 5 * size
    old = time.time() - 1000
    places = [Range("a", number * size, size, crc32c.crc32c(bytes(size))) for number in range(6)]
    for number, place in enumerate(places[:5]):
        cache.put(place, bytes(size))
        os.utime(cache._path(place), (old + number, old + number))
    # Range 0 is read again, so range 1 is now the oldest.
    assert cache.get(places[0]) == bytes(size)
    (tmp_path / "aa").mkdir(exist_ok=True)
    stale = tmp_path / "aa" / "left.part"
    stale.write_bytes(b"x")
    os.utime(stale, (0, 0))
    cache.put(places[5], bytes(size))
    cache.sweep()
    left = {number for number in range(6) if cache._path(places[number]).exists()}
    assert {0, 5} <= left
    assert 1 not in left
    assert sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= limit
    assert not stale.exists()


def test_storage_without_locks_is_swept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    cache = RangeCache(tmp_path, MIN_BYTES)
    cache.put(Range("a", 0, MIN_BYTES // 8, crc32c.crc32c(bytes(MIN_BYTES // 8))), bytes(MIN_BYTES // 8))
    cache.max_bytes = 1
    monkeypatch.setattr("fcntl.flock", flock)
    cache.sweep()
    assert not list(tmp_path.glob("??/*"))


_READER = """
import sys, random, crc32c
from qa_train.config import StorageConfig
from qa_train.data.stores.storage import RangeReader
url, folder, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
raw = open(sys.argv[4], "rb").read()
reader = RangeReader(StorageConfig(cache_dir=folder, cache_gb=0.018, first_wait_s=0.01))
draw = random.Random(seed)
for _ in range(60):
    offset, size = draw.randrange(40) << 18, 1 << 18
    name = draw.choice(["raw.bin", "two.bin"])
    wanted = raw[offset : offset + size]
    assert reader.read(f"{url}/{name}", offset, size, crc32c.crc32c(wanted)) == wanted
print(reader.cache.hits, reader.cache.misses)
"""


def test_several_processes_share_a_small_cache(server: Server, tmp_path: Path) -> None:
    server.fail()
    (server.folder / "two.bin").write_bytes(RAW)
    words = [f"{server.url}", str(tmp_path / "cache")]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _READER, *words, str(seed), str(server.folder / "raw.bin")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in range(3)
    ]  # fmt: skip
    for reader in readers:
        out, error = reader.communicate(timeout=100)
        assert reader.returncode == 0, error
        hits, misses = map(int, out.split())
        assert hits > 0
        assert misses > 0
    stored = sum(path.stat().st_size for path in (tmp_path / "cache").glob("??/*"))
    # Another process may store ranges between a sweep and its end.
    assert stored <= 0.018e9 + 3 * (1 << 20)


def test_a_full_disk_reads_on_without_cache(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = storage.RangeReader(StorageConfig(cache_dir=str(tmp_path)))

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    server.fail()
    assert reader.read(*known(3, 10, f"{server.url}/raw.bin")) == RAW[3:13]


def test_a_cache_too_small_for_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache_gb"):
        storage.RangeReader(StorageConfig(cache_dir=str(tmp_path), cache_gb=0.001))
