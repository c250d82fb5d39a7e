"""Preference pairs from sampled answers: the better one by word error rate is chosen."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qa_train.config import PairsConfig
from qa_train.data.audio.waveform import BadAudio
from qa_train.data.shards.index import load_index
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.eval.questions import Question
from qa_train.llm.judge import Verdict
from qa_train.preferences.draw import sampled_pairs
from qa_train.preferences.from_answers import Lesson, pairs
from qa_train.preferences.rank import ByJudge, ByLabel, ByWordErrors, Pair, balanced


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
    assert ByWordErrors().rank([question("the cat sat down")], [answers]) == [expected]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["the cat", "a hat sat"], ("the cat sat down", "a hat sat")),
        # One answer is enough, and none is not.
        (["the cat"], ("the cat sat down", "the cat")),
        (["The cat sat down."], None),
        ([], None),
    ],
)
def test_the_transcript_may_be_the_chosen_answer(answers: list[str], expected: tuple[str, str] | None) -> None:
    assert ByWordErrors(transcript=True).rank([question("the cat sat down")], [answers]) == [expected]


def test_answers_closer_than_the_margin_make_no_pair() -> None:
    answers = ["red green blue black", "red green blue white"]
    asked = [question("red green blue black")]
    assert ByWordErrors(0.3).rank(asked, [answers]) == [None]
    assert ByWordErrors(0.2).rank(asked, [answers]) == [tuple(answers)]


def test_cut_and_unprintable_answers_make_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = {"a hat\0": False, "a": True, "the cat sat down": False, "a cat": False}
    said = [SimpleNamespace(text=text, truncated=truncated, error=None) for text, truncated in cut.items()]
    asked = replace(question("the cat sat down"), load=lambda: (np.zeros(16_000, np.float32),))
    monkeypatch.setattr("qa_train.preferences.draw.record_questions", lambda *args: [asked])
    generator = SimpleNamespace(sample=lambda items, count, decoding: [said for _ in items])
    made = list(sampled_pairs(generator, None, None))  # type: ignore[arg-type]
    assert [(pair.chosen, pair.rejected) for pair in made] == [("the cat sat down", "a cat")]


def test_what_a_pair_cannot_hold_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> tuple[np.ndarray, ...]:
        raise BadAudio("broken")

    good = replace(question("the cat"), load=lambda: (np.zeros(16_000, np.float32),))
    (message,) = good.sample.messages
    more = Message("user", (TextPart("And then?"),))
    chats = [
        (1, (message, Message("assistant", (TextPart("A cat."),)), more)),
        (1, (Message("system", (TextPart("Be brief."),)), message)),
        (0, (more,)),
        (2, (Message("user", (AudioPart(0), AudioPart(1))),)),
    ]
    asked = [good, replace(good, load=unreadable)]
    asked += [replace(good, sample=replace(good.sample, num_clips=n, messages=chat)) for n, chat in chats]
    monkeypatch.setattr("qa_train.preferences.draw.record_questions", lambda *args: asked)
    said = [SimpleNamespace(text=text, truncated=False, error=None) for text in ("the cat", "a hat")]
    generator = SimpleNamespace(sample=lambda items, count, decoding: [said for _ in items])
    skipped: Counter[str] = Counter()
    made = list(sampled_pairs(generator, None, None, samples=2, skipped=skipped))  # type: ignore[arg-type]
    assert [(pair.key, pair.chosen) for pair in made] == [("clip", "the cat")]
    assert skipped == {"several turns or a system prompt": 2, "not exactly one clip": 2, "unreadable clip": 1}


def test_shards_that_share_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [replace(pair("a b", "c"), load=lambda: np.zeros(16_000, np.float32)) for _ in range(3)]
    monkeypatch.setattr("qa_train.preferences.from_answers.record_questions", lambda *args: [])
    monkeypatch.setattr("qa_train.preferences.from_answers._drawn", lambda *args: [])
    monkeypatch.setattr("qa_train.preferences.from_answers.ranked", lambda *args: iter(made))
    assert pairs(PairsConfig(checkpoint="x", shards="x", out=str(tmp_path))) == 0
    assert load_index(str(tmp_path / "pairs-000.tar")).table["key"].to_pylist() == ["k", "k-2", "k-3"]


class ScriptedJudge:
    """Prefers the answer that stands first in a list; ``biased`` always says A between the named two."""

    def __init__(self, order: list[str], biased: tuple[str, ...] = ()) -> None:
        self.order, self.biased = order, biased
        self.asked: list[str] = []

    def ask(self, prompts: list[str]) -> list[Verdict]:
        self.asked += prompts
        return [Verdict(self.answer(prompt)) for prompt in prompts]

    def answer(self, prompt: str) -> str:
        a, b = re.findall(r"^Answer [AB]: (.*)$", prompt, re.MULTILINE)
        if {a, b} <= set(self.biased):
            return "A"
        return "a." if self.order.index(a) < self.order.index(b) else " **B**"


def test_a_judge_decides_in_both_orders() -> None:
    judge = ScriptedJudge(["good", "fair", "poor", "bad"])
    ranker = ByJudge(judge)  # type: ignore[arg-type]
    asked = [question("the cat"), question("the dog"), question("one answer")]
    answers = [["poor", "good", "fair", "good"], ["bad", "fair"], ["good", "good"]]
    assert ranker.rank(asked, answers) == [("good", "poor"), ("fair", "bad"), None]
    # Three answers in three comparisons, two in one; each in both orders, all asked at once.
    assert len(judge.asked) == 8
    assert ranker.counts == {"comparisons": 4, "unclear": 0, "failed": 0}
    assert "What the recording holds, or the right answer: the dog" in judge.asked[-1]


def test_a_judge_that_looks_at_places_decides_nothing() -> None:
    ranker = ByJudge(ScriptedJudge(["good", "fair", "poor"], ("good", "fair")))  # type: ignore[arg-type]
    assert ranker.rank([question("x")], [["good", "fair"]]) == [None]
    assert ranker.counts["unclear"] == 1
    assert ranker.rank([question("x")], [["good", "fair", "poor"]]) == [("good", "poor")]


def test_a_judge_that_fails_makes_no_pair() -> None:
    judge = ScriptedJudge([])
    judge.answer = lambda prompt: "I would say A"  # type: ignore[method-assign]
    ranker = ByJudge(judge)  # type: ignore[arg-type]
    assert ranker.rank([question("x")], [["good", "fair"]]) == [None]
    assert ranker.counts == {"comparisons": 1, "unclear": 0, "failed": 1}


def test_a_right_label_against_a_wrong_one_of_like_length() -> None:
    asked = replace(question("dog bark"), choices=("dog bark", "rain"))
    answers = ["A dog bark, quite loud.", "It is rain.", "", "Dog bark", "I hear rain on a roof, and some wind."]
    assert ByLabel().rank([asked], [answers]) == [("Dog bark", "It is rain.")]
    # Naming both is no right answer; without a right one there is no pair.
    assert ByLabel().rank([asked], [["a dog bark in the rain", "rain"]]) == [None]
    assert ByLabel().rank([asked], [["Dog bark", "dog bark!"]]) == [None]


def pair(chosen: str, rejected: str) -> Pair:
    return Pair("k", "p", lambda: np.zeros(1), chosen, rejected, None)


def test_balance_leaves_no_lesson_about_length() -> None:
    longer = [pair("a b c d", "a"), pair("a b", "a"), pair("a b c", "a")]
    found = balanced([*longer, pair("a", "b"), pair("a", "b c")])
    assert [(p.chosen, p.rejected) for p in found] == [("a b", "a"), ("a", "b"), ("a", "b c")]
    assert balanced(longer) == []


def test_the_lesson_says_whether_longer_is_better() -> None:
    lesson = Lesson()
    for chosen, rejected in (("a b c", "a"), ("a", "b"), ("a b", "a b c d")):
        lesson.add(pair(chosen, rejected))
    report = lesson.report()
    assert (report["pairs"], report["chosen_longer"], report["rejected_longer"]) == (3, 1, 1)
    assert (report["chosen_words"], report["rejected_words"]) == (2.0, 2.0)
    assert len(report["examples"]) == 3
    assert report["longer_wins_percent"] == 50


@pytest.mark.parametrize("by", ["label", "judge"])
def test_the_transcript_is_chosen_by_word_errors_only(by: str, tmp_path: Path) -> None:
    options = PairsConfig(checkpoint="none", shards="none", out=str(tmp_path), by=by, choose_transcript=True)
    with pytest.raises(ValueError, match=f"choose_transcript=true needs by=wer; by is {by}"):
        pairs(options)
