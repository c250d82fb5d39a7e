"""Scores against hand-counted cases and against the libraries' own corpus results."""

from __future__ import annotations

import random
import sys

import jiwer
import numpy as np
import pytest
import sacrebleu

from qa_train.eval.eval_sets import is_right
from qa_train.eval.scores.normalise import label_form, strip_tags, transcript_words
from qa_train.eval.scores.task_metrics import (
    ONE_REFERENCE,
    Prediction,
    bootstrap_interval,
    label_contained,
    label_matches,
    score,
    wilson_interval,
    word_edits,
)


def pair(text: str, gt: str, language: str | None = "en", **more: object) -> Prediction:
    return Prediction(text, (gt,), language, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        (
            "en",
            "<|en|>Mr. Smith's colour , it isn't !",
            ["mister", "smith", "is", "color", "it", "is", "not"],
        ),
        ("en", "It costs twenty five dollars.", ["it", "costs", "25"]),
        ("fr", "<|fr|>L'été, c'est fini.", ["l", "été", "c", "est", "fini"]),
        ("zh", "<|zh|> 你好， 世 界。", ["你", "好", "世", "界"]),
        ("yue", "早晨 呀", ["早", "晨", "呀"]),
        (None, "Ça VA ?", ["ça", "va"]),
        ("en", "...", []),
    ],
)
def test_transcript_words(language: str | None, text: str, words: list[str]) -> None:
    found = transcript_words(text, language)
    # Whisper writes "$25" and the basic normaliser then drops the sign.
    assert found == words


def test_wer_is_corpus_level_and_counts_odd_answers() -> None:
    predictions = [
        pair("press one now", "press one now"),
        pair("the the the", "hello"),
        pair("", "good morning friend"),
        pair("ignored because the clip failed", "red blue", error="unreadable clip"),
        pair("so long", "so long and thanks", truncated=True),
    ]
    result = score("wer", predictions)
    # Edits 0 + 3 + 3 + 2 + 2 over 3 + 1 + 3 + 2 + 4 words; the mean of the rates would be 130 %.
    assert result.value == pytest.approx(100 * 10 / 13)
    assert (result.n, result.empty, result.failed, result.truncated) == (5, 1, 1, 1)
    assert result.ci_low <= result.value <= result.ci_high


def test_word_edits_equal_jiwer_and_a_plain_dynamic_program() -> None:
    draw = random.Random(3)
    vocabulary = ["a", "b", "c", "d"]
    references = [[draw.choice(vocabulary) for _ in range(draw.randrange(0, 9))] for _ in range(200)]
    hypotheses = [[draw.choice(vocabulary) for _ in range(draw.randrange(0, 9))] for _ in range(200)]

    def distance(a: list[str], b: list[str]) -> int:
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            last, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
        return row[-1]

    edits = word_edits(references, hypotheses)
    assert edits[:, 0].tolist() == [distance(a, b) for a, b in zip(references, hypotheses, strict=True)]
    assert edits[:, 1].tolist() == [len(a) for a in references]
    library = jiwer.wer([" ".join(r) for r in references], [" ".join(h) for h in hypotheses])
    assert edits[:, 0].sum() / edits[:, 1].sum() == pytest.approx(library)


@pytest.mark.parametrize("metric", ["wer", "accuracy", "contains", "exact", "choice", "chrf"])
def test_thoughts_before_an_answer_are_no_part_of_it(metric: str) -> None:
    def one(text: str) -> Prediction:
        return pair(text, "dog", choices=("cat", "dog"))

    thought = one("<think>\nA cat? No: B.\n</think>\n\ndog")
    assert score(metric, [thought]) == score(metric, [one("dog")])
    assert is_right(metric, thought) == is_right(metric, one("dog"))
    # Nothing after them is no answer; thoughts that were cut are what was said.
    assert score(metric, [one("<think>dog</think>")]).empty == 1
    assert score(metric, [one("<think>dog cat dog")]).value != score(metric, [one("dog")]).value


@pytest.mark.parametrize("digits", ["7" * 5000, "12," * 3000, "²" * 5000])
def test_an_answer_of_thousands_of_digits_is_scored_as_any_other(digits: str) -> None:
    limit = sys.get_int_max_str_digits()
    assert score("wer", [pair(digits, "good morning")]).value == 100.0
    assert sys.get_int_max_str_digits() == limit
    assert score("bbh", [pair(digits, "7")]).unparsed == 1
    assert score("boundary_error", [pair(f"[{digits}-{digits}] dog", "[0.5-1.0] dog")]).value < 1e6


def test_cer_counts_characters_with_spaces() -> None:
    assert score("cer", [pair("abd ef", "abc ef")]).value == pytest.approx(100 / 6)
    assert score("cer", [pair("abcef", "abc ef")]).value == pytest.approx(100 / 6)
    assert score("cer", [pair("你们", "你好", "zh")]).value == pytest.approx(50)


def test_references_without_words_are_an_error() -> None:
    with pytest.raises(ValueError, match="no reference has any word"):
        score("wer", [pair("x", "...")])


@pytest.mark.parametrize(
    ("answer", "gt", "right"),
    [
        (" Dog. ", "dog", True),
        ("acoustic_guitar", "Acoustic guitar", True),
        ("<|en|>English", "english", True),
        ("'Piano'", "piano", True),
        ("dogs", "dog", False),
        ("a dog barking", "dog", False),
        ("", "dog", False),
        ("dog or cat", "dog", False),
        ("...", "...", False),
    ],
)
def test_label_match_is_strict(answer: str, gt: str, right: bool) -> None:
    assert label_matches(pair(answer, gt)) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The instrument is a bass guitar.", True),
        ("Bass-guitar!", True),
        ("It is a bass guitar or a piano.", False),
        ("A guitar.", False),
        ("contrabass guitarist", False),
        ("", False),
    ],
)
def test_contained_label(answer: str, right: bool) -> None:
    choices = ("guitar", "bass guitar", "piano")
    assert label_contained(Prediction(answer, ("bass guitar",), choices=choices)) is right


def test_accuracy_keeps_failed_items_in_the_denominator() -> None:
    predictions = [pair("dog", "dog"), pair("dog", "dog", error="gone"), pair("", "dog"), pair("cat", "dog")]
    result = score("accuracy", predictions)
    assert (result.value, result.n, result.failed, result.empty) == (25.0, 4, 1, 1)


def test_wilson_interval() -> None:
    # Known values: 8 of 10 -> 49.0 to 94.3 %; the edges stay inside 0 and 100.
    low, high = wilson_interval(8, 10)
    assert (round(low, 1), round(high, 1)) == (49.0, 94.3)
    assert wilson_interval(0, 20)[0] == 0.0
    assert wilson_interval(20, 20)[1] == 100.0
    with pytest.raises(ValueError, match="at least one item"):
        wilson_interval(0, 0)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        rows = (generator.random((80, 1)) < 0.3).astype(np.int64)
        low, high = bootstrap_interval(rows, lambda s: 100.0 * s[:, 0] / 80, resamples=200, seed=trial)
        hits += low <= 30.0 <= high
    assert hits >= 51


def test_bootstrap_is_a_function_of_the_seed() -> None:
    rows = np.arange(40).reshape(20, 2)
    one = bootstrap_interval(rows, lambda s: s[:, 0] / s[:, 1], seed=5)
    assert one == bootstrap_interval(rows, lambda s: s[:, 0] / s[:, 1], seed=5)
    assert one != bootstrap_interval(rows, lambda s: s[:, 0] / s[:, 1], seed=6)


@pytest.mark.parametrize(("language", "tokenizer"), [("en", "13a"), ("zh", "zh"), (None, "13a")])
def test_bleu_equals_sacrebleu(language: str | None, tokenizer: str) -> None:
    references = ["The cat sat on the mat.", "今天天气很好，我们去公园吧", "Please hold the line, thank you."]
    answers = ["The cat sat on a mat.", "今天天气好，我们去公园", ""]
    result = score("bleu", [pair(a, r, language) for a, r in zip(answers, references, strict=True)])
    expected = sacrebleu.corpus_bleu(answers, [references], tokenize=tokenizer)
    assert result.value == pytest.approx(expected.score)
    assert result.empty == 1


def test_chrf_equals_sacrebleu() -> None:
    references = ["The cat sat on the mat.", "Please hold.", "a", "Thank you for calling"]
    for answers in (
        ["The cat sat on a mat.", "Hold please", "a", ""],
        ["x", "y", "z", "Thank you for calling"],
        ["", "", "", ""],
    ):
        found = score("chrf", [pair(a, r) for a, r in zip(answers, references, strict=True)])
        assert found.value == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score)


def test_chrf_of_several_references_equals_sacrebleu() -> None:
    draw = random.Random(6)
    words = "a bb cat sat the mat dogs running quickly in rain é 你好".split()
    for _ in range(60):
        number = draw.randrange(1, 6)
        references = [[" ".join(draw.choices(words, k=draw.randrange(1, 7))) for _ in range(number)] for _ in range(4)]
        answers = [" ".join(draw.choices(words, k=draw.randrange(7))) for _ in range(4)]
        items = [Prediction(a, tuple(group)) for a, group in zip(answers, references, strict=True)]
        wanted = sacrebleu.corpus_chrf(answers, [list(each) for each in zip(*references, strict=True)]).score
        assert score("chrf", items).value == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("metric", sorted(ONE_REFERENCE))
def test_a_second_reference_is_not_skipped_in_silence(metric: str) -> None:
    two = [Prediction("color", ("colour", "color"), "fr", ("colour", "color"))]
    with pytest.raises(ValueError, match=rf"{metric} takes one reference and 1 of 2 items .*'colour', 'color'"):
        score(metric, [*two, Prediction("a", ("a",), "fr", ("a", "b"))])
    assert score("accuracy", two).value == 100.0


def test_no_error_found_is_no_certainty() -> None:
    right = [Prediction("one two", ("one two",), "fr")] * 10
    found = score("wer", right)
    assert (found.value, found.ci_low) == (0.0, 0.0)
    # Wilson's upper end for 0 of 20 words.
    assert found.ci_high == pytest.approx(16.11, abs=0.01)


def test_unknown_metric_and_empty_source_say_so() -> None:
    with pytest.raises(ValueError, match="accuracy, airbench, bbh, bleu, boundary_error, boundary_f1, cer, choice"):
        score("f1", [pair("a", "a")])
    with pytest.raises(ValueError, match="empty"):
        score("wer", [])


def test_strip_tags_and_label_form() -> None:
    assert strip_tags("<|en|> hello  world , yes <|0.00|>") == "hello world, yes"
    assert label_form(" \u201cA-Flat\u201d ") == "a flat"
    assert label_form("?!") == ""
