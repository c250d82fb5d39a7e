"""The webdataset library writes our shards, reads them, and writes those that we train on."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest
import webdataset

from qa_train.data.shards import writer as writing
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from tests.data.conftest import noise

# (key, record, clips, extension)
RECORDS: list[tuple[str, dict[str, Any], Any, Any]] = [
    ("plain", {"text": "hello"}, b"flac" * 200, "flac"),
    ("wave", {"text": "a waveform"}, noise(0.4), None),
    ("wav-sorts-after-json", {"text": "hello"}, b"w", "wav"),
    ("folder/of/keys", {"label": "bell"}, b"o" * 511, "ogg"),
    ("many", {"text": "eleven clips"}, [bytes([i]) * i for i in range(1, 12)], "mp3"),
    ("mixed", {"text": "two kinds"}, [b"f" * 512, b"o" * 513], ["flac", "opus"]),
    ("none", {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, [], None),
    ("k" * 240, {"text": "a name for an extended header"}, b"x", "flac"),
    ("p" * 90 + "/" + "q" * 90, {"text": "a name that ustar would cut in two"}, b"x", "flac"),
    ("ключ-音-é", {"text": "日本語 🎧"}, b"x", "flac"),
]  # fmt: skip


def plain_tar(members: list[tuple[str, bytes]]) -> bytes:
    """A tar of Python's tarfile, with headers of names and sizes alone."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(raw), 0o644
            tar.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def write(pattern: Path, **options: Any) -> None:
    """All records, by our writer. The clips are no audio, so it makes no index of them."""
    with ShardWriter(pattern, **options) as out:
        for key, record, clips, extension in RECORDS:
            out.write(key, record, clips, extension=extension)


@pytest.fixture
def unindexed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "build_index", lambda paths: list(paths))


@pytest.mark.usefixtures("unindexed")
def test_its_writer_gives_the_bytes_of_a_plain_tar(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    raw = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]
        assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in tar.getmembers()} == {
            (0, 0, 0, "", "", 0o644)
        }
    assert raw == plain_tar(members)
    names = [name for name, _ in members]
    assert names[:6] == ["plain.flac", "plain.json", "wave.flac", "wave.json",
                         "wav-sorts-after-json.wav", "wav-sorts-after-json.json"]  # fmt: skip
    many = [name.removeprefix("many.") for name in names if name.startswith("many.")]
    assert many == ["mp3", *(f"{i}.mp3" for i in range(1, 11)), "json"]


@pytest.mark.usefixtures("unindexed")
@pytest.mark.parametrize("limit", [1, 1024, 4096, 12_000, 1 << 20])
def test_a_shard_ends_at_the_byte_that_it_did(limit: int, tmp_path: Path) -> None:
    """The library's stream writes blocks of 10,240 bytes; what is in its buffer counts."""
    write(tmp_path / "whole.tar")
    with tarfile.open(tmp_path / "whole.tar") as tar:
        ends = [i.offset_data + -(-i.size // 512) * 512 for i in tar.getmembers() if i.name.endswith(".json")]
    wanted, start = [[0]], 0
    for number in range(1, len(RECORDS)):
        if ends[number - 1] - start >= limit:
            start = ends[number - 1]
            wanted.append([])
        wanted[-1].append(number)
    write(tmp_path / "a-%02d.tar", max_bytes=limit)
    found = []
    for path in sorted(tmp_path.glob("a-*.tar")):
        with tarfile.open(path) as tar:
            found.append([name for name in tar.getnames() if name.endswith(".json")])
    assert found == [[f"{RECORDS[number][0]}.json" for number in shard] for shard in wanted]
    assert len(found) == {1: 10, 1 << 20: 1}.get(limit, len(found))


class FullDisk(io.BytesIO):
    """Takes 20 kB."""

    def write(self, raw: Any) -> int:
        if self.tell() + len(raw) > 20_000:
            raise OSError(28, "No space left on device")
        return super().write(raw)


def write_four(path: Path, raw: bytes) -> None:
    """Four records of the same bytes."""
    with ShardWriter(path) as out:
        for i in range(4):
            out.write(f"k{i}", {"text": "so"}, raw, extension="flac")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [25_000, 9_000])
def test_a_full_disk_leaves_no_shard(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path_open = Path.open

    def opened(path: Path, mode: str = "r", *rest: Any, **named: Any) -> IO[Any]:
        if mode == "wb":
            path.touch()
            return FullDisk()
        return path_open(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OSError, match="No space left") as caught:
        write_four(tmp_path / "a.tar", b"x" * size)
    assert str(caught.value.filename).startswith(str(tmp_path / "a.tar"))
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_no_shard(tmp_path: Path) -> None:
    """`webdataset.ShardWriter` would publish what it has."""
    with suppress(RuntimeError), ShardWriter(tmp_path / "a-%02d.tar", max_samples=2) as out:
        for i in range(5):
            out.write(f"k{i}", {"text": "so"}, noise(0.3, i))
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"a-0{i}.tar{kind}" for i in range(2) for kind in ("", ".index.parquet")
    ]


def test_the_library_reads_our_shards(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "<audio><audio>Same?"}, {"role": "assistant", "content": "No."}]
    with ShardWriter(tmp_path / "a-%02d.tar", max_samples=3) as out:
        for i in range(5):
            out.write(f"d/k{i}", {"text": f"text {i} 音"}, noise(0.3, i))
        out.write("two", {"messages": chat}, [noise(0.3), noise(0.4)])
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    found = list(webdataset.WebDataset(shards, shardshuffle=False))
    rows = [row for shard in shards for row in load_index(shard).table.to_pylist()]
    assert [sample["__key__"] for sample in found] == [row["key"] for row in rows]
    for sample, row in zip(found, rows, strict=True):
        record = json.loads(row["meta"])
        assert json.loads(sample["json"]).items() <= record.items()
        assert record.get("audios", row["names"]) == row["names"]
        assert [len(sample[name]) for name in row["names"]] == row["sizes"]
        assert {name for name in sample if not name.startswith("__")} == {*row["names"], "json"}
