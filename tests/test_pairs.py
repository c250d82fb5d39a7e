"""Preference pairs from sampled answers: the better one by word error rate is chosen."""

from __future__ import annotations

import pytest

from qa_train.data.sample import AudioPart, Message, Sample, TextPart
from qa_train.eval.questions import Question
from qa_train.pairs import _best_and_worst


def question(reference: str) -> Question:
    message = Message("user", (AudioPart(0), TextPart("What is said?")))
    sample = Sample("clip", (message,), 1, "ask_transcript", "en", "chat")
    return Question(sample, lambda: (), (reference,), "wer", "test", "en")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["the cat", "the cat sat down", "a hat sat"], ("the cat sat down", "a hat sat")),
        # Order does not decide, punctuation and case are no errors.
        (["no idea at all", "The cat sat down."], ("The cat sat down.", "no idea at all")),
        # Nothing to choose between.
        (["the cat sat", "the cat sat"], None),
        (["The cat sat down", "the cat sat down."], None),
        # An empty answer teaches nothing.
        (["the cat sat down", ""], None),
        ([], None),
    ],
)
def test_best_and_worst_by_word_error_rate(answers: list[str], expected: tuple[str, str] | None) -> None:
    assert _best_and_worst(question("the cat sat down"), answers, margin=0.15) == expected


def test_answers_closer_than_the_margin_make_no_pair() -> None:
    answers = ["red green blue black", "red green blue white"]
    assert _best_and_worst(question("red green blue black"), answers, margin=0.3) is None
    assert _best_and_worst(question("red green blue black"), answers, margin=0.2) == tuple(answers)
