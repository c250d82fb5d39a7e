"""Our rules against what the public scripts say of generated pairs (fixtures; made by make_*fixtures.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qa_train.eval.benchmarks.airbench import (
    honest_pair,
    mean_over_tasks,
    official_chat,
    official_foundation,
    official_mmsu,
)
from qa_train.eval.scores.chinese import normalise_mandarin, spoken
from qa_train.eval.scores.ifeval import CHECKS, follows, ifeval_rows, loose_variants, read_instruction
from qa_train.eval.scores.labels import LETTERS, chosen_option, tokens_match
from qa_train.eval.scores.normalise import whisper_normalise
from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scores.task_metrics import item_statistics, score
from qa_train.eval.scores.voicebench import bbh_answer, refuses

FIXTURES = Path(__file__).parent / "fixtures"


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", ["en", "zh", "yue", "fr"])
def test_error_counts_equal_the_released_script(language: str) -> None:
    if language == "yue":
        pytest.importorskip("zhconv")
    rows = fixture(f"asr_{language}")
    assert len(rows) == 500
    predictions = [Prediction(answer, (reference,), language) for reference, answer, _, _ in rows]
    found, _ = item_statistics("wer", predictions)
    assert found.tolist() == [row[2:] for row in rows]
    value = 100 * sum(row[2] for row in rows) / sum(row[3] for row in rows)
    assert score("wer", predictions).value == pytest.approx(value)


def test_english_words_equal_the_released_normaliser() -> None:
    """Real requests and every contraction that a Whisper normaliser spells out."""
    rows = fixture("english_released")
    assert len(rows) > 400
    assert [whisper_normalise(text, "en") for text, _ in rows] == [expected for _, expected in rows]


def test_mandarin_numbers_equal_cn_tn() -> None:
    rows = fixture("cn_tn")
    assert len(rows) == 500
    assert [normalise_mandarin(text) for text, _ in rows] == [expected for _, expected in rows]


@pytest.mark.parametrize(
    ("number", "said"),
    [("0", "零"), ("10", "十"), ("21", "二十一"), ("110", "一百一十"), ("2200", "两千两百"), ("20002", "两万零二"),
     ("100000000", "一亿"), ("120000", "十二万"), ("0.5", "零点五"), ("007", "零七"), ("12.05", "十二点零五")],
)  # fmt: skip
def test_numbers_as_spoken(number: str, said: str) -> None:
    assert spoken(number) == said


def test_a_number_with_two_points_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one decimal point"):
        spoken("1.2.3")


@pytest.mark.parametrize(("tokenizer", "language"), [("13a", "de"), ("zh", "zh"), ("ja-mecab", "ja")])
def test_bleu_equals_sacrebleu_by_target_language(tokenizer: str, language: str) -> None:
    if language == "ja":
        pytest.importorskip("MeCab")
        pytest.importorskip("ipadic")
    made = fixture(f"bleu_{tokenizer}")
    predictions = [Prediction(answer, (reference,), language) for reference, answer in made["pairs"]]
    assert len(predictions) == 500
    rows, value = item_statistics("bleu", predictions)
    assert value(rows.sum(0, keepdims=True))[0] == pytest.approx(made["corpus"])
    blocks = [value(rows[i : i + 50].sum(0, keepdims=True))[0] for i in range(0, 500, 50)]
    assert blocks == pytest.approx(made["blocks_of_50"])


def foundation_rows(made: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for row in made["rows"]:
        choices = [row.get(f"choice_{letter}") for letter in "abcd"]
        rows.append(
            {
                "id": str(row["uniq_id"]), "gt": row["answer_gt"], "prediction": row["response"], "metric": "choice",
                "choices": [choice for choice in choices if choice is not None],
                "task_name": row["task_name"], "dataset_name": row["dataset_name"],
            }
        )  # fmt: skip
    return rows


def test_foundation_equals_the_published_script_on_odd_answers() -> None:
    made = fixture("airbench_foundation")
    assert len(made["rows"]) == 600
    assert official_foundation(foundation_rows(made)) == {"tasks": made["tasks"], "fail_num": made["fail_num"]}


def test_mmsu_leaves_out_what_its_script_cannot_read() -> None:
    rows = [
        {"prediction": text, "choices": ["x", "y"], "gt": "y"} for text in ("B", "A. y", "It is y", "", "b", "is B.")
    ]
    assert official_mmsu(rows) | {"what": ""} == {"value": 66.67, "left_out": 3, "what": ""}


def test_foundation_keeps_unread_answers_in_the_honest_number() -> None:
    rows = foundation_rows(fixture("airbench_foundation"))
    result = mean_over_tasks(rows)
    assert sum(task["n"] for task in result["tasks"].values()) == 600
    assert result["official"]["left_out"] == 180
    assert result["ci_low"] < result["value"] < result["ci_high"]
    # All answers right but one unread: the script says 100 %, we do not.
    four = [
        dict(row, prediction="ABCD"[row["choices"].index(row["gt"])], task_name="t", dataset_name="d")
        for row in rows[:4]
    ]
    four[0]["prediction"] = "no idea"
    assert mean_over_tasks(four)["official"]["value"] == 100.0
    assert mean_over_tasks(four)["value"] == 75.0


@pytest.mark.parametrize("name", ["chat", "chat_swapped"])
def test_chat_equals_the_published_script_on_odd_judge_lines(name: str) -> None:
    made = fixture(f"airbench_{name}")
    assert len(made["rows"]) == 600
    found = official_chat(made["rows"], [row["gpt-score"] for row in made["rows"]], swapped=name == "chat_swapped")
    assert found["fail_num"] == made["fail_num"]
    assert found["success_num"] == made["success_num"]
    assert found["groups"].keys() == made["groups"].keys()
    for group, values in made["groups"].items():
        assert found["groups"][group] == pytest.approx(values)


@pytest.mark.parametrize(
    ("line", "pair"),
    [("8 7", (8, 7)), ("8  7", (8, 7)), ("8, 7\n", (8, 7)), ("10 1", (10, 1)), ("8\n7", (8, 7)), ("8", None),
     ("8.5 7", None), ("11 5", None), ("8 7 6", None), ("0 5", None), ("I cannot.", None), ("", None),
     ("8/10", None), ("8/10 7/10", (8, 7)), ("10/10", None), ("Score: 8 out of 10", None),
     ("8 out of 10, 7 out of 10", (8, 7)),
     ("Assistant 1: 8", None), ("Assistant 2: 9", None), ("Assistant 1: 8\nAssistant 2: 9", (8, 9)),
     ("Assistant 2: 9, Assistant 1: 8", None), ("8 7\nAssistant 1 is better", None), ("-8 7", None),
     ("9 8 because", (9, 8)), ("**10** **9**", (10, 9))],
)  # fmt: skip
def test_honest_reading_of_a_judge_line(line: str, pair: tuple[int, int] | None) -> None:
    assert honest_pair(line) == pair


def test_ifeval_equals_the_published_checks() -> None:
    for package in ("langdetect", "nltk", "punkt"):
        pytest.importorskip(package)
    rows = fixture("ifeval")["rows"]
    found: dict[str, list[list[bool]]] = {name: [] for name in CHECKS}
    predictions = []
    for row in rows:
        answer, texts = row["response"], [json.dumps({"id": n, "kwargs": a}) for n, a in row["instructions"]]
        orders = [read_instruction(text) for text in texts]
        strict = [follows(answer, *order) for order in orders]
        loose = [any(follows(text, *order) for text in loose_variants(answer)) for order in orders]
        assert (strict, loose) == (row["strict"], row["loose"]), row
        for (name, _), *said in zip(row["instructions"], strict, loose, strict=True):
            found[name].append(said)
        predictions.append(Prediction(answer, tuple(texts)))
    assert len(rows) >= 900
    for name, said in found.items():
        assert len(said) >= 38, name
        # Both outcomes, often enough to mean something.
        assert 5 <= sum(s for s, _ in said) <= len(said) - 5, name
    # Prompts with several instructions; tags are no words for us and text for the published checks.
    kept = [i for i, row in enumerate(rows) if len(row["instructions"]) > 1 and "<|" not in row["response"]]
    assert len(kept) > 100
    expected = [
        [all(r["strict"]), all(r["loose"]), 1, sum(r["strict"]), sum(r["loose"]), len(r["strict"])]
        for r in (rows[i] for i in kept)
    ]
    assert ifeval_rows([predictions[i] for i in kept]).tolist() == expected


def test_the_word_rule_equals_mmaus() -> None:
    rows = fixture("mmau_words")
    assert len(rows) == 600
    assert [tokens_match(answer, said, choices) for answer, said, choices, _ in rows] == [row[-1] for row in rows]


def test_refusals_equal_voicebenchs_but_for_empty_answers() -> None:
    rows = fixture("voicebench_refusals")
    assert len(rows) == 500
    assert {right for text, right in rows if not text.strip()} == {True}
    for text, right in rows:
        assert refuses(Prediction(text, ("",))) == (right and bool(text.strip())), text


def test_spoken_options_are_read_as_voicebench_reads_them_or_are_no_choice() -> None:
    rows = fixture("voicebench_options")
    assert len(rows) == 600
    for text, theirs in rows:
        place = chosen_option(text, list("ABCD"))
        ours = None if place is None else LETTERS[place]
        # Where its list of phrases knows none, it guesses. It takes the one of two letters that a comma follows.
        assert ours == theirs or theirs is None or (ours is None and text.find("Either") >= 0), (text, theirs, ours)
    assert sum(theirs is not None for _, theirs in rows) > 300


def test_bbh_is_read_as_voicebench_reads_it_but_for_its_slips() -> None:
    rows = fixture("voicebench_bbh")
    assert len(rows) == 600
    for task, text, theirs in rows:
        ours = bbh_answer(Prediction(text, ("(A)" if task == "hyperbaton" else "yes",)))
        if ours == theirs or theirs is None:
            continue
        # It reads "b" as (A), a liar as truthful, and "no" in "not" and "nothing".
        slips = text.strip(".") == "B" or "must be lying" in text or ("Not" in text and ours is None)
        assert slips, (task, text, theirs, ours)
    assert sum(theirs is not None for *_, theirs in rows) > 300


def test_accuracy_macro_f1_and_map_equal_scikit_learns() -> None:
    sets = fixture("labels")
    assert len(sets) == 20
    for one in sets:
        pairs = [Prediction(said, (wanted,)) for wanted, said in one["pairs"]]
        lists = [Prediction(", ".join(listed), tuple(several)) for several, listed in one["lists"]]
        assert score("exact", pairs).value == pytest.approx(one["accuracy"])
        assert score("accuracy", pairs).value == pytest.approx(one["accuracy"])
        assert score("macro_f1", pairs).value == pytest.approx(one["macro_f1"])
        assert score("map", lists).value == pytest.approx(one["map"])


def test_errors_by_speaker_equal_meetevals() -> None:
    rows = fixture("cpwer")
    assert len(rows) == 300
    found, _ = item_statistics("cp_wer", [Prediction(answer, (reference,), "en") for reference, answer, _, _ in rows])
    assert found.tolist() == [row[2:] for row in rows]
