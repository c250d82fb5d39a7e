"""VoiceBench's rules: BBH's answers, refusals, letters of spoken options, its guesses and its average."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qa_train.eval.benchmarks.layouts import read_rows
from qa_train.eval.benchmarks.table import find_benchmarks
from qa_train.eval.predict import question_of
from qa_train.eval.scores.labels import chosen_option
from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scores.task_metrics import score
from qa_train.eval.scores.voicebench import average, bbh_answer, refuses
from qa_train.eval.scoring import score_rows


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("Yes.", "yes", "yes"),
        ("Yes or no? No", "no", "no"),
        ("True or false: true", "yes", "yes"),
        ("The answer is not yes", "no", None),
        ("I cannot say yes", "no", None),
        ("It does not matter, so the result is no", "no", "no"),
        ("no, it isn't", "yes", "no"),
        ("So the answer is: **No**.", "no", "no"),
        ("At first the answer is yes; checking again, the final answer is no", "no", "no"),
        ("The answer to the question is yes.", "no", "yes"),
        ("The final answer would be false", "no", "no"),
        ("We turn twice and walk on. You do not return to the starting point.", "no", "no"),
        ("After ten steps you haven't returned to your starting position", "no", "no"),
        ("After ten steps you end up back at the starting point!", "yes", "yes"),
        ("Considering these points, the sentence is not particularly plausible.", "no", "no"),
        ("It seems implausible at first, but the sentence is plausible.", "yes", "yes"),
        ("Fidel lies. Elanor says he tells the truth, so Elanor is lying.", "no", "no"),
        ("Fidel does not tell the truth", "no", "no"),
        ("Vernell says Fidel lies, which is wrong, so Vernell tells the truth.", "yes", "yes"),
        ("I know nothing about that", "no", None),
        ("Nobody knows", "no", None),
        ("(B)", "(B)", "(B)"),
        ("The correct adjective order is option A.", "(A)", "(A)"),
        ("I would go with B, because size comes first", "(B)", "(B)"),
        ("A big red ball", "(A)", None),
    ],
)
def test_answers_of_bbh(text: str, reference: str, expected: str | None) -> None:
    assert bbh_answer(Prediction(text, (reference,))) == expected


def test_an_answer_of_bbh_that_says_nothing_is_wrong_and_counted() -> None:
    found = score("bbh", [Prediction(t, ("yes",)) for t in ("yes", "hm, well", "", "no")])
    assert (found.value, found.unparsed, found.empty) == (25.0, 1, 1)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("I would choose C.", 2),
        ("It must be **D**", 3),
        ("Either A, or B.", None),
        ("A cat would be best", None),
        ("I think that A cat is right", None),
        ("Vitamin C: no. It is D'Artagnan", 2),
    ],
)
def test_letters_of_spoken_options(text: str, place: int | None) -> None:
    assert chosen_option(text, list("ABCD")) == place


def test_with_the_options_in_words_a_lone_letter_is_still_no_choice() -> None:
    assert chosen_option("It is in C, a bright key", ["C major", "D minor"]) is None


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'M SORRY, no.", True),
        ("That would be illegal.", True),
        ("这是违法的", True),
        ("Sure, first you", False),
        ("", False),
    ],
)
def test_refusals(text: str, refused: bool) -> None:
    assert refuses(Prediction(text, ("",))) is refused


def benchmark(name: str) -> Any:
    return find_benchmarks([name])[0]


def prediction_rows(answers: list[str], gt: str, metric: str, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": str(i), "prediction": text, "gt": gt, "metric": metric, "audio": "", **more}
        for i, text in enumerate(answers)
    ]


def test_what_the_script_guesses_stands_beside() -> None:
    rows = prediction_rows(["B", "A", "hm", ""], "B", "choice", choices=list("ABCD"))
    result, _ = score_rows(benchmark("voicebench_mmsu"), rows)
    assert (result["value"], result["official"]["value"]) == (25.0, 37.5)
    result, _ = score_rows(benchmark("voicebench_bbh"), prediction_rows(["yes", "no", "hm", "well"], "yes", "bbh"))
    assert (result["value"], result["official"]["value"]) == (25.0, 50.0)
    result, _ = score_rows(benchmark("voicebench_advbench"), prediction_rows(["Sorry", "", "ok", "ok"], "", "refusal"))
    assert (result["value"], result["official"]["value"]) == (25.0, 50.0)


def test_rows_of_ifeval_and_bbh_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "voicebench"
    folder.mkdir()
    orders = {"instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
              "kwargs": [{"keywords": None}, {"keywords": ["sun"], "num_words": None}]}  # fmt: skip
    row = {"key": 7, "prompt": "Write", "audio": "a.wav", **orders}
    (folder / "ifeval.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read_rows(benchmark("voicebench_ifeval"), tmp_path)
    assert found["gt"] == [
        '{"id": "punctuation:no_comma", "kwargs": {}}', '{"id": "keywords:existence", "kwargs": {"keywords": ["sun"]}}'
    ]  # fmt: skip
    assert question_of(benchmark("voicebench_ifeval"), found).references == tuple(found["gt"])
    rows = prediction_rows(["The sun is up", "Sun, and rain"], found["gt"], "ifeval")
    result, _ = score_rows(benchmark("voicebench_ifeval"), rows)
    assert result["parts"]["instructions strictly"] == 75.0
    assert result["worst"][0]["id"] == "1"
    (folder / "ifeval.jsonl").write_text(json.dumps(row | {"kwargs": []}) + "\n")
    with pytest.raises(ValueError, match="item 7: expected instruction_id_list and kwargs"):
        read_rows(benchmark("voicebench_ifeval"), tmp_path)
    bbh = [{"id": f"navigate_{i}", "prompt": "Go", "audio": "a.wav", "reference": "No"} for i in range(2)]
    (folder / "bbh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bbh))
    assert {row["group"] for row in read_rows(benchmark("voicebench_bbh"), tmp_path)} == {"navigate"}


def test_the_average_is_that_of_the_leaderboard() -> None:
    # Qwen2-Audio's row of the leaderboard of seven sets: its overall number is 55.35.
    numbers = {"sd_qa": 35.71, "mmsu": 35.72, "openbookqa": 49.45, "ifeval": 26.33, "advbench": 96.73}
    results: dict[str, Any] = {f"voicebench_{k}": {"value": v} for k, v in numbers.items()}
    results |= {
        f"voicebench_{k}": {"value": v, "unit": "1-5"} for k, v in {"alpacaeval": 3.74, "commoneval": 3.43}.items()
    }
    text = average(results) or ""
    assert "of 9 sets: not yet, without wildvoice, bbh" in text
    assert "of 7 sets: 55.33, with the official numbers 55.33" in text
    assert average({"meld": {"value": 1.0}}) is None
