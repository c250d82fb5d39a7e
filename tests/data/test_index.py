"""Shards and their index: round trip, other people's tars, and every kind of damage located."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import webdataset

from qa_train.data.shards.index import SUFFIX, build_index, load_index, scan
from qa_train.data.shards.sidecar import load_summary
from qa_train.data.shards.tar import DamagedShard
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores.storage import expand
from tests.data.conftest import noise, speech_record


def flac(wave: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 16_000, format="FLAC")
    return buffer.getvalue()


TWO_CLIPS = b'{"messages": [{"role": "user", "content": "<audio><audio>"}]}'


def plain_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, raw in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return str(path)


def ten_records(folder: Path) -> Path:
    with ShardWriter(folder / "ten.tar") as writer:
        for i in range(10):
            writer.write(f"rec{i}", speech_record(i), noise(0.5, seed=i))
    return folder / "ten.tar"


@pytest.mark.parametrize("codec", ["flac", "opus", "ogg", "wav"])
def test_round_trip(codec: str, tmp_path: Path) -> None:
    records = {f"k{i}": speech_record(i) for i in range(5)}
    with ShardWriter(tmp_path / "a-%02d.tar", max_samples=2, codec=codec) as writer:
        for i, (key, record) in enumerate(records.items()):
            writer.write(key, record, noise(0.5 + i / 7, seed=i))
    assert [len(index) for index in writer.indexes] == [2, 2, 1]
    rows = [row for path in sorted(tmp_path.glob("*.tar")) for row in load_index(str(path)).table.to_pylist()]
    assert {row["key"]: json.loads(row["meta"]) for row in rows} == records
    assert [row["num_samples"][0] for row in rows] == [int((0.5 + i / 7) * 16_000) for i in range(5)]
    with (tmp_path / "a-00.tar").open("rb") as file:
        file.seek(rows[1]["offsets"][0])
        assert len(soundfile.read(io.BytesIO(file.read(rows[1]["sizes"][0])))[0]) == rows[1]["num_samples"][0]


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (ten_records(_folder(tmp_path, name)) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert load_index(str(one)).fingerprint == load_index(str(two)).fingerprint


def _folder(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_a_tar_of_the_webdataset_library_trains_after_indexing(tmp_path: Path) -> None:
    path = tmp_path / "wds.tar"
    with webdataset.TarWriter(str(path)) as sink:
        for i in range(3):
            sink.write({"__key__": f"dir/s{i}", "flac": flac(noise(0.4)), "json": {"text": "hi"}, "pyd": b"\x80"})
        sink.write({"__key__": "dir/txt", "wav": flac(noise(0.4)), "txt": "only text"})
        sink.write({"__key__": "k" * 150, "flac": flac(noise(0.4)), "json": {"label": "long name"}})
    (index,) = build_index([path])
    assert index.table["key"].to_pylist() == ["dir/s0", "dir/s1", "dir/s2", "dir/txt", "k" * 150]
    assert json.loads(index.table["meta"][3].as_py()) == {"text": "only text"}
    assert [(p.reason, p.detail) for p in index.problems] == [("ignored", "3 members of type .pyd")]


def test_several_clips_and_text_only_records(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar") as writer:
        chat = [{"role": "user", "content": "<audio><audio>Same?"}, {"role": "assistant", "content": "No."}]
        writer.write("two", {"messages": chat}, [noise(0.4), noise(0.6)])
        writer.write("none", {"messages": [{"role": "user", "content": "Hi"}]}, [])
    rows = load_index(str(tmp_path / "a.tar")).table.to_pylist()
    assert rows[0]["names"] == ["flac", "1.flac"]
    assert json.loads(rows[0]["meta"])["audios"] == ["flac", "1.flac"]
    assert rows[1]["names"] == []
    assert rows[1]["duration_s"] == 0


def _cut(at: Callable[[list[tarfile.TarInfo]], int]) -> Callable[[bytearray, list[tarfile.TarInfo]], bytes]:
    return lambda raw, infos: bytes(raw[: at(infos)])


def _overwrite(size: int, value: int, at: Callable[[list[tarfile.TarInfo]], int]) -> Any:
    def change(raw: bytearray, infos: list[tarfile.TarInfo]) -> bytes:
        start = at(infos)
        raw[start : start + size] = bytes([value]) * size
        return bytes(raw)

    return change


# Members come in pairs: rec0.flac, rec0.json, rec1.flac, ...
DAMAGE = {
    "cut between records": (_cut(lambda m: m[10].offset), "end-of-archive", "rec4.json"),
    "cut between members": (_cut(lambda m: m[11].offset), "end-of-archive", "rec5.flac"),
    "cut in a header": (_cut(lambda m: m[10].offset + 200), "", "rec4.json"),
    "cut in a payload": (_cut(lambda m: m[10].offset_data + 1000), "cut short", "rec4.json"),
    "overwritten header": (_overwrite(512, 0xA5, lambda m: m[10].offset), "header is damaged", "rec4.json"),
    "zero blocks": (_overwrite(1024, 0, lambda m: m[10].offset), "zero blocks", "rec4.json"),
    "no end blocks": (_cut(lambda m: m[19].offset_data + 512), "end-of-archive", "rec9.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_located(name: str, tmp_path: Path) -> None:
    path = ten_records(tmp_path)
    change, message, last = DAMAGE[name]
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
    path.write_bytes(change(bytearray(path.read_bytes()), infos))
    with pytest.raises(DamagedShard, match=message) as caught:
        build_index([path])
    assert str(path) in str(caught.value)
    assert repr(last) in str(caught.value)
    position = next(i for i, m in enumerate(infos) if m.name == last) + 1
    assert abs(caught.value.offset - (infos[position].offset if position < 20 else path.stat().st_size)) <= 512
    # What precedes the damage is kept on request, and the damage recorded.
    (index,) = build_index([path], keep_damaged=True)
    assert len(index) == (10 if name == "no end blocks" else 5)
    assert "damaged shard" in {p.reason for p in load_index(str(path)).problems}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_only_regular_files_are_accepted(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.json")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DamagedShard, match="not a regular file"):
        scan(str(tmp_path / "a.tar"))


def test_not_a_tar(tmp_path: Path) -> None:
    for name, raw in (("empty", b""), ("text", b"x" * 2000), ("gz", b"\x1f\x8b" + bytes(600))):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(DamagedShard, match="before its first member"):
            scan(str(tmp_path / name))


def test_bad_records_are_skipped_and_located(tmp_path: Path) -> None:
    good = {"g.flac": flac(noise(0.5)), "g.json": b'{"text": "ok"}'}
    nan = noise(0.5)
    nan[3] = np.nan
    wav = io.BytesIO()
    soundfile.write(wav, nan, 16_000, format="WAV", subtype="FLOAT")
    cases = {
        "a.flac": (flac(noise(0.5)), None, "missing sibling", "no JSON"),
        "b.json": (None, b'{"text": "x"}', "missing sibling", "no audio"),
        "c.flac": (flac(noise(0.5)), b"{", "bad record", "not JSON"),
        "d.flac": (b"nonsense", b"{}", "bad audio", "not a readable"),
        "e.flac": (flac(noise(0.02)), b"{}", "bad audio", "too few"),
        "f.wav": (wav.getvalue(), b"{}", "bad audio", "NaN"),
        "h.flac": (flac(noise(0.5)), b'{"audios": ["2.flac"]}', "missing sibling", "2.flac"),
        "i.flac": (flac(noise(0.5)), TWO_CLIPS, "bad record", "place 2 clips"),
    }  # fmt: skip
    members = list(good.items())
    for name, (audio, meta, _, _) in cases.items():
        members += [(name, audio)] if audio is not None else []
        members += [(name[0] + ".json", meta)] if meta is not None else []
    # A key that comes back after another one, and one with two members of a type.
    members += [("g.flac", flac(noise(0.5))), ("g.json", b"{}")]
    members += [("j.flac", flac(noise(0.5)))] * 2 + [("j.json", b"{}")]
    (index,) = build_index([plain_tar(tmp_path / "a.tar", members)], decode=True)
    assert index.table["key"].to_pylist() == ["g"]
    problems = {p.key: p for p in load_index(str(tmp_path / "a.tar")).problems}
    for name, (_, _, reason, detail) in cases.items():
        assert problems[name[0]].reason == reason, problems[name[0]]
        assert detail in problems[name[0]].detail
        assert problems[name[0]].offset > 0
    assert problems["g"].reason == problems["j"].reason == "duplicate key"


def test_a_changed_shard_or_index_is_refused(tmp_path: Path) -> None:
    path = ten_records(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw + bytes(512))
    with pytest.raises(ValueError, match="was changed or cut"):
        load_index(str(path))
    path.unlink()
    with pytest.raises(ValueError, match="its shard"):
        load_index(str(path))
    path.write_bytes(raw)
    side = Path(str(path) + SUFFIX)
    side.write_bytes(side.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is damaged .*data index"):
        load_index(str(path))
    side.unlink()
    with pytest.raises(ValueError, match="has no index; run: qa-train data index"):
        load_index(str(path))
    with pytest.raises(ValueError, match="check the path of the shard"):
        load_index(str(path) + ".elsewhere.tar")
    build_index([path])
    assert len(load_index(str(path))) == 10


def test_the_writer_refuses_what_would_not_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must end in"):
        ShardWriter(tmp_path / "a.tar.gz")
    with pytest.raises(ValueError, match="codec 'm4a'"):
        ShardWriter(tmp_path / "a.tar", codec="m4a")
    writer = ShardWriter(tmp_path / "a.tar")
    writer.write("a", {}, noise(0.5))
    for key, audio, message in (
        ("a", noise(0.5), "already written"),
        ("", noise(0.5), "must not be empty"),
        ("c", np.array([np.nan], dtype=np.float32), "finite"),
        ("d", b"raw", "extension None"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.write(key, {}, audio)
    with pytest.raises(ValueError, match="'text' must be text"):
        writer.write("e", {"text": 3}, noise(0.5))
    writer.close()
    assert len(load_index(str(tmp_path / "a.tar"))) == 1


def test_a_failed_writer_leaves_no_shard(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path / "a.tar") as writer:
            writer.write("a", {}, noise(0.5))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_reading_an_index_starts_no_thread(tmp_path: Path) -> None:
    """A thread of Arrow's that still holds a Python file when the interpreter ends would abort the process."""
    shard = ten_records(tmp_path)
    program = """
import os, sys
import numpy, torch, pyarrow.parquet
from qa_train.data.shards.catalog import read_catalog, write_catalog
from qa_train.data.shards.sidecar import load_index, load_rows, load_summary
shard, catalog = sys.argv[1:]
write_catalog([shard], catalog)
before = os.listdir("/proc/self/task")
summary = load_summary(shard)
load_index(shard), load_rows(shard, summary.fingerprint, ["key"]), list(read_catalog(catalog))
print(len(os.listdir("/proc/self/task")) - len(before))
"""
    words = [sys.executable, "-c", program, str(shard), str(tmp_path / "all.catalog.parquet")]
    more = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert int(more) <= 0  # one of an import may end meanwhile


def test_files_that_are_no_shards_say_what_makes_some() -> None:
    for name, remedy in (
        ("a.jsonl", "from-jsonl"), ("https://h/a.tar.gz", "gunzip"), ("a.tar.index.parquet", r"name the \.tar"),
        ("b.parquet", "import huggingface"), ("a.csv", "import table"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} is not a shard but .*{remedy}"):
            expand([name])


def test_a_text_beside_a_json_of_facts_is_the_transcript_and_other_texts_are_counted(tmp_path: Path) -> None:
    sound = flac(noise(0.5))
    members = [
        ("d/a.flac", sound), ("d/a.json", b'{"language": "en"}'), ("d/a.spk.txt", b"anne"), ("d/a.txt", b"hello \n"),
        ("d/b.flac", sound), ("d/b.json", b'{"text": "mine"}'), ("d/b.txt", b"other"), ("d/b.cls", b"3"),
        ("d/c.flac", sound), ("d/c.json", b'{"text": null}'), ("d/c.txt", b"said"),
    ]  # fmt: skip
    path = plain_tar(tmp_path / "foreign.tar", members)
    (index,) = build_index([path])
    assert [json.loads(meta) for meta in index.table["meta"].to_pylist()] == [
        {"language": "en", "text": "hello"}, {"text": "mine"}, {"text": "said"},
    ]  # fmt: skip
    assert [str(problem) for problem in index.problems] == [
        "ignored 1 members of type .cls", "ignored 1 members of type .spk.txt",
    ]  # fmt: skip
    assert not load_summary(path).problems


def test_the_command_fails_where_no_record_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qa_train.command_line.command_table import run

    def shard(name: str, *records: bytes) -> str:
        with tarfile.open(tmp_path / name, "w") as tar:
            for number, record in enumerate(records):
                info = tarfile.TarInfo(f"k{number}.json")
                info.size = len(record)
                tar.addfile(info, io.BytesIO(record))
        return str(tmp_path / name)

    none = shard("none.tar", b"{", b"[]")
    some = shard("some.tar", b"{", b'{"messages": [{"role": "user", "content": "hi"}], "audios": []}')
    empty = shard("empty.tar")
    assert run("data index", [some]) == 0
    assert run("data index", [none]) == 2
    assert run("data index", [none, some, empty]) == 2
    shown = capsys.readouterr().err
    assert f"{none}: no usable record, 2 skipped" in shown
    assert f"{empty}: no usable record, 0 skipped" in shown
    assert some not in shown
