"""WebDataset tars of others: what lies beside the audio is a column, whatever its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.corpora.base import Drop, Item, Request
from data_pipelines.importing.catalogue import corpus_of
from tests.data_pipelines.corpora.foreign_cases import tar_bytes
from tests.data_pipelines.corpora.made_up import tone

WAVE = tone("x.wav")


def read(tmp_path: Path, members: dict[str, Any], split: str = "train", **columns: str) -> list[Item | Drop]:
    """What the reader finds in a tar of these members; texts and objects are written as bytes."""
    made = {n: raw if isinstance(raw, bytes) else json.dumps(raw).encode() for n, raw in members.items()}
    (tmp_path / "s.tar").write_bytes(tar_bytes(made))
    request = Request((str(tmp_path / "s.tar"),), split, columns)
    found = list(corpus_of("webdataset").read(request))
    assert not found or isinstance(found[0], Item | Drop)
    return [*found, *([Drop("note", note) for note in request.notes])]


@pytest.mark.parametrize(
    ("members", "columns", "wanted"),
    [
        ({"x.wav": WAVE, "x.txt": b"good morning\r\n"}, {}, {"text": "good morning"}),
        ({"x.wav": WAVE, "x.txt": b"\xef\xbb\xbfguten Tag"}, {}, {"text": "guten Tag"}),
        ({"x.wav": WAVE, "x.cls": b"7"}, {"label": "cls"}, {"label": "7"}),
        ({"x.wav": WAVE, "x.CLS": b"7"}, {"label": "cls"}, {"label": "7"}),
        ({"x.wav": WAVE, "x.caption.txt": b"rain"}, {}, {"caption": "rain"}),
        ({"x.wav": WAVE, "x.json": {"sentence": "so", "lang": "en-US"}}, {}, {"text": "so", "language": "en"}),
        ({"x.wav": WAVE, "x.metadata.json": {"a": {"b": "so"}}}, {"text": "metadata.a.b"}, {"text": "so"}),
        ({"x.wav": WAVE, "x.a.metadata.json": {"b": "so"}}, {"text": "a_metadata.b"}, {"text": "so"}),
        ({"x.wav": WAVE, "x.json": {"text": "json"}, "x.text.txt": b"file"}, {}, {"text": "file"}),
        ({"x.text.txt": b"file", "x.json": {"text": "json"}, "x.wav": WAVE}, {}, {"text": "file"}),
        ({"x.wav": WAVE, "x.json": {"caption": ["one"]}}, {}, {"caption": "one"}),
        ({"x.wav": WAVE, "x.json": {"caption": ["a ", "b"]}}, {}, {"caption": "a", "captions": ["a", "b"]}),
        ({"x.wav": WAVE, "x.json": {"caption": ["", "a", " ", "b"]}}, {}, {"caption": "a", "captions": ["a", "b"]}),
        ({"x.wav": WAVE, "x.json": {"caption": ["", "a"]}}, {}, {"caption": "a"}),
        ({"x.wav": WAVE, "x.caps.json": ["a", "b"]}, {"caption": "caps"}, {"caption": "a", "captions": ["a", "b"]}),
        ({"x.wav": WAVE, "x.txt": b"so", "x.boxes.json": [1], "x.n.json": 7, "x.npy": b"\x93"}, {}, {"text": "so"}),
        ({"d.1/x.wav": WAVE, "d.1/x.txt": b"so"}, {}, {"text": "so"}),
        ({"x.wav": WAVE, "x.mp4": b"\0", "x.txt": b"so"}, {}, {"text": "so"}),
        ({"x.mic.wav": WAVE, "x.far.wav": WAVE, "x.txt": b"so"}, {"audio": "mic.wav"}, {"text": "so"}),
        ({"._x.wav": b"\0", "x.wav": WAVE, "x.txt": b"so", "x.npy": b"\x93NUMPY"}, {}, {"text": "so"}),
    ],
)
def test_what_lies_beside_the_audio(
    members: dict[str, Any], columns: dict[str, str], wanted: dict[str, Any], tmp_path: Path
) -> None:
    item, *notes = read(tmp_path, members, **columns)
    assert isinstance(item, Item), item
    assert item.record == wanted
    (clip,) = item.audio
    assert (tmp_path / "s.tar").read_bytes()[clip.offset or 0 :][: clip.size] == WAVE
    assert [note.reason.split(";")[0] for note in notes if isinstance(note, Drop)] == (
        ["columns that were not used: " + ("boxes (1), n (1), npy (1)" if "x.n.json" in members else "npy (1)")]
        if "x.npy" in members
        else []
    )


@pytest.mark.parametrize(
    ("members", "columns", "reason", "why"),
    [
        ({"x.txt": b"so"}, {}, "missing sibling", "no audio"),
        ({"x.wav": WAVE, "x.flac": WAVE, "x.txt": b"so"}, {}, "several clips", "columns.audio=wav"),
        ({"x.wav": WAVE, "x.txt": b"so"}, {"audio": "flac"}, "missing sibling", "no audio"),
        ({"x.wav": WAVE}, {}, "bad record", "it is empty"),
        ({"x.wav": WAVE, "x.cls": b"7"}, {}, "bad record", "columns.text=cls"),
        ({"x.wav": WAVE, "x.json": b"{"}, {}, "bad record", "JSON"),
        ({"x.wav": WAVE, "x.json": b"[1]"}, {}, "bad record", "member 'x.json': expected a JSON object"),
        ({"x.wav": WAVE, "x.txt": b"so", "x.b.json": b"[1"}, {}, "bad record", "member 'x.b.json': not JSON"),
        ({"x.wav": WAVE, "x.txt": b"gr\xfc\xdfe"}, {}, "bad record", "not UTF-8"),
        ({"x.wav": WAVE, "x.json": {"text": ["a", "b"]}}, {}, "bad record", "must be text, found list"),
        ({"x.wav": WAVE, "x.json": {"text": "x" * (1 << 20)}}, {}, "bad record", "at most"),
    ],
)
def test_what_cannot_be_used_is_skipped_by_name(
    members: dict[str, Any], columns: dict[str, str], reason: str, why: str, tmp_path: Path
) -> None:
    (drop,) = read(tmp_path, members, **columns)
    assert isinstance(drop, Drop)
    assert drop.reason == reason
    assert why in drop.detail
    assert drop.detail.startswith(f"{tmp_path / 's.tar'}, x: ")


def test_splits_and_fields_that_no_record_has(tmp_path: Path) -> None:
    members = {f"{i}.{kind}": WAVE if kind == "wav" else {"text": "a", "split": split}
               for i, split in enumerate(["train", "test", "test"]) for kind in ("wav", "json")}  # fmt: skip
    assert [item.name for item in read(tmp_path, members, "test")] == ["s-1", "s-2"]
    with pytest.raises(ValueError, match="split_share"):
        read(tmp_path, {"x.wav": WAVE, "x.txt": b"so"}, "test")
    (drop,) = read(tmp_path, members | {}, colour="cls")[:1]
    assert isinstance(drop, Drop)
    assert "['colour'] are not record fields" in drop.detail
