"""Benchmarks in the files in which they are published: lists under any name, Parquet with the clips inside."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from qa_train.data.audio.table_clip import clip_source, table_rows
from qa_train.data.audio.waveform import BadAudio, read_clip
from qa_train.eval.answers import clips_digest
from qa_train.eval.benchmarks.benchmark import Benchmark
from qa_train.eval.benchmarks.layouts import read_rows
from qa_train.eval.benchmarks.published import read_list
from qa_train.eval.benchmarks.table import find_benchmarks
from qa_train.eval.predict import duration_s, question_of
from qa_train.report.data_uri import data_uri

# The row of MMSU that is printed in public code (dataset ddwang2000/MMSU, MIT), and one of its 453 with two options.
MMSU = [
    {"id": "code_switch_question_answering_7affd9a4-03cf-4eee-a3be-e4580a8df238",
     "task_name": "code_switch_question_answering",
     "audio_path": "/audio/code_switch_question_answering_7affd9a4-03cf-4eee-a3be-e4580a8df238.wav",
     "question": "What did the speaker receive from their friend?", "choice_a": "A cake.", "choice_b": "Chocolate.",
     "choice_c": "A fruit basket.", "choice_d": "A drink.", "answer_gt": "Chocolate.", "category": "Reasoning",
     "sub-category": "Linguistics", "sub-sub-category": "Semantics", "linguistics_sub_discipline": "Semantics"},
    {"id": "two", "task_name": "pitch_comparison", "audio_path": "/audio/two.wav", "question": "Which is higher?",
     "choice_a": "First", "choice_b": "Second", "choice_c": None, "choice_d": None, "answer_gt": "Second",
     "category": "Perception"},
]  # fmt: skip


def only(name: str) -> Benchmark:
    (found,) = find_benchmarks([name])
    return found


def wave(seconds: float, hertz: float = 440.0) -> bytes:
    buffer = io.BytesIO()
    time_s = np.arange(round(seconds * 16_000)) / 16_000
    soundfile.write(buffer, 0.3 * np.sin(2 * np.pi * hertz * time_s), 16_000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def table(path: Path, rows: list[dict[str, Any]], group: int = 2) -> Path:
    """Rows as a Parquet file of the hub: ``audio`` is the length of a clip in seconds, stored as bytes and path."""
    stored = [row | {"audio": {"bytes": wave(row["audio"]), "path": f"{i}.wav"}} for i, row in enumerate(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(stored), path, row_group_size=group)
    return path


def test_a_list_is_told_by_its_content(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": "x\u2028y"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    for text in (json.dumps(rows), json.dumps(rows, indent=1), lines, "\ufeff" + json.dumps(rows), "\n  \n" + lines):
        for name in ("x.json", "x.jsonl"):
            (tmp_path / name).write_text(text, encoding="utf-8")
            assert read_list(tmp_path / name) == rows, (text, name)
    (tmp_path / "x.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"x\.json, item 1: expected a JSON object, found int"):
        read_list(tmp_path / "x.json")
    with pytest.raises(ValueError, match="no file"):
        read_list(tmp_path / "y.json")


@pytest.mark.parametrize("name", ["MMAR-meta.jsonl", "MMAR-meta.json"])
@pytest.mark.parametrize("as_list", [True, False])
def test_mmar_is_found_under_its_present_and_its_former_name(name: str, as_list: bool, tmp_path: Path) -> None:
    row = {"id": "qx8_00-01-32", "audio_path": "./audio/qx8_00-01-32.wav", "question": "Which?", "choices": ["a", "b"],
           "answer": "b", "modality": "music", "language": None, "rubric": [{"choices": [0, 1]}]}  # fmt: skip
    (tmp_path / "MMAR").mkdir()
    rows = [row, row | {"id": "other"}]
    text = json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows))
    (tmp_path / "MMAR" / name).write_text(text)
    found = read_rows(only("mmar"), tmp_path)
    assert [(r["id"], r["gt"], r["group"]) for r in found] == [("qx8_00-01-32", "b", "music"), ("other", "b", "music")]
    assert found[0]["audio"] == str(tmp_path / "MMAR" / "audio" / "qx8_00-01-32.wav")


@pytest.mark.parametrize("as_list", [True, False])
def test_mmsu_is_read_as_published(as_list: bool, tmp_path: Path) -> None:
    root = tmp_path / "MMSU"
    (root / "audio").mkdir(parents=True)
    text = json.dumps(MMSU) if as_list else "\n".join(map(json.dumps, MMSU))
    (root / "mmsu.jsonl").write_text(text)
    # Of the 5,000 clips 905 are no WAV, whatever the list says.
    (root / "audio" / "two.mp3").touch()
    first, second = read_rows(only("mmsu"), tmp_path)
    assert first["audio"] == str(root / MMSU[0]["audio_path"].lstrip("/"))
    assert second["audio"] == str(root / "audio" / "two.mp3")
    assert (first["gt"], first["choices"][1], first["group"]) == ("Chocolate.", "Chocolate.", "Reasoning")
    assert second["choices"] == ["First", "Second"]
    assert second["prompt"].endswith(
        " or content.\n\nQuestion: Which is higher?\n\nA. First\nB. Second\nC. None\nD. None"
    )
    (root / "mmsu.jsonl").write_text(json.dumps(MMSU[0] | {"audio_path": None}))
    with pytest.raises(ValueError, match=r"mmsu\.jsonl: an item without audio_path or audio: \{'"):
        read_rows(only("mmsu"), tmp_path)


def test_mmsu_as_parquet(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "audio_path"} | {"audio": 0.3} for row in MMSU]
    table(tmp_path / "MMSU/data/train-00000-of-00002.parquet", rows[:1])
    table(tmp_path / "MMSU/data/train-00001-of-00002.parquet", rows[1:])
    first, second = read_rows(only("mmsu"), tmp_path)
    assert (first["id"], first["gt"], second["choices"]) == (MMSU[0]["id"], "Chocolate.", ["First", "Second"])
    assert second["audio"] == str(tmp_path / "MMSU/data/train-00001-of-00002.parquet/0")
    assert len(question_of(only("mmsu"), second).load()[0]) == 4800


# Set -> (file, columns of a row besides prompt and audio, the references, the group).
VOICEBENCH: dict[str, tuple[str, dict[str, Any], Any, Any]] = {
    "alpacaeval": ("alpacaeval_full/test-00000-of-00001", {"output": "Because."}, "Because.", None),
    "commoneval": ("commoneval/test-00000-of-00001", {}, "", None),
    "wildvoice": ("wildvoice/test-00003-of-00010", {"conversation_hash": "7f"}, "", None),
    "sd_qa": ("sd-qa/usa-00000-of-00001", {"reference": "six"}, "six", "usa"),
    "mmsu": ("mmsu/law-00000-of-00001", {"reference": "B"}, "B", "law"),
    "openbookqa": ("openbookqa/test-00000-of-00001", {"reference": "C"}, "C", None),
    "ifeval": ("ifeval/test-00000-of-00001",
               {"key": 1001, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]},
               ['{"id": "punctuation:no_comma", "kwargs": {}}'], None),
    "advbench": ("advbench/test-00000-of-00001", {}, "", None),
    "bbh": ("bbh/test-00000-of-00001", {"id": "navigate_7", "reference": "Yes"}, "Yes", "navigate"),
}  # fmt: skip


@pytest.mark.parametrize("name", VOICEBENCH)
def test_voicebench_is_read_from_its_parquet_files(name: str, tmp_path: Path) -> None:
    file, columns, wanted, group = VOICEBENCH[name]
    benchmark = only(f"voicebench_{name}")
    shard = table(tmp_path / "voicebench" / f"{file}.parquet", [{"prompt": "Say", "audio": 0.5, **columns}])
    if name == "sd_qa":
        table(tmp_path / "voicebench/sd-qa/nga-00000-of-00001.parquet", [{"prompt": "x", "audio": 0.5, **columns}])
    (row,) = read_rows(benchmark, tmp_path)
    assert (row["gt"], row["group"], row["question"], row["prompt"]) == (wanted, group, "Say", "")
    assert row["audio"] == str(shard / "0")
    question = question_of(benchmark, row)
    (heard,) = question.load()
    assert len(heard) == 8000
    assert duration_s(question.clips) == 0.5
    assert len(question.sample.messages[0].content) == 1, "the clip is the question"
    # A folder of JSON lines with clips beside goes before.
    (tmp_path / benchmark.path).write_text(json.dumps({"prompt": "Other", "audio": "q.wav", **columns}))
    assert read_rows(benchmark, tmp_path)[0]["audio"] == str(tmp_path / "voicebench" / "q.wav")


def test_the_sizes_of_voicebench_are_those_that_its_readme_states() -> None:
    stated = {"alpacaeval": 636, "commoneval": 200, "wildvoice": 1000, "sd_qa": 553, "mmsu": 3074, "openbookqa": 455,
              "ifeval": 345, "advbench": 520, "bbh": 1000}  # fmt: skip
    assert {name: only(f"voicebench_{name}").items for name in stated} == stated


def test_a_row_of_a_table_is_a_clip_to_every_reader(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", [{"prompt": str(i), "audio": 0.1 * (i + 1)} for i in range(5)])
    rows = table_rows(path)
    assert [row["prompt"] for row in rows] == list("01234")
    assert [len(read_clip(clip_source(row["audio"]))) for row in rows] == [1600, 3200, 4800, 6400, 8000]
    digests = [clips_digest([Path(row["audio"])]) for row in rows]
    assert len(set(digests)) == 5
    (tmp_path / "2.wav").write_bytes(wave(0.1 * 3))
    assert clips_digest([tmp_path / "2.wav"]) == digests[2], "the bytes count, not where they lie"
    assert data_uri(rows[4]["audio"])[0].startswith("data:audio/ogg")
    assert clip_source(tmp_path / "x.wav") == tmp_path / "x.wav"
    for name in ("5", "x", "-1"):
        with pytest.raises(BadAudio):
            clip_source(path / name)
    missing = duration_s([path / "9"])
    assert missing is None


def test_tables_without_audio_and_no_tables_are_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["x"]}), tmp_path / "n.parquet")
    with pytest.raises(ValueError, match=r"none of its columns \(prompt\) holds audio"):
        table_rows(tmp_path / "n.parquet")
    (tmp_path / "d.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        table_rows(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match=r"no .*bbh\.jsonl, nor the Parquet files voicebench/bbh/\*\.parquet"):
        read_rows(only("voicebench_bbh"), tmp_path)
