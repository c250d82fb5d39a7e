"""Lists that reach outside their folder are packed and said; files of others are not overwritten unasked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.catalogue import corpus_of
from qa_train.command_line.command_table import run as command
from qa_train.data.shards.index import load_index
from qa_train.data.tools.outside import Outside
from qa_train.report.document import refuse_foreign
from tests.data_pipelines.corpora.made_up import tone

KINDS = ["inside", "dots", "dots and back", "absolute", "absolute inside", "link", "linked folder", "link inside"]
OUT = {"dots", "absolute", "link", "linked folder"}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """Kind of name -> the name, as a list in tmp_path/in has it."""
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for each in (folder / "clips", elsewhere):
        each.mkdir(parents=True)
    for path in (folder / "clips" / "a.wav", elsewhere / "b.wav"):
        path.write_bytes(tone(path.name))
    (folder / "link.wav").symlink_to(elsewhere / "b.wav")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "own.wav").symlink_to(folder / "clips" / "a.wav")
    return {
        "inside": "clips/a.wav", "dots": "../elsewhere/b.wav", "dots and back": "clips/../clips/a.wav",
        "absolute": str(elsewhere / "b.wav"), "absolute inside": str(folder / "clips" / "a.wav"), "link": "link.wav",
        "linked folder": "linked/b.wav", "link inside": "own.wav",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_outside(places: dict[str, str], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ([tmp_path / "in"], [tmp_path / "in" / "list.jsonl"], [tmp_path / "in", tmp_path / "in"]):
        outside = Outside(given)
        for _ in range(3):
            outside.look(tmp_path / "in" / places[kind])
        assert (outside.seen, len(outside.outside)) == (3, 3 if kind in OUT else 0)
    note = outside.note()
    assert (note is None) == (kind not in OUT)
    assert note is None or ("3 of 3 recordings are outside" in note and "packed as well" in note)
    monkeypatch.chdir(tmp_path)
    outside = Outside(["in"])
    outside.look(Path("in") / places[kind])
    assert len(outside.outside) == (kind in OUT)
    # A folder of a similar name is another one.
    assert Outside([tmp_path / "in2"])._below != Outside([tmp_path / "in"])._below
    near = Outside([tmp_path / "i"])
    near.look(tmp_path / "in" / "clips" / "a.wav")
    assert not near.outside or near._below == [os.path.realpath(tmp_path)]


def chat(name: str) -> str:
    messages = [{"role": "user", "content": "<audio>What?"}, {"role": "assistant", "content": "Rain."}]
    return json.dumps({"messages": messages, "audios": [name]}) + "\n"


def test_from_jsonl_packs_and_says(places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in" / "list.jsonl"
    path.write_text("".join(map(chat, places.values())))
    assert command("data from-jsonl", [str(path), str(tmp_path / "out.tar")]) == 0
    said = capsys.readouterr().err
    assert "note: 4 of 8 recordings are outside" in said
    assert len(load_index(str(tmp_path / "out.tar"))) == 8
    path.write_text(chat(places["inside"]))
    assert command("data from-jsonl", [str(path), str(tmp_path / "out.tar")]) == 0
    assert capsys.readouterr().err == ""


def imported(tmp_path: Path, name: str, **options: Any) -> Any:
    path = tmp_path / "in" / name
    known = {"path": str(path), "out": str(tmp_path / "out"), "split": "train", "workers": 0, "name": "x"}
    (report,) = import_corpus(
        corpus_of("table" if name.endswith("tsv") else "jsonl"), ImportConfig(**(known | options))
    )
    return report


@pytest.mark.parametrize("name", ["list.tsv", "list.jsonl"])
def test_import_packs_and_says(places: dict[str, str], tmp_path: Path, name: str) -> None:
    lines = [
        f"audio\ttext\n{places[kind]}\thello" if name.endswith("tsv") else chat(places[kind]) for kind in ("dots",)
    ]
    (tmp_path / "in" / name).write_text("\n".join(lines) + "\n")
    report = imported(tmp_path, name)
    assert report.made == 1
    (note,) = [note for note in report.notes if "outside" in note]
    assert "1 of 1 recordings are outside" in note
    assert note in report.text()
    (tmp_path / "in" / name).write_text(
        f"audio\ttext\n{places['inside']}\thello\n" if name.endswith("tsv") else chat(places["inside"])
    )
    assert not any("outside" in note for note in imported(tmp_path, name).notes)


@pytest.mark.parametrize("foreign", ["x-train-00000.tar", "x-train-00003.tar", "x-train.report.json"])
def test_an_import_replaces_no_file_of_others(places: dict[str, str], tmp_path: Path, foreign: str) -> None:
    (tmp_path / "in" / "list.jsonl").write_text(chat(places["inside"]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / foreign).write_text("mine")
    with pytest.raises(ValueError, match=rf"{foreign} exists and was not made by an import.*overwrite=true"):
        imported(tmp_path, "list.jsonl")
    assert (tmp_path / "out" / foreign).read_text() == "mine"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [foreign]
    if foreign == "x-train-00003.tar":
        (tmp_path / "out" / foreign).unlink()
    assert imported(tmp_path, "list.jsonl", overwrite=True).made == 1
    # Its own files are no others', also those of an import that was interrupted, or of another list.
    next((tmp_path / "out").glob("*.recipe*")).unlink()
    assert imported(tmp_path, "list.jsonl").made == 1
    (tmp_path / "in" / "list.jsonl").write_text(chat(places["inside"]) * 2)
    assert imported(tmp_path, "list.jsonl").made == 2


def test_to_jsonl_replaces_nothing_that_differs(places: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "in" / "list.jsonl").write_text(chat(places["inside"]))
    command("data from-jsonl", [str(tmp_path / "in" / "list.jsonl"), str(tmp_path / "a.tar")])
    words = [str(tmp_path / "a.tar"), f"out={tmp_path}/x.jsonl"]
    assert command("data to-jsonl", words) == command("data to-jsonl", words) == 0, "the same again changes nothing"
    (clip,) = (tmp_path / "x-audio").iterdir()
    sound, lines = clip.read_bytes(), (tmp_path / "x.jsonl").read_bytes()
    for path, kept in ((tmp_path / "x.jsonl", lines), (clip, sound)):
        path.write_text("mine")
        with pytest.raises(ValueError, match=rf"{path.name} is there with other content.*overwrite=true"):
            command("data to-jsonl", words)
        assert path.read_text() == "mine"
        assert command("data to-jsonl", [*words, "overwrite=true"]) == 0
        assert path.read_bytes() == kept
    # A link is never written through.
    clip.unlink()
    (tmp_path / "mine.wav").write_bytes(b"mine")
    clip.symlink_to(tmp_path / "mine.wav")
    with pytest.raises(ValueError, match="overwrite=true"):
        command("data to-jsonl", words)
    assert command("data to-jsonl", [*words, "overwrite=true"]) == 0
    assert (tmp_path / "mine.wav").read_bytes() == b"mine"
    assert clip.read_bytes() == sound


@pytest.mark.parametrize(
    "text",
    ["", "notes", "<!doctype html><html lang='en'><title>mine</title>", '<!doctype html><html lang="en">', "\0\xff"],
)
def test_a_page_replaces_pages_alone(tmp_path: Path, text: str) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    out = tmp_path / "page.html"
    out.write_text(text)
    with pytest.raises(ValueError, match=r"is not a page of qa-train.*overwrite=true"):
        command("dashboard", [str(tmp_path / "runs"), f"out={out}"])
    assert out.read_text() == text
    assert command("dashboard", [str(tmp_path / "runs"), f"out={out}", "overwrite=true"]) == 0
    assert command("dashboard", [str(tmp_path / "runs"), f"out={out}"]) == 0
    refuse_foreign(out)
    refuse_foreign(tmp_path / "none.html")


@pytest.mark.parametrize("name", ["results.json", "report.md", "report.html", "predictions.jsonl"])
def test_an_evaluation_deletes_no_file_of_others(tmp_path: Path, name: str) -> None:
    from qa_train.config import EvalConfig
    from qa_train.eval.suite import evaluate

    (tmp_path / name).write_text("mine")
    options = {"checkpoint": str(tmp_path / "none"), "data": str(tmp_path / "none.jsonl"), "out": str(tmp_path)}
    for step in ("all", "predict", "score"):
        with pytest.raises(ValueError, match=f"{name} exists and belongs to no evaluation"):
            evaluate(EvalConfig(**options, step=step))
    with pytest.raises((ValueError, OSError)) as error:
        evaluate(EvalConfig(**options, overwrite=True))
    assert "belongs to no evaluation" not in str(error.value)
