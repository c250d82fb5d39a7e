"""Tars as other tools make them: macOS, Windows, hard links, dots in keys, other types; and files that are no tar."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
import webdataset

from qa_train.command_line.command_table import run
from qa_train.data.shards.index import build_index, scan
from qa_train.data.shards.tar import DamagedShard, members
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.tools.clean import CleanConfig, clean
from tests.data.conftest import noise
from tests.data.odd_audio import raw
from tests.data.test_index import flac, plain_tar

WAV = flac(noise(0.3))


def found(path: str) -> dict[str, tuple[list[str], str | None]]:
    """Key -> names of the clips and transcript of each record."""
    rows = scan(path).table.to_pylist()
    return {row["key"]: (row["names"], json.loads(row["meta"]).get("text")) for row in rows}


def test_what_macos_adds_is_ignored_and_counted(tmp_path: Path) -> None:
    double = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(100)
    files = []
    for k in range(3):
        for kind, content in (("json", b'{"text": "hello"}'), ("wav", WAV)):
            files += [(f"./._clip{k}.{kind}", double), (f"./clip{k}.{kind}", content)]
    files += [("__MACOSX/._clip0.json", double), ("./.DS_Store", b"x")]
    (index,) = build_index([plain_tar(tmp_path / "a.tar", files)])
    assert index.table["key"].to_pylist() == ["./clip0", "./clip1", "./clip2"]
    assert sorted(map(str, index.problems)) == [
        "ignored 1 members of type .ds_store",
        "ignored 7 members of macOS (._NAME; COPYFILE_DISABLE=1 tar leaves them out)",
    ]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("A.WAV", "A.TXT"), "good morning"),
        (("A.Flac", "A.Txt"), "good morning"),
        (("A.MP3", "A.JSON"), "from json"),
        (("A.wav", "A.JSON", "A.TXT"), "from json"),
    ],
)
def test_case_of_extensions_does_not_matter(names: tuple[str, ...], text: str, tmp_path: Path) -> None:
    content = {"TXT": b"good morning", "JSON": b'{"text": "from json"}'}
    files = {name: content.get(name.rpartition(".")[2].upper(), WAV) for name in names}
    assert found(plain_tar(tmp_path / "a.tar", files)) == {"A": ([names[0][2:]], text)}


def test_two_of_a_type_in_two_cases_are_a_fault(tmp_path: Path) -> None:
    index = scan(plain_tar(tmp_path / "a.tar", [("a.wav", WAV), ("a.json", b"{}"), ("a.JSON", b"{}")]))
    assert [problem.reason for problem in index.problems] == ["duplicate key"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfhello world\r\n", "hello world"),
        (b"one\r\ntwo\r\n", "one\ntwo"),
        ("\ufeffguten Tag\n".encode("utf-16-le"), "guten Tag"),
        ("\ufeff早上好".encode("utf-16-be"), "早上好"),
        (b"\n hello \n\n", "hello"),
    ],
)
def test_texts_of_windows(content: bytes, text: str, tmp_path: Path) -> None:
    assert found(plain_tar(tmp_path / "a.tar", {"a.wav": WAV, "a.txt": content})) == {"a": (["wav"], text)}


def test_json_with_a_mark_is_read_and_other_encodings_are_named(tmp_path: Path) -> None:
    marked = b"\xef\xbb\xbf" + b'{"text": "x"}\r\n'
    assert found(plain_tar(tmp_path / "a.tar", {"a.wav": WAV, "a.json": marked})) == {"a": (["wav"], "x")}
    for name, content in (("a.txt", "früh".encode("cp1252")), ("a.json", b'{"text": "fr\xfch"}')):
        index = scan(plain_tar(tmp_path / "b.tar", {"a.wav": WAV, name: content}))
        assert "not UTF-8 at byte" in index.problems[0].detail
        assert "iconv" in index.problems[0].detail


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.wav", "./deep/" + "n" * 120 + ".wav"])
def test_hard_links_are_the_file_that_they_name(layout: int, name: str, tmp_path: Path) -> None:
    if layout == tarfile.USTAR_FORMAT and len(name) > 100:
        pytest.skip("ustar has no room for a longer link")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=layout) as tar:
        for member, content in ((name, WAV), ("a.json", b'{"text": "x"}'), ("b.json", b'{"text": "y"}')):
            info = tarfile.TarInfo(member if member != "a.json" else name.replace(".wav", ".json"))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("b.wav")
        link.type, link.linkname = tarfile.LNKTYPE, name
        tar.addfile(link)
    index = scan(str(path))
    first, second = index.table.to_pylist()
    assert [first["key"], second["key"]] == [name[:-4], "b"]
    assert [second[field] for field in ("offsets", "sizes", "crc32c")] == [
        first[field] for field in ("offsets", "sizes", "crc32c")
    ]
    with path.open("rb") as file:
        assert [m.name for m in members(file, "", path.stat().st_size)][-1] == "b.wav"


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        (tarfile.LNKTYPE, "elsewhere.wav", r"hard link to 'elsewhere.wav'.*tar --hard-dereference"),
        (tarfile.LNKTYPE, "/etc/passwd", r"hard link to '/etc/passwd'.*not a regular file.*tar --hard-dereference"),
        (tarfile.SYMTYPE, "a.wav", r"symbolic link, not a regular file.*tar --dereference"),
        (tarfile.FIFOTYPE, "", "not a regular file"),
        (tarfile.GNUTYPE_SPARSE, "", "not a regular file.*without --sparse"),
    ],
)
def test_other_links_say_what_to_do(kind: bytes, target: str, message: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.wav")
        info.size = len(WAV)
        tar.addfile(info, io.BytesIO(WAV))
        info = tarfile.TarInfo("b.wav")
        info.type, info.linkname = kind, target
        tar.addfile(info)
    with pytest.raises(DamagedShard, match=message):
        scan(str(tmp_path / "a.tar"))


def test_what_is_no_file_and_no_member_of_a_record_is_passed_over(tmp_path: Path) -> None:
    """A label (tar -V), links, pipes, devices of a folder that was packed whole; hard links with and without "./"."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, kind in enumerate((b"V", tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)):
            info = tarfile.TarInfo(f"latest{number}" if number % 2 else f"latest{number}.txt.old")
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            tar.addfile(info)
        for name, content in (("./a.wav", WAV), ("./a.json", b'{"text": "x"}'), ("./b.json", b'{"text": "y"}')):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("./b.wav")
        info.type, info.linkname = tarfile.LNKTYPE, "a.wav"
        tar.addfile(info)
    assert scan(str(tmp_path / "a.tar")).table["key"].to_pylist() == ["./a", "./b"]


def test_headers_of_gnu_tar_are_understood(tmp_path: Path) -> None:
    """Its label in the PAX format, a folder with its list (--listed-incremental), a name of which the short form ends
    inside a character.
    """
    key = "空" * 40
    label = tarfile.TarInfo("/tmp/GlobalHead.1")
    label.type = b"g"
    folder = tarfile.TarInfo("./")
    folder.type = b"D"
    members = [(label, b"29 GNU.volume.label=my label\n"), (folder, b"Ya.flac\0Ya.json\0\0")]
    members += [(tarfile.TarInfo(f"{key}.flac"), WAV), (tarfile.TarInfo(f"{key}.txt"), b"good morning")]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert found(str(tmp_path / "a.tar")) == {key: (["flac"], "good morning")}


@pytest.mark.parametrize("names", [("a.wav", "a.text"), ("a.text", "a.wav"), ("./a.wav", "a.cls")])
def test_a_link_next_to_the_files_of_a_record_is_refused(names: tuple[str, str], tmp_path: Path) -> None:
    """It may be the text, or the label."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            if name.endswith(".wav"):
                info.size = len(WAV)
            else:
                info.type, info.linkname = tarfile.SYMTYPE, "shared"
            tar.addfile(info, io.BytesIO(WAV))
    with pytest.raises(DamagedShard, match=r"member 'a\.(text|cls)' is a symbolic link.*tar --dereference"):
        scan(str(tmp_path / "a.tar"))


def test_tars_joined_by_cat_say_so(tmp_path: Path) -> None:
    one = Path(plain_tar(tmp_path / "a.tar", {"a.wav": WAV, "a.json": b"{}"})).read_bytes()
    (tmp_path / "two.tar").write_bytes(one + one)
    with pytest.raises(DamagedShard, match=r"data after them.*tar --concatenate"):
        scan(str(tmp_path / "two.tar"))


def test_a_pointer_of_git_lfs_is_named_however_short(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    with pytest.raises(DamagedShard, match=r"it is not a tar, but .*git lfs pull"):
        scan(str(path))


def test_other_files_under_the_name_of_a_tar_are_named(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.json", "{}" * 400)
    plain = Path(plain_tar(tmp_path / "plain.tar", {"a.wav": WAV, "a.json": b"{}"})).read_bytes()
    for content, message in (
        (gzip.compress(plain), "gzip: unpack it .gunzip"),
        (bz2.compress(plain), "bzip2: unpack it"),
        (lzma.compress(plain), "xz: unpack it"),
        (packed.getvalue(), "zip archive: unpack it"),
        (b"<!DOCTYPE html><html>" + b"x" * 600, "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n" + b"x" * 600, "git lfs pull"),
    ):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(DamagedShard, match=message) as caught:
            scan(str(tmp_path / "a.tar"))
        assert "download the shard again" not in str(caught.value)


# Members by name, "" for a clip and a text for JSON; and the records with their clips and transcripts.
KEYS = {
    "dots in every key": (
        {"spk_00.5-10.2.wav": "", "spk_00.5-10.2.json": "a", "spk_00.7-1.wav": "", "spk_00.7-1.json": "b"},
        {"spk_00.5-10.2": (["wav"], "a"), "spk_00.7-1": (["wav"], "b")},
    ),
    "a key that begins another one": (
        {"5.wav": "", "5.json": "a", "5.5.wav": "", "5.5.json": "b"},
        {"5": (["wav"], "a"), "5.5": (["wav"], "b")},
    ),
    "several clips of one record": (
        {"a.flac": "", "a.1.flac": "", "a.2.flac": "", "a.json": "x"},
        {"a": (["flac", "1.flac", "2.flac"], "x")},
    ),
    "clips with notes of their own": (
        {"a.0.flac": "", "a.0.json": "n", "a.1.flac": "", "a.1.json": "n", "a.json": "x"},
        {"a": (["0.flac", "1.flac"], "x")},
    ),
    "notes beside": ({"a.wav": "", "a.seg.json": "n", "a.json": "x"}, {"a": (["wav"], "x")}),
    "several clips of a dotted key": (
        {"s.5.wav": "", "s.5.1.wav": "", "s.5.json": "a"},
        {"s.5": (["wav", "1.wav"], "a")},
    ),
    "folders with dots": ({"v1.0/a.wav": "", "v1.0/a.json": "x"}, {"v1.0/a": (["wav"], "x")}),
    "a video beside its sound": ({"a.mp4": "", "a.wav": "", "a.json": "x"}, {"a": (["wav"], "x")}),
    "not in order": (
        {"s.1.json": "a", "s.2.json": "b", "s.1.wav": "", "s.2.wav": ""},
        {"s.1": (["wav"], "a"), "s.2": (["wav"], "b")},
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_where_a_key_ends(name: str, tmp_path: Path) -> None:
    files, expected = KEYS[name]
    made = {name: json.dumps({"text": text}).encode() if text else WAV for name, text in files.items()}
    assert found(plain_tar(tmp_path / "a.tar", made)) == expected


def test_ordinary_keys_are_those_of_the_webdataset_library(tmp_path: Path) -> None:
    for name in ("several clips of one record", "clips with notes of their own", "notes beside", "folders with dots"):
        files, expected = KEYS[name]
        made = {name: json.dumps({"text": text}).encode() if text else WAV for name, text in files.items()}
        path = plain_tar(tmp_path / "a.tar", made)
        theirs = list(webdataset.WebDataset(path, shardshuffle=False, empty_check=False))
        assert [sample["__key__"] for sample in theirs] == list(expected)
        assert all(set(expected[sample["__key__"]][0]) <= set(sample) for sample in theirs)


def test_a_record_without_audio_is_not_told_to_do_without(tmp_path: Path) -> None:
    files = {"a.b.ogg2": b"x", "a.json": b'{"text": "x"}', "c.d.wav": WAV, "c.e.json": b"{}"}
    details = [p.detail for p in scan(plain_tar(tmp_path / "a.tar", files)).problems if p.key]
    assert len(details) == 2
    assert not any('"audios": []' in detail for detail in details)
    assert "no audio member next to 'a.json'" in details[0]
    chat = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'
    (problem,) = scan(plain_tar(tmp_path / "a.tar", {"a.json": chat})).problems
    assert '"audios": []' in problem.detail


def test_media_are_indexed_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av", reason="extra media")
    path = plain_tar(
        tmp_path / "a.tar", {"a.m4a": raw("aac.m4a"), "a.json": b"{}", "b.WebM": raw("webm.webm"), "b.json": b"{}"}
    )
    assert run("data index", [path]) == 0
    out = capsys.readouterr().out
    assert "2 records" in out
    assert "clips decoded with PyAV: 1 .m4a, 1 .webm; training needs the extra media too" in out


def test_writers_make_plain_keys_of_dotted_ones(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar") as writer:
        writer.write("v1.0/spk_00.5-10.2", {"text": "x"}, noise(0.5))
        assert writer.free_key("v1.0/spk_00.5-10.2") == "v1.0/spk_00-5-10-2-2"
    assert list(found(str(tmp_path / "a.tar"))) == ["v1.0/spk_00-5-10-2"]


def test_dotted_keys_go_through_cleaning(tmp_path: Path) -> None:
    files = {"s.1.wav": WAV, "s.1.json": b"{}", "s.2.wav": flac(0 * noise(0.5)), "s.2.json": b"{}"}
    path = plain_tar(tmp_path / "a.tar", files)
    build_index([path])
    clean([path], CleanConfig(), apply=True, report=tmp_path / "drops.jsonl")
    drops = [json.loads(line)["key"] for line in (tmp_path / "drops.jsonl").read_text().splitlines()]
    assert "s.2" in drops
