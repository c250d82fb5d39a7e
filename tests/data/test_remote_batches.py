"""Batches of remote shards: clips fetched together over kept connections, by forked workers; http, S3 and the hub."""

from __future__ import annotations

import dataclasses
import datetime
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import quote

import fsspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from qa_train.config import DataConfig, SourceConfig, StorageConfig
from qa_train.data.batches import Batches, open_data
from qa_train.data.loader import Collator, rank_numbers
from qa_train.data.stores import remote, storage, store_ranges
from qa_train.data.stores.folders import open_folder
from qa_train.data.stores.neighbours import MAX_GAP_BYTES, Range, joined
from qa_train.data.stores.remote import MAX_REQUEST_BYTES, RemoteError
from qa_train.data.stores.web_ranges import MAX_CONNECTIONS
from tests.data.conftest import speech_record, write_shards
from tests.data.serving import Server, http_server, s3_server

QUICK = StorageConfig(retries=6, first_wait_s=0.01, timeout_s=5)
RAW = np.random.default_rng(0).bytes(4 << 20)
LATENCY_S = 0.02


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "served"
    folder.mkdir()
    (folder / "raw.bin").write_bytes(RAW)
    write_shards(folder, "speech", 60, 20, speech_record)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with http_server(folder, LATENCY_S) as found:
        yield found


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[tuple[Server, StorageConfig]]:
    with s3_server(folder, LATENCY_S) as found:
        options = {"s3": {"key": "key", "secret": "secret", "endpoint_url": found.url}}
        fs: Any = fsspec.filesystem("s3", **options["s3"])
        fs.mkdir("bucket")
        for path in folder.glob("speech*"):
            fs.put_file(str(path), f"bucket/set/{path.name}")
        yield found, StorageConfig(retries=3, first_wait_s=0.01, timeout_s=10, options=options)


def opened(shards: str, tokenizer: Any, cfg: StorageConfig | None = None) -> Batches:
    source = SourceConfig(shards=[shards], task="asr")
    data = DataConfig({"s": source}, tokens_per_batch=300, shuffle_window=40, storage=cfg or QUICK)
    return open_data(data, tokenizer, 80, seed=0, batches_per_step=2)


def loaded(batches: Batches, count: int, num_workers: int, rank: int = 0, ranks: int = 1) -> list[dict[str, Any]]:
    numbers: Any = list(rank_numbers(0, count, rank, ranks))
    return list(DataLoader(numbers, batch_size=1, num_workers=num_workers, collate_fn=Collator(batches)))


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    return len(found) == len(wanted) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(found, wanted)
    )


def test_neighbours_are_joined_and_nothing_is_lost() -> None:
    draw = random.Random(0)
    for _ in range(200):
        ranges = [
            Range(draw.choice("ab"), draw.randrange(draw.choice([1 << 18, 1 << 26])), draw.randrange(1, 1 << 17))
            for _ in range(draw.randrange(1, 30))
        ]
        groups = joined(ranges * draw.choice([1, 2]))
        assert sorted(each for group in groups for each in group) == sorted(set(ranges))
        firsts = []
        for group in groups:
            assert len({each.path for each in group}) == 1
            assert group == sorted(group)
            end = group[0].end
            for each in group[1:]:
                assert each.offset - end <= MAX_GAP_BYTES
                end = max(end, each.end)
            assert len(group) == 1 or end - group[0].offset <= MAX_REQUEST_BYTES
            firsts.append(min(ranges.index(each) for each in group))
        assert firsts == sorted(firsts)
    near = [Range("a", 0, 100), Range("a", 100 + MAX_GAP_BYTES, 5), Range("a", 106 + 2 * MAX_GAP_BYTES, 5)]
    assert joined(near) == [near[:2], near[2:]]
    # A single range of any size is one group: it is split when it is read.
    assert joined([Range("a", 0, 9 * MAX_REQUEST_BYTES)]) == [[Range("a", 0, 9 * MAX_REQUEST_BYTES)]]


def test_ranges_are_fetched_together_over_few_connections(server: Server) -> None:
    url = f"{server.url}/raw.bin"
    ranges = [Range(url, i * 150_000 + i, 2000) for i in range(24)]
    ranges += [Range(url, each.end + 700, 900) for each in ranges[:6]]
    random.Random(1).shuffle(ranges)
    server.fail()
    reader = storage.RangeReader(QUICK)
    for _ in range(2):
        reader.fetch(ranges, [])
        assert [reader.read(*each) for each in ranges] == [RAW[each.offset : each.end] for each in ranges]
        reader.fetch()
    # Nothing but the bytes is asked for; six of the ranges are their neighbours'.
    assert len(server.requests) == 2 * 24
    assert server.connections <= MAX_CONNECTIONS
    taken = []
    while min(taken, default=1.0) > 0.75 * 24 * LATENCY_S:
        assert len(taken) < 9, "one after another"
        reader.fetch()
        reader.fetch(ranges)
        started = time.monotonic()
        assert all(len(reader.read(*each)) == each.size for each in ranges)
        taken.append(time.monotonic() - started)


def test_what_is_fetched_later_waits_for_what_is_needed_now_and_is_not_fetched_twice(server: Server) -> None:
    url = f"{server.url}/raw.bin"
    now, later, dropped = ([Range(url, start + i * 200_000, 1000) for i in range(18)] for start in (0, 70_000, 135_000))
    server.fail()
    reader = storage.RangeReader(QUICK)
    reader.fetch(now, later)
    assert [reader.read(*each) for each in now] == [RAW[each.offset : each.end] for each in now]
    asked = [line.split()[1] for line in server.requests][:16]
    assert set(asked) <= {f"bytes={each.offset}-{each.end - 1}" for each in now}
    reader.fetch(later, dropped)
    assert [reader.read(*each) for each in later] == [RAW[each.offset : each.end] for each in later]
    reader.fetch(now)
    assert [reader.read(*each) for each in [*now, *dropped]] == [
        RAW[each.offset : each.end] for each in [*now, *dropped]
    ]
    assert len([line for line in server.requests if f"bytes={later[0].offset}-" in line]) == 1


def test_a_range_ends_where_the_file_does(server: Server) -> None:
    url, end = f"{server.url}/raw.bin", len(RAW)
    places = [(end - 5000, 1000), (end - 300, 1000), (end + 10, 5), (7, 9), (end + 100_000, 5)]
    ranges = [Range(url, *place) for place in places]
    server.fail()
    reader = storage.RangeReader(QUICK)
    reader.fetch(ranges)
    assert [len(reader.read(*each)) for each in ranges] == [1000, 300, 0, 9, 0]
    assert [line.split()[0] for line in server.requests] == ["ok"] * 3


@pytest.mark.parametrize("fault", ["503", "cut", "shifted", "stall"])
def test_one_bad_answer_of_many_is_tried_again_alone(fault: str, server: Server) -> None:
    cfg = StorageConfig(retries=2, first_wait_s=0.01, timeout_s=1.5 if fault == "stall" else 30)
    url = f"{server.url}/raw.bin"
    ranges = [Range(url, i * 150_000, 2000) for i in range(12)]
    server.fail(*["ok"] * 4, fault, "ok", fault)
    reader = storage.RangeReader(cfg)
    reader.fetch(ranges)
    assert [reader.read(*each) for each in ranges] == [RAW[each.offset : each.end] for each in ranges]
    assert len(server.requests) == 12 + 2
    server.fail(*["500"] * 9)
    reader.fetch(lost := [Range(url, i * 150_000, 3000) for i in range(3)])
    for each in lost:
        with pytest.raises(RemoteError, match="not read in 3 attempts"):
            reader.read(*each)
    assert len(server.requests) == 9
    assert reader.read(*ranges[0]) == RAW[:2000]


def test_a_forked_process_has_connections_and_threads_of_its_own(server: Server) -> None:
    import multiprocessing

    url = f"{server.url}/raw.bin"
    ranges = [Range(url, i * 150_000, 2000) for i in range(8)]
    reader = storage.RangeReader(QUICK)
    server.fail()
    reader.fetch(ranges)
    assert reader.read(*ranges[0]) == RAW[:2000]

    def child(out: Any) -> None:
        reader.fetch(ranges)
        out.send([reader.read(*each) for each in ranges])

    context = multiprocessing.get_context("fork")
    ends = [context.Pipe(duplex=False) for _ in range(2)]
    children = [context.Process(target=child, args=(sender,)) for _, sender in ends]
    for process in children:
        process.start()
    # Meanwhile the parent goes on with its own.
    assert [reader.read(*each) for each in ranges] == [RAW[each.offset : each.end] for each in ranges]
    for receiver, _ in ends:
        assert receiver.poll(20)
        assert receiver.recv() == [RAW[each.offset : each.end] for each in ranges]
    for process in children:
        process.join()
    assert len(server.requests) == 3 * 8
    assert 3 <= server.connections <= 3 * MAX_CONNECTIONS


@pytest.mark.parametrize(
    ("num_workers", "faults"), [(0, ()), (2, ("503", "ok", "cut", "ok", "ok", "shifted", "500"))], ids=["0", "2 faults"]
)
def test_remote_batches_are_those_of_the_disk(
    num_workers: int, faults: tuple[str, ...], server: Server, folder: Path, tokenizer: Any
) -> None:
    wanted = loaded(opened(str(folder / "speech-*.tar"), tokenizer), 12, 0)
    server.fail()
    batches = opened(f"{server.url}/speech-{{000..002}}.tar", tokenizer)
    server.fail(*faults)
    assert same(loaded(batches, 12, num_workers), wanted)
    clips = sum(len(batch["feature_lengths"]) for batch in wanted)
    # At most a batch of each process is fetched in vain, at the end; every process asks for the size of each shard.
    asked = len([line for line in server.requests if line.split()[3].endswith(".tar")])
    assert clips / 2 < asked <= clips + (num_workers + 1) * (3 + clips / 6) + len(faults)
    assert server.connections <= max(1, num_workers) * MAX_CONNECTIONS + len(faults)
    assert not batches.skipped


def test_the_clips_of_the_next_batch_are_there_when_it_is_asked_for(server: Server, tokenizer: Any) -> None:
    server.fail()
    batches = opened(f"{server.url}/speech-{{000..002}}.tar", tokenizer)
    collator = Collator(batches)
    for k in (0, 3, 6):
        server.fail()
        collator([k])
        time.sleep(4 * LATENCY_S)
    assert len([line for line in server.requests if line.split()[3].endswith(".tar")]) > 0
    server.fail()
    batches.build_named(9)
    assert server.requests == []


def test_a_plan_that_fails_later_fails_when_its_turn_comes(
    server: Server, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fail()
    batches = opened(f"{server.url}/speech-{{000..002}}.tar", tokenizer)
    plan = batches.plan.batch

    def broken(k: int) -> Any:
        if k > 1:
            raise ValueError("the index was rewritten")
        return plan(k)

    monkeypatch.setattr(batches.plan, "batch", broken)
    server.fail()
    collator = Collator(batches)
    collator([0])
    collator([1])
    with pytest.raises(ValueError, match="rewritten"):
        collator([2])


@pytest.mark.parametrize("pattern", ["set/*.tar", "set/", "set", "set/speech-{000..002}.tar", "s*t/speech-00[0-2].tar"])
def test_globs_and_folders_of_s3(pattern: str, s3: tuple[Server, StorageConfig], folder: Path) -> None:
    names = [f"s3://bucket/set/{path.name}" for path in sorted(folder.glob("*.tar"))]
    assert storage.expand([f"s3://bucket/{pattern}"], s3[1]) == names


def test_listings_that_find_nothing_or_are_impossible(s3: tuple[Server, StorageConfig]) -> None:
    for pattern in ("s3://bucket/none/*.tar", "s3://bucket/none/"):
        with pytest.raises(ValueError, match="no shard matches"):
            storage.expand([pattern], s3[1])
    for pattern in ("s3://nowhere/*.tar", "s3://nowhere/set/"):
        with pytest.raises(RemoteError, match=r"s3://nowhere/.*: The specified bucket does not exist"):
            storage.expand([pattern], s3[1])
    with pytest.raises(ValueError, match=r"s3://nowhere/out: .*bucket does not exist"):
        open_folder("s3://nowhere/out", s3[1])
    # An option that the library does not have is not tried again.
    odd = dataclasses.replace(s3[1], retries=9, first_wait_s=60.0, options={"s3": {"kee": "x"}})
    with pytest.raises(RemoteError, match=r"unexpected keyword argument 'kee' \(check the keys"):
        storage.expand(["s3://bucket/*.tar"], odd)
    with pytest.raises(ValueError, match=r"s3://bucket/out: .*unexpected keyword argument 'kee'"):
        open_folder("s3://bucket/out", odd)
    for pattern in ("https://h/set/*.tar", "http://h/set/", "https://h/x-[0-9].tar?sig=1"):
        with pytest.raises(ValueError, match=r"web servers list no folders.*braces"):
            storage.expand([pattern], s3[1])
    fs: Any = fsspec.filesystem("memory")
    for name in ("b.tar", "a.tar", "a.tar.index.parquet", "deep/c.tar", "notes.txt"):
        fs.pipe_file(f"/listed/{name}", b"x")
    names = [f"memory://listed/{name}" for name in ("a.tar", "b.tar", "deep/c.tar")]
    assert storage.expand(["memory://listed/"]) == storage.expand(["memory://listed"]) == names
    assert storage.expand(["memory://listed/*.tar"]) == names[:2]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_of_s3_are_those_of_the_disk(
    num_workers: int, s3: tuple[Server, StorageConfig], folder: Path, tokenizer: Any
) -> None:
    server, cfg = s3
    wanted = loaded(opened(str(folder / "speech-*.tar"), tokenizer), 8, 0)
    batches = opened("s3://bucket/set/*.tar", tokenizer, cfg)
    server.fail("503", "ok", "cut", "ok", "ok", "500", "ok", "cut")
    assert same(loaded(batches, 8, num_workers), wanted)
    assert len([line for line in server.requests if line.startswith(("503", "cut", "500"))]) == 4
    assert not batches.skipped


def test_objects_of_s3_are_read_by_signed_addresses(
    s3: tuple[Server, StorageConfig], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, cfg = s3
    fs, _ = remote._filesystem("s3://bucket", cfg)
    raw = (folder / "speech-000.tar").read_bytes()
    signed, read = list[str](), list[int]()
    sign, cat = fs.sign, fs.cat_file

    def sign_one(path: str, **more: Any) -> str:
        signed.append(path)
        return str(sign(path, **more))

    def cat_one(path: str, start: int, end: int) -> bytes:
        read.append(start)
        return bytes(cat(path, start=start, end=end))

    monkeypatch.setattr(fs, "sign", sign_one)
    monkeypatch.setattr(fs, "cat_file", cat_one)
    monkeypatch.setattr(store_ranges, "_known", {})
    monkeypatch.setattr(store_ranges, "_refused", set())

    def check(number: int, other: StorageConfig = cfg) -> None:
        found = storage.RangeReader(other).read("s3://bucket/set/speech-000.tar", 1000 * number, 900)
        assert found == raw[1000 * number :][:900]

    server.fail()
    for number in range(5):
        check(number)
    assert (len(signed), read) == (1, [])
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1801)
    check(5)
    assert (len(signed), read) == (2, []), "a new address after half of its time"
    # An address that is refused before its time is signed anew; one that is refused at once is the bucket's habit.
    server.fail("403")
    check(6)
    check(7)
    assert (len(signed), read) == (3, [6000])
    monkeypatch.setattr(store_ranges, "_known", {})
    server.fail("400")
    check(8)
    check(9)
    assert (len(signed), read) == (4, [6000, 8000, 9000])
    # What an address does not have in it.
    monkeypatch.setattr(store_ranges, "_refused", set())
    more = {"s3": cfg.options["s3"] | {"requester_pays": True}}
    check(0, StorageConfig(retries=0, options=more))
    assert len(signed) == 4
    # Both ways end where the object does.
    for refused in ({("s3", "bucket", str(cfg.options["s3"]))}, set[tuple[str, str, str]]()):
        monkeypatch.setattr(store_ranges, "_refused", refused)
        reader = storage.RangeReader(StorageConfig(retries=0, options=cfg.options))
        place = "s3://bucket/set/speech-000.tar"
        assert reader.read(place, len(raw) - 50, 100) == raw[-50:]
        assert reader.read(place, len(raw) + 10, 5) == b""
        assert bool(store_ranges._refused) == bool(refused)


def test_an_address_is_signed_by_version_4_for_the_region_of_its_bucket(
    s3: tuple[Server, StorageConfig], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, cfg = s3
    signed: dict[Any, tuple[Any, float]] = {}
    monkeypatch.setattr(store_ranges, "_known", signed)
    # The server stands for Amazon's, whose buckets have regions.
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setattr(remote, "_has_endpoint", lambda profile: False)
    options = {name: cfg.options["s3"][name] for name in ("key", "secret")}
    fs: Any = fsspec.filesystem("s3", **options)
    fs.mkdir("elsewhere", region_name="eu-west-1")
    fs.put_file(str(folder / "speech-000.tar"), "elsewhere/a.tar")
    server.fail()
    found = storage.RangeReader(StorageConfig(options={"s3": options})).read("s3://elsewhere/a.tar", 100, 900)
    assert found == (folder / "speech-000.tar").read_bytes()[100:1000]
    (((address, _), _),) = signed.values()
    assert "X-Amz-Credential=key%2F" in address
    assert "%2Feu-west-1%2Fs3%2Faws4_request" in address


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_store_that_gives_no_access_is_waited_for_as_long_as_a_request(scheme: str) -> None:
    """A region, or a token, is asked for within the library."""
    asked = threading.Event()
    fs = Mock()
    fs.sign = fs.credentials.apply = lambda *_, **__: asked.wait(30)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.1 s"):
        store_ranges.read_plainly(f"{scheme}://b/a.tar", 0, 1, StorageConfig(timeout_s=0.1), lambda: (fs, "b/a.tar"))
    assert time.monotonic() - started < 10
    asked.set()


def test_regions_are_asked_for_where_no_other_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = tmp_path / "config"
    profiles.write_text(
        "[default]\nregion = eu-west-1\n[profile own]\nendpoint_url = http://127.0.0.1:9\n"
        "[profile other]\nservices = s\n[services s]\ns3 =\n  endpoint_url = http://127.0.0.1:9\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profiles))
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    remote._profile_has_endpoint.cache_clear()

    def asked(**options: str) -> bool:
        fs, _ = remote._filesystem("s3://bucket/a.tar", StorageConfig(options={"s3": options}))
        return bool(fs.cache_regions)

    assert [asked(key="regions"), asked(profile="own"), asked(profile="other")] == [True, False, False]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert not asked(key="regions")
    remote._profile_has_endpoint.cache_clear()


def test_googles_objects_are_read_as_gcsfs_reads_them_with_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gcsfs.core import GCSFileSystem
    from google.auth.credentials import Credentials

    class Renewed(Credentials):
        renewals = 0

        def refresh(self, request: Any) -> None:
            self.renewals += 1
            self.token = f"token-{self.renewals}"
            self.expiry = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(hours=1)

    monkeypatch.setattr(store_ranges, "_refused", set())
    names = ("set/a.tar", "set/b c%+é.tar")
    place = tmp_path / "google" / "download/storage/v1/b/bucket/o"
    place.mkdir(parents=True)
    for name in names:
        (place / quote(name, safe="")).write_bytes(RAW)
    with http_server(tmp_path / "google") as google:
        fs: Any = GCSFileSystem(token=(credentials := Renewed()), endpoint_url=google.url)

        def read(name: str, offset: int) -> bytes | None:
            path = f"bucket/{name}"
            return store_ranges.read_plainly(f"gs://{path}", offset, 5000, QUICK, lambda: (fs, path))

        for name in names:
            wanted = fs.cat_file(f"bucket/{name}", start=77, end=5077)
            google.fail()
            assert read(name, 77) == wanted == RAW[77:5077]
            assert google.requests[0].endswith("with a token")
        assert read(names[0], 5) == RAW[5:5005]
        assert credentials.renewals == 1
        credentials.expiry = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(minutes=4)
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 61)
        assert read(names[0], 6) == RAW[6:5006]
        assert credentials.renewals == 2, "some minutes before it expires"
        # As with S3: what is refused is left to the library, and not asked for again.
        monkeypatch.setattr(store_ranges, "_known", {})
        google.fail("403")
        assert (read(names[0], 7), read(names[0], 7)) == (None, None)
        assert len(google.requests) == 1


def test_the_hub_is_read_by_range_and_its_redirects_are_remembered(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "hub" / "datasets" / "me" / "set" / "resolve"
    for revision in ("main", "v1"):
        (place / revision / "deep").mkdir(parents=True)
        (place / revision / "deep" / "x.tar").write_bytes(RAW[: 1 << 20] if revision == "main" else RAW[1 << 20 :])
    with http_server(tmp_path / "hub") as hub:
        # Another host than that of the redirects.
        options = {"hf": {"endpoint": hub.url.replace("127.0.0.1", "localhost"), "token": "hf_secret"}}
        cfg = StorageConfig(retries=2, first_wait_s=0.01, timeout_s=5, options=options)
        for url, raw in (
            ("hf://datasets/me/set/deep/x.tar", RAW),
            ("hf://datasets/me/set@v1/deep/x.tar", RAW[1 << 20 :]),
        ):
            reader = storage.RangeReader(cfg)
            hub.fail("moved")
            assert [reader.read(url, i * 100, 50) for i in range(4)] == [raw[i * 100 : i * 100 + 50] for i in range(4)]
            # One request to the hub, with the token; all others to where it leads, without.
            assert ["token" in line for line in hub.requests] == [True] + [False] * 4
            assert all("/moved/" in line for line in hub.requests[1:])
            # The store's signature expires: the hub is asked again.
            hub.fail("403", "moved")
            assert reader.read(url, 700, 10) == raw[700:710]
            assert [line.split()[0] for line in hub.requests] == ["403", "moved", "ok"]
        hub.fail("401")
        with pytest.raises(RemoteError, match=r"401 .*HF_TOKEN"):
            storage.RangeReader(cfg).read("hf://datasets/me/other/x.tar", 0, 1)
        with pytest.raises(FileNotFoundError):
            storage.size_of("hf://datasets/me/set/none.tar", cfg)


def test_a_server_that_asks_for_patience_gets_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from qa_train.data.stores import web_ranges

    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    asked = iter([{"retry-after": "7"}, {"retry-after": "3"}, {}])
    refuse = web_ranges.Refused

    def with_header(answer: Any) -> web_ranges.Refused:
        return refuse(dataclasses.replace(answer, headers=next(asked)))

    monkeypatch.setattr(web_ranges, "Refused", with_header)
    server.fail("503", "429", "503")
    assert storage.size_of(f"{server.url}/raw.bin", QUICK) == len(RAW)
    assert waits[:2] == [7.0, 3.0]
    assert waits[2] < 1


def test_a_proxy_of_the_environment_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers for a host that does not exist, because it is named as the proxy."""
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    server.fail("503")
    with pytest.raises(RemoteError, match="503"):
        storage.size_of("http://nowhere.invalid/raw.bin", StorageConfig(retries=0, timeout_s=2))
    assert "nowhere.invalid" in server.requests[0]
