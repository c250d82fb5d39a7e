"""Foreign WebDataset tars at addresses: read once, in order, into shards; the library decodes and opens nothing."""

from __future__ import annotations

import http.server
import io
import json
import os
import pickle
import re
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import webdataset

from data_pipelines import importers
from data_pipelines.corpora.base import Drop, Request
from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.catalogue import corpus_of
from data_pipelines.importing.import_report import Report
from qa_train.config import StorageConfig
from qa_train.data.shards.index import build_index, load_index
from tests.data.odd_audio import raw
from tests.data_pipelines.corpora.made_up import tone
from tests.train.conftest import metrics
from tests.train.conftest import run as start

QUICK = StorageConfig(retries=0, first_wait_s=0.01, timeout_s=5)
PATTERN = "x-{000..002}.tar"


class Server:
    """Serves a folder by byte range, and remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        asked: list[tuple[str, int, int]] = []
        served, self.answers = self, True

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = folder / self.path.partition("?")[0].lstrip("/")
                if not served.answers:
                    self.send_error(403)
                    return
                if not path.is_file():
                    self.send_error(404)
                    return
                body = path.read_bytes()
                first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
                part = body[first : last + 1]
                asked.append((path.name, first, len(part)))
                self.send_response(206)
                self.send_header("Content-Length", str(len(part)))
                self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(body)}")
                self.send_header("ETag", f'"{zlib.crc32(body)}"')
                self.end_headers()
                self.wfile.write(part)

            def log_message(self, *_: object) -> None:
                pass

        self.asked, self.folder = asked, folder
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def read(self) -> set[str]:
        """Files of which more was asked for than how long they are."""
        return {name for name, _, length in self.asked if length > 1}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    made = Server(tmp_path / "served")
    yield made
    made.close()


class Attack:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.path,)


def speech(i: int) -> dict[str, Any]:
    return {"flac": tone(f"{i}.flac"), "txt": f"text {i}"}


def run(path: Any, out: Path, **options: Any) -> Report:
    known = {
        "path": path if isinstance(path, list) else str(path),
        "out": str(out),
        "split": "train",
        "workers": 0,
        "storage": QUICK,
    }
    (report,) = import_corpus(corpus_of("webdataset"), ImportConfig(**(known | options)))
    return report


def write(folder: Path, make: Callable[[int], dict[str, Any]], count: int = 6, per_shard: int = 2) -> None:
    """Shards of webdataset's own writer, which encodes by extension."""
    with webdataset.ShardWriter(str(folder / "x-%03d.tar"), maxcount=per_shard, verbose=0) as sink:
        for i in range(count):
            sink.write({"__key__": f"s{i}", **make(i)})


def records(out: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(out.glob("*.tar")):
        for row in load_index(str(path)).table.to_pylist():
            fields = {k: v for k, v in json.loads(row["meta"]).items() if k not in ("source", "split")}
            found.append({"key": row["key"], **fields})
    return found


LAYOUTS: dict[str, tuple[Callable[[int], dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "text": (speech, {}, {"text": "text 0"}),
    "class": (lambda i: {"wav": tone("a.wav"), "cls": i}, {"columns": {"label": "cls"}}, {"label": "0"}),
    "json": (lambda i: {"mp3": tone("a.mp3"), "json": {"sentence": f"so {i}", "lang": "en-US"}}, {},
             {"text": "so 0", "language": "en"}),
    "captions": (lambda i: {"opus": tone("a.opus"), "json": {"caption": [f"rain {i}", "drops"]}}, {},
                 {"caption": "rain 0"}),
    "named": (lambda i: {"ogg": tone("a.ogg"), "metadata.json": {"place": {"of": "Rome"}}, "transcript.txt": f"t {i}"},
              {"columns": {"scene": "metadata.place.of", "text": "transcript"}}, {"scene": "Rome", "text": "t 0"}),
    "two clips": (lambda i: {"mic.wav": tone("m.wav"), "far.wav": tone("f.wav"), "txt": "so"},
                  {"columns": {"audio": "mic.wav"}}, {"text": "so"}),
    "m4a": (lambda i: {"m4a": raw("aac.m4a"), "txt": "so"}, {}, {"text": "so"}),
    "mp4": (lambda i: {"mp4": raw("video.mp4"), "txt": "so"}, {}, {"text": "so"}),
    "kept": (speech, {"audio": "keep"}, {"text": "text 0"}),
    "foreign": (lambda i: {"wav": tone("a.wav"), "txt": "so", "npy": b"\x93NUMPY", "jpg": b"\xff\xd8", "JPG2": b"\xff"},
                {}, {"text": "so"}),
    "filtered": (lambda i: {"wav": tone("a.wav"), "json": {"text": "so", "language": "en" if i else "de"}},
                 {"where": {"language": "en"}, "fields": {"license": "mine"}},
                 {"text": "so", "language": "en", "license": "mine"}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stream_gives_what_the_files_give(layout: str, server: Server, tmp_path: Path) -> None:
    make, options, first = LAYOUTS[layout]
    write(server.folder, make, per_shard=6)
    streamed = run(f"{server.url}/x-000.tar", tmp_path / "streamed", **options)
    whole = run(server.folder / "x-000.tar", tmp_path / "local", **options)
    one, other = (tmp_path / name / "webdataset-train-00000.tar" for name in ("streamed", "local"))
    assert one.read_bytes() == other.read_bytes()
    assert records(one.parent) == records(other.parent)
    assert records(one.parent)[0].items() >= first.items()
    assert (streamed.made, streamed.bad, streamed.dropped) == (whole.made, whole.bad, whole.dropped)
    assert streamed.made == {"captions": 12, "filtered": 5}.get(layout, 6)
    assert streamed.hours == pytest.approx(whole.hours)
    assert streamed.notes == whole.notes


def test_each_file_is_read_once_from_beginning_to_end(server: Server, tmp_path: Path) -> None:
    write(server.folder, lambda i: {"wav": tone("a.wav", 8.0), "txt": f"so {i}"}, count=36, per_shard=12)
    run(f"{server.url}/{PATTERN}", tmp_path / "out", audio="keep")
    for name in ("x-000.tar", "x-001.tar", "x-002.tar"):
        size = (server.folder / name).stat().st_size
        assert size > 2.5e6
        parts = [(first, length) for asked, first, length in server.asked if asked == name and length > 1]
        assert sum(length for _, length in parts) < 1.01 * size + 1000
        assert parts == sorted(parts)


def test_pickles_stay_shut_and_no_program_runs(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bait = tmp_path / "bait"
    write(server.folder, lambda i: speech(i) | {name: pickle.dumps(Attack(bait)) for name in ("pyd", "pickle", "pth")})

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(webdataset.tariterators.gopen, "gopen", opened)
    monkeypatch.setattr("subprocess.Popen", opened)
    assert run(f"{server.url}/{PATTERN}", tmp_path / "out").made == 6
    assert not bait.exists()
    for address in (
        f"pipe:mkdir {bait}", f"pipe://mkdir {bait}", f"pipe:mkdir {bait}; cat x.tar",
        f"{server.url}/x-000.tar::pipe:mkdir {bait}",
        f"ais://{bait}", "hf://datasets/a/x.tar", "sftp://h/x.tar", "htgs://b/x.tar", "file:///x.tar", "-",
    ):  # fmt: skip
        with pytest.raises((ValueError, OSError)):
            run(address, tmp_path / "other")
    assert not bait.exists()


def test_an_import_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    write(server.folder, speech)
    gone = server.folder / "x-001.tar"
    body = gone.read_bytes()
    gone.unlink()
    with pytest.raises(ValueError, match=r"webdataset-train-00001\.tar was not made: .*x-001\.tar.*404"):
        run(f"{server.url}/{PATTERN}", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["webdataset-train-00000.tar"]
    gone.write_bytes(body)
    server.asked.clear()
    # A signature that changes is no other file.
    signed = [f"{server.url}/x-00{i}.tar?X-Signature=abcdef{i}" for i in range(3)]
    report = run(signed, tmp_path / "out")
    assert (report.made, report.shards) == (6, 3)
    assert server.read() == {"x-001.tar", "x-002.tar"}
    written = "".join(p.read_text() for p in (tmp_path / "out").rglob("*.json*"))
    assert "abcdef" not in written
    server.asked.clear()
    assert run(f"{server.url}/{PATTERN}", tmp_path / "out").made == 6
    assert not server.read()
    told = tmp_path / "out/webdataset-train-00000.tar.streamed.json"
    known = json.loads(told.read_text())
    assert known["version"]
    # Of some the server did not tell.
    told.write_text(json.dumps(known | {"version": ""}))
    assert run(f"{server.url}/{PATTERN}", tmp_path / "out").made == 6
    assert not server.read()
    told.write_text(json.dumps(known))
    # One that was replaced is read again, when the server tells.
    write(server.folder, lambda i: speech(i) | {"txt": f"another {i}"})
    (server.folder / "x-000.tar").write_bytes(body)
    assert run(f"{server.url}/{PATTERN}", tmp_path / "out").made == 6
    assert server.read() == {"x-000.tar", "x-001.tar", "x-002.tar"}
    assert [record["text"] for record in records(tmp_path / "out")][1:4] == ["text 3", "another 2", "another 3"]
    server.asked.clear()
    server.answers = False
    report = run(f"{server.url}/{PATTERN}", tmp_path / "out")
    assert report.made == 6
    assert "whether the files of 3 finished shards were replaced is not known: http" in report.text()
    server.answers = True
    assert run(f"{server.url}/{PATTERN}", tmp_path / "out", fields={"license": "x"}).made == 6
    assert len(server.read()) == 3


def test_tars_of_one_name_are_told_apart_by_their_folders(server: Server, tmp_path: Path) -> None:
    for part in ("a", "b", "b/c"):
        (server.folder / part).mkdir()
        write(server.folder / part, lambda i, part=part: speech(i) | {"txt": f"{part} {i}"}, count=2)  # type: ignore[misc]
    write(server.folder, speech, count=1)
    (server.folder / "x-000.tar").rename(server.folder / "alone.tar")
    names = ["a/x-000.tar", "b/c/x-000.tar", "b/x-000.tar", "alone.tar"]
    streamed = run([f"{server.url}/{name}" for name in names], tmp_path / "streamed")
    local = run([str(server.folder / name) for name in names], tmp_path / "local")
    assert (streamed.made, local.made) == (7, 7)
    found = records(tmp_path / "streamed")
    by_key = {each["key"]: each for each in records(tmp_path / "local")}
    assert found == [by_key[each["key"]] for each in found]
    # Of this machine and of a server in one import, and names that folders do not tell apart.
    (server.folder / "b-c").mkdir()
    write(server.folder / "b-c", speech, count=1)
    several = [str(server.folder / "a/x-000.tar"), *(f"{server.url}/{part}/x-000.tar" for part in ("b/c", "b-c"))]
    assert run(several, tmp_path / "mixed").made == 5
    assert len({each["key"] for each in records(tmp_path / "mixed")}) == 5
    assert [each["key"].removeprefix("webdataset-train-") for each in found] == [
        "a-x-000-s0", "a-x-000-s1", "b-c-x-000-s0", "b-c-x-000-s1", "b-x-000-s0", "b-x-000-s1", "alone-s0",
    ]  # fmt: skip


def _cut(at: float) -> Callable[[bytes, list[tarfile.TarInfo]], bytes]:
    def cut(body: bytes, infos: list[tarfile.TarInfo]) -> bytes:
        info = infos[2]
        return body[: int(info.offset + at * (info.offset_data + info.size - info.offset))]

    return cut


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_cut(0.0), "cut between members"),
        (_cut(0.02), "cut between members"),
        (_cut(0.5), "cut short"),
        (lambda body, infos: body[: infos[2].offset] + bytes(1024) + body[infos[2].offset + 1024 :], "data after them"),
        (lambda body, infos: body[: infos[2].offset] + b"x" * 512 + body[infos[2].offset + 512 :], "damaged"),
    ],
)
def test_a_cut_tar_is_an_error_with_its_byte_and_key(
    damage: Callable[[bytes, list[tarfile.TarInfo]], bytes], why: str, server: Server, tmp_path: Path
) -> None:
    write(server.folder, speech)
    path = server.folder / "x-001.tar"
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
    path.write_bytes(damage(path.read_bytes(), infos))
    # The library ends here without a word, or with a message that names no byte.
    with suppress(tarfile.ReadError):
        assert len(list(webdataset.WebDataset(str(path), shardshuffle=False))) < 2
    place = rf"at byte {infos[2].offset}, after member 's2\.txt'"
    with pytest.raises(ValueError, match=rf"00001\.tar was not made: .*x-001\.tar: .*{why}.* {place}"):
        run(f"{server.url}/{PATTERN}", tmp_path / "out")
    assert not (tmp_path / "out/webdataset-train-00001.tar").exists()
    assert (tmp_path / "out/webdataset-train-00000.tar").exists()


def bad_at(*numbers: int) -> Callable[[int], dict[str, Any]]:
    """Speech, of which some is no sound, or has no text."""

    def make(i: int) -> dict[str, Any]:
        if i not in numbers:
            return speech(i)
        return {"flac": b"no sound", "txt": "so"} if i % 2 else {"flac": tone("a.flac")}

    return make


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_samples_count_against_the_budget(workers: int, server: Server, tmp_path: Path) -> None:
    write(server.folder, bad_at(0, 3, 7), count=30, per_shard=10)
    url = f"{server.url}/{PATTERN}"
    with pytest.raises(ValueError, match=r"samples cannot be used .* error_budget=0\.05 allows 1"):
        run(url, tmp_path / "strict", error_budget=0.05)
    report = run(url, tmp_path / "loose", error_budget=0.1, workers=workers)
    assert (report.made, report.bad, report.listed) == (27, 3, 30)
    assert sum(report.dropped.values()) == 3
    told = (tmp_path / "loose/webdataset-train-00000.tar.dropped.jsonl").read_text().splitlines()
    assert len(told) == 3
    assert all(json.loads(line)["error"] for line in told)


def test_the_budget_is_that_of_all_files(server: Server, tmp_path: Path) -> None:
    write(server.folder, bad_at(0, 1, 2), count=60, per_shard=20)
    # 3 of the first 20, of 60 in all.
    assert run(f"{server.url}/{PATTERN}", tmp_path / "out", error_budget=0.05).bad == 3
    # With nothing usable the import ends at the first file.
    server.asked.clear()
    with pytest.raises(ValueError, match=r"20 of 20 samples cannot be used \(1 of 3 files\)"):
        run(f"{server.url}/{PATTERN}", tmp_path / "other", columns={"audio": "mic.wav"})
    assert server.read() == {"x-000.tar"}


def test_the_first_samples_alone(server: Server, tmp_path: Path) -> None:
    write(server.folder, speech)
    report = run(f"{server.url}/{PATTERN}", tmp_path / "out", max_samples=3)
    assert report.made == 3
    assert server.read() == {"x-000.tar", "x-001.tar"}
    assert [record["text"] for record in records(tmp_path / "out")] == ["text 0", "text 1", "text 2"]
    assert run(f"{server.url}/{PATTERN}", tmp_path / "out").made == 6


def test_ids_notes_and_splits(server: Server, tmp_path: Path) -> None:
    write(server.folder, lambda i: speech(i) | {"json": {"split": "test" if i % 3 else "train", "extra": 1}})
    for path in server.folder.glob("*.tar"):
        with tarfile.open(path, "a") as tar:
            for name in ("README", "__meta__", ".DS_Store", "._s9.flac", "a.__key__"):
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"x"))
    report = run(f"{server.url}/{PATTERN}", tmp_path / "out", split="test", purpose="eval")
    assert report.made == 4
    ids = (tmp_path / "out/webdataset-test.blocklist.txt").read_text().splitlines()[1:]
    assert ids == [f"webdataset:x-00{i // 2}-s{i}" for i in (1, 2, 4, 5)]
    assert [note for note in report.notes if "no key" in note] == [
        "members that belong to no key: README, __meta__, .DS_Store, a.__key__ (4); the like in 3 files"
    ]
    assert any(re.match(r"columns that were not used: extra .*in 3 files", note) for note in report.notes)
    block = [str(tmp_path / "out/webdataset-test.blocklist.txt")]
    assert run(f"{server.url}/{PATTERN}", tmp_path / "train", block=block).made == 2


def test_a_share_is_held_out(server: Server, tmp_path: Path) -> None:
    write(server.folder, speech, count=24, per_shard=8)
    url = f"{server.url}/{PATTERN}"
    made = [
        run(url, tmp_path / split, split=split, purpose=purpose, split_share=0.5).made
        for split, purpose in (("train", "train"), ("test", "eval"))
    ]
    assert sum(made) == 24
    assert min(made) > 3
    with pytest.raises(ValueError, match="has no column split"):
        run(url, tmp_path / "none", split="test", purpose="eval")


def test_leftovers_and_what_others_made_are_refused(server: Server, tmp_path: Path) -> None:
    write(server.folder, speech)
    run(f"{server.url}/{PATTERN}", tmp_path / "out")
    with pytest.raises(ValueError, match="shards of an earlier import"):
        run(f"{server.url}/x-000.tar", tmp_path / "out")
    with pytest.raises(ValueError, match="audio=in_place is for files of this machine"):
        run(f"{server.url}/{PATTERN}", tmp_path / "in-place", audio="in_place")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/webdataset-train-00000.tar").write_bytes(b"mine")
    with pytest.raises(ValueError, match="was not made by an import"):
        run(f"{server.url}/{PATTERN}", tmp_path / "mine")


def test_samples_of_equal_names_are_noticed(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body in (("x.wav", tone("a.wav")), ("x.txt", b"so"), ("x.WAV", tone("b.wav")),
                           ("y.wav", tone("a.wav")), ("y.txt", b"so"), ("z.txt", b"1"), ("z.txt", b"2")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    (tmp_path / "s.tar").write_bytes(out.getvalue())
    found = list(corpus_of("webdataset").read(Request((str(tmp_path / "s.tar"),), "train")))
    assert [(item.name, item.reason if isinstance(item, Drop) else "") for item in found] == [
        ("s-x", "duplicate key"), ("s-y", ""), ("s-z", "duplicate key"),
    ]  # fmt: skip
    assert importers.plain("a.b/c") == "a_b_c"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["indexed", "streamed"])
def test_shards_that_the_library_wrote_train(way: str, server: Server, tmp_path: Path) -> None:
    words = "seven green birds sing over the quiet river".split()
    write(server.folder, lambda i: {"flac": tone(f"{i}.flac", 0.8), "json": {"text": " ".join(words[i : i + 3])}})
    shards = server.folder
    if way == "indexed":
        build_index(sorted(shards.glob("*.tar")))
    else:
        shards = tmp_path / "out"
        assert run(f"{server.url}/{PATTERN}", shards).made == 6
    start(
        "pretrain", "experiment=smoke", "data=empty", f"+data.sources={{mine:{{shards:['{shards}/*.tar'],task:asr}}}}",
        f"run.dir={tmp_path / 'run'}", "trainer.max_steps=2", "data.shuffle_window=100",
    )  # fmt: skip
    steps = metrics(tmp_path / "run")
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["audio_s"] > 1 and step["skipped_samples"] == 0 and step["loss"] > 0 for step in steps)
