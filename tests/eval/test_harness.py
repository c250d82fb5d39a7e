"""Evaluation files end to end with a stand-in model: order, resume, failures, scores, probe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import soundfile
from fake_model import FakeModel, processor, tone

from qa_train.eval import harness
from qa_train.eval.harness import evaluate_file
from qa_train.eval.questions import read_questions
from qa_train.infer.generate import Decoding

ASR = "Detect the language and recognize the speech: <|en|>"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    parts = processor()
    fake = FakeModel(parts.tokenizer)
    monkeypatch.setattr(harness, "load_model", lambda source, device: (fake, parts))
    monkeypatch.setattr(harness, "weights_digest", lambda model: "weights-1")
    return fake


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, seconds in (("a.wav", 2.0), ("b.wav", 0.5), ("c.flac", 1.0)):
        soundfile.write(tmp_path / name, tone(seconds), 16_000)
    (tmp_path / "bad.wav").write_bytes(b"RIFF and nothing more")
    return write(
        tmp_path / "data.jsonl",
        [
            {"audio": "b.wav", "prompt": ASR, "gt": "tone 12", "source": "mine"},
            {"audio": "a.wav", "prompt": ASR, "gt": "tone fifty one", "source": "mine"},
            {"audio": "bad.wav", "prompt": ASR, "gt": "three more words", "source": "mine"},
            {"audio": "gone.wav", "prompt": "Which?", "gt": "tone 25", "source": "vocalsound"},
            {"audio": "c.flac", "prompt": "Which?", "gt": "Tone 25.", "source": "vocalsound"},
            {
                "messages": [
                    {"role": "user", "content": "<audio><audio>Two sounds?"},
                    {"role": "assistant", "content": "tone tone 37"},
                ],
                "audios": ["b.wav", "c.flac"],
                "source": "chat",
            },
            {"messages": [{"role": "user", "content": "Hello"}], "source": "open"},
        ],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_keep_the_order_and_failures_count(model: FakeModel, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scores = evaluate_file("x", data, out, progress=False)
    rows = lines(out / "predictions.jsonl")
    assert [row["prediction"] for row in rows] == [
        "tone 12",
        "tone 50",
        "",
        "",
        "tone 25",
        "tone tone 37",
        "0",
    ]
    assert [{k: v for k, v in row.items() if k not in ("prediction", "truncated", "error")} for row in rows] == [
        json.loads(line) for line in data.read_text().splitlines()
    ]
    assert "bad.wav" in rows[2]["error"]
    assert "no such file" in rows[3]["error"]
    mine, vocal = scores["sources"]["mine"], scores["sources"]["vocalsound"]
    # "tone 50" against "tone 51", and three lost words, over 2 + 2 + 3 words.
    assert mine["value"] == pytest.approx(100 * 4 / 7, abs=0.01)
    assert (mine["metric"], mine["n"], mine["failed"], mine["empty"]) == ("wer", 3, 1, 0)
    assert (vocal["metric"], vocal["value"], vocal["n"], vocal["failed"]) == ("accuracy", 50.0, 2, 1)
    assert scores["sources"]["chat"]["value"] == 100.0
    assert "open" not in scores["sources"]
    assert json.loads((out / "scores.json").read_text()) == scores


def test_probe_hears_the_difference(model: FakeModel, data: Path, tmp_path: Path) -> None:
    probe = evaluate_file("x", data, tmp_path / "out", probe=10, progress=False)["probe"]
    assert (probe["n"], probe["changed_percent"]) == (4, 100.0)
    assert probe["other_clip"]["n"] == 4
    hear = model.answer
    model.answer = lambda ids, states: hear(ids, states * 0)  # type: ignore[method-assign]
    probe = evaluate_file("x", data, tmp_path / "other", probe=10, progress=False)["probe"]
    assert probe["changed_percent"] == 0.0


def test_a_killed_evaluation_continues_and_gives_the_same(
    model: FakeModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    evaluate_file("x", data, whole, batch_size=1, probe=0, progress=False)
    answered = len(model.calls)
    cut = tmp_path / "cut"
    generate = model.generate

    def dies(**inputs: Any) -> Any:
        if len(model.calls) == answered + 2:
            raise KeyboardInterrupt
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate_file("x", data, cut, batch_size=1, probe=0, progress=False)
    assert not (cut / "predictions.jsonl").exists()
    # The kill also cut a line in two.
    with (cut / "journal.jsonl").open("a") as file:
        file.write('{"index": 5, "te')
    monkeypatch.setattr(model, "generate", generate)
    evaluate_file("x", data, cut, batch_size=1, probe=0, progress=False)
    assert len(model.calls) == 2 * answered
    for name in ("predictions.jsonl", "scores.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    evaluate_file("x", data, cut, batch_size=1, probe=0, progress=False)
    assert len(model.calls) == 2 * answered, "a finished evaluation asks nothing again"


def test_other_weights_data_or_decoding_are_asked_again(
    model: FakeModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    evaluate_file("x", data, out, probe=0, progress=False)
    seen = len(model.calls)
    monkeypatch.setattr(harness, "weights_digest", lambda model: "weights-2")
    evaluate_file("x", data, out, probe=0, progress=False)
    assert len(model.calls) == 2 * seen
    evaluate_file("x", data, out, decoding=Decoding(max_new_tokens=5), probe=0, progress=False)
    assert len(model.calls) == 3 * seen


def test_a_repaired_clip_is_tried_again(model: FakeModel, data: Path, tmp_path: Path) -> None:
    evaluate_file("x", data, tmp_path / "out", probe=0, progress=False)
    soundfile.write(tmp_path / "gone.wav", tone(1.0), 16_000)
    scores = evaluate_file("x", data, tmp_path / "out", probe=0, progress=False)
    assert scores["sources"]["vocalsound"]["value"] == 100.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "gt": "y"}, "line 1: audio must be text"),
        ({"audio": "a.wav", "prompt": "x", "gt": "y", "metric": "f2"}, "metric 'f2' is unknown"),
        ({"audio": "a.wav", "prompt": "x", "metric": "wer"}, "needs a reference"),
        ({"audio": "a.wav", "prompt": "x", "gt": 3}, "gt must be text"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "must end with a user turn"),
        ({"messages": [{"role": "user", "content": "<audio>"}], "audios": []}, "place 1 clips"),
        ({"messages": "hello"}, "list with at least one turn"),
        (["audio"], "expected a JSON object"),
    ],
)
def test_wrong_lines_are_refused_before_loading(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_questions(write(tmp_path / "d.jsonl", [row]))


def test_empty_and_missing_files_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no evaluation file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no questions"):
        read_questions(write(tmp_path / "empty.jsonl", []))


@pytest.mark.parametrize(
    ("row", "metric", "language"),
    [
        ({"source": "librispeech_test_clean", "prompt": ASR}, "wer", "en"),
        ({"source": "mine", "prompt": ASR.replace("en", "yue")}, "wer", "yue"),
        (
            {"source": "covost2", "prompt": "Detect the language and translate the speech into Mandarin: <|en|>"},
            "bleu",
            "zh",
        ),
        ({"source": "meld", "prompt": "Recognize the emotion with keywords in English:"}, "accuracy", None),
        ({"source": "mine", "prompt": "Which language?"}, "accuracy", None),
        ({"source": "mine", "prompt": "Which language?", "metric": "contains", "language": "fr"}, "contains", "fr"),
    ],
)
def test_metric_and_language_by_the_tables(
    tmp_path: Path, row: dict[str, str], metric: str, language: str | None
) -> None:
    (question,) = read_questions(write(tmp_path / "d.jsonl", [{"audio": "a.wav", "gt": "x", **row}]))
    assert (question.metric, question.language) == (metric, language)
    assert question.sample.template == "base"
