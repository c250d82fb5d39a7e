"""NeMo's rows name parts of files by ``offset`` and ``duration``: an import cuts them, a plain packing refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data_pipelines.importers import ImportConfig, import_corpus
from data_pipelines.importing.catalogue import corpus_of
from qa_train.data.shards.index import load_index
from qa_train.data.text.chat_rows import chat_record, parts_of
from qa_train.data.text.records import BadRecord
from qa_train.data.tools.interchange import jsonl_to_shards
from qa_train.eval.questions import read_questions
from tests.data_pipelines.corpora.test_splits import records

FOREIGN = Path(__file__).parents[2] / "data" / "foreign"
RATE = 8000


def imported(path: Path, out: Path) -> list[float]:
    """Seconds of the records of an import; none may be lost."""
    options = ImportConfig(path=str(path), out=str(out), split="train", workers=0, error_budget=0.0)
    (report,) = import_corpus(corpus_of("jsonl"), options)
    assert not report.dropped
    return [s for tar in sorted(out.glob("*.tar")) for s in load_index(str(tar)).table["duration_s"].to_pylist()]


def recording(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)), RATE)


def turns(*clips: dict[str, Any]) -> list[dict[str, Any]]:
    heard = [{"from": "User", "type": "audio", "value": "a.wav", **clip} for clip in clips]
    return [*heard, {"from": "Assistant", "type": "text", "value": "Rain."}]


def test_the_example_of_its_documentation(tmp_path: Path) -> None:
    recording(tmp_path / "audio.wav", 303.0)
    rows = [json.loads(line) for line in (FOREIGN / "nemo_manifest.jsonl").read_text().splitlines()]
    rows = [{**row, "audio_filepath": "audio.wav"} for row in rows]
    (tmp_path / "cut.jsonl").write_text(json.dumps(rows[1]) + "\n")
    assert imported(tmp_path / "cut.jsonl", tmp_path / "out") == pytest.approx([0.82], abs=0.01)
    assert [each["text"] for each in records(tmp_path / "out")] == ["the transcription"]
    # The other row has its text in a file of its own, which is no field of ours.
    (tmp_path / "file.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ValueError, match=r"no column of .* is a record field"):
        imported(tmp_path / "file.jsonl", tmp_path / "none")


def test_the_row_of_its_sharegpt_reader() -> None:
    record, clips = chat_record(json.loads((FOREIGN / "nemo_sharegpt.jsonl").read_text()))
    assert clips == ["sample.wav"]
    assert [turn["content"] for turn in record["messages"]] == ["<audio>", "answer"]


@pytest.mark.parametrize(
    ("row", "seconds"),
    [
        ({"audio_filepath": "a.wav", "text": "x", "duration": 2.0}, 2.0),
        ({"audio_filepath": "a.wav", "text": "x", "offset": 1.5}, 2.5),
        ({"audio_filepath": "a.wav", "text": "x", "offset": 1, "duration": 0.5}, 0.5),
        ({"audio_filepath": "a.wav", "text": "x", "duration": 4.02}, 4.0),
        # Elsewhere a duration alone is a measure, in whatever unit.
        ({"audio": "a.wav", "text": "x", "duration": 2.0}, 4.0),
        ({"id": "1", "conversations": turns({"duration": 1.25, "offset": 0.5})}, 1.25),
        ({"id": "1", "conversations": turns({"duration": 1.0})}, 1.0),
        ({"id": "1", "conversations": turns({"duration": 1.0, "offset": 1}, {"duration": 0.5})}, 1.5),
        ({"id": "1", "conversations": turns({}, {})}, 8.0),
        ({"sound": "a.wav", "duration": 3.0, "conversations": [
            {"from": "human", "value": "<sound>\nWhat?"}, {"from": "gpt", "value": "Rain."}]}, 3.0),
    ],
)  # fmt: skip
def test_parts_are_cut(row: dict[str, Any], seconds: float, tmp_path: Path) -> None:
    recording(tmp_path / "a.wav", 4.0)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert imported(tmp_path / "rows.jsonl", tmp_path / "out") == pytest.approx([seconds], abs=0.01)


@pytest.mark.parametrize(
    ("clips", "told"),
    [
        ([{"duration": 1.0}], "'duration' 1 is 4.00 s long"),
        ([{"duration": 4.0}, {"duration": 3.5}], "'duration' 3.5 is 4.00 s long"),
        ([{"offset": 1.0, "duration": 3.0}], "a clip with 'offset'"),
        ([{"duration": "long"}], "not a number of seconds"),
        ([{"duration": -1.0}], "'duration' above 0"),
    ],
)
def test_a_plain_packing_refuses_parts_by_name(clips: list[dict[str, Any]], told: str, tmp_path: Path) -> None:
    recording(tmp_path / "a.wav", 4.0)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "1", "conversations": turns(*clips)}) + "\n")
    with pytest.raises(ValueError, match=told):
        jsonl_to_shards(tmp_path / "rows.jsonl", tmp_path / "out-%05d.tar")
    with pytest.raises(ValueError, match=told):
        read_questions(tmp_path / "rows.jsonl")


def test_whole_files_are_packed(tmp_path: Path) -> None:
    recording(tmp_path / "a.wav", 4.0)
    row = {"id": "1", "conversations": turns({"duration": 4.0, "offset": 0}, {"duration": 3.96})}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (index,) = jsonl_to_shards(tmp_path / "rows.jsonl", tmp_path / "out-%05d.tar")
    assert index.table["duration_s"].to_pylist() == pytest.approx([8.0])


def test_an_offset_of_no_single_clip_is_refused() -> None:
    with pytest.raises(BadRecord, match="several clips"):
        parts_of({"audios": ["a.wav", "b.wav"], "messages": [], "offset": 1.0}, 2)
    assert parts_of({"audios": ["a.wav", "b.wav"], "messages": [], "duration": 9.0}, 2) == [(0.0, None)] * 2
