"""IFEval's 25 kinds of instructions on cases made by hand: followed, not followed, loosely followed."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest

from qa_train.eval.scores.ifeval import (
    CHECKS,
    _detector,
    _splitter,
    follows,
    ifeval_parts,
    ifeval_rows,
    loose_variants,
    read_instruction,
)
from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scores.task_metrics import score

# (instruction, its arguments, an answer that follows it, one that does not)
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["rain", "sun"]}, "Sunshine after RAIN.", "Only rain."),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "at least"}, "Tea, more tea", "One tea"),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, "One tea", "Tea, more tea"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "dog"]}, "A catalogue of birds", "My CAT sleeps"),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 3, "let_relation": "at least"}, "Eve, eh", "Eve"),
    ("language:response_language", {"language": "de"}, "Das ist ein schöner Tag, und ich gehe nach Hause.",
     "This is a nice day, and I am going home."),
    ("language:response_language", {"language": "zh"}, "今天天气很好，我要回家了。", "A nice day, and I am going."),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"},
     "Dr. Smith left. He was tired.", "One. Two came. Three went."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "What?", "What?!"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "*** one *** two", "one *** *** two"),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "It's half-way", "only three words"),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "However"}, 
     "One.\n\n\"however, two.", "One.\n\nBut however."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name] at place"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. I stay", "Bye. PS I stay"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\np.p.s more", "Bye.\nP.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "Here:\n* a\n - b", "* a\n* b\n* c"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold**\n* a", "**bold**"),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe.", "My answer is perhaps."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1\na\nSection 2\nb", "Section 1\na\nSection B\nb"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1, 2]}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<A song>>\nla la", "<< >>\nla la"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:two_responses", {}, "******one******two", "one******two******three"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi"}, "say hi: Hi!", "Hi! Say hi"),
    ("startend:end_checker", {"end_phrase": "The end."}, 'So it was. "the END."', "The end. Really."),
    ("startend:quotation", {}, ' "all of it" ', '"not all" of it'),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
     "STOP and LOOK around", "STOP and look Around"),
    ("change_case:english_capital", {}, "THIS IS A LOUD ANSWER TO YOUR QUESTION", "This Is A Loud Answer"),
    ("change_case:english_capital", {}, 
     "THIS IS A LOUD ANSWER TO YOUR QUESTION", "ЭТО ОЧЕНЬ ГРОМКИЙ ОТВЕТ НА ВАШ ВОПРОС"),
    ("change_case:english_lowercase", {}, "this is a quiet answer to your question", "This is a quiet answer"),
    ("punctuation:no_comma", {}, "no commas; none", "one, comma"),
]  # fmt: skip


def instruction(name: str, arguments: dict[str, Any]) -> str:
    return json.dumps({"id": name, "kwargs": arguments})


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_each_instruction(name: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    assert follows(good, name, arguments)
    assert not follows(bad, name, arguments)
    assert not follows("  \n", name, arguments)


def test_all_25_are_there_and_tested() -> None:
    assert len(CHECKS) == 25
    assert {case[0] for case in CASES} == set(CHECKS)


def test_the_loose_reading_forgives_first_line_last_line_and_asterisks() -> None:
    answer = "Sure, here you are:\n*the song*\nHope that helps, friend"
    name, arguments = "punctuation:no_comma", {}
    assert not follows(answer, name, arguments)
    assert any(follows(text, name, arguments) for text in loose_variants(answer))
    assert loose_variants("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_the_number_is_the_mean_of_four_shares() -> None:
    comma, quote = instruction("punctuation:no_comma", {}), instruction("startend:quotation", {})
    found = [
        Prediction('"all good"', (comma, quote)),
        # Loosely both, strictly the quotation fails: the last line goes.
        Prediction('"fine"\nok', (comma, quote)),
        Prediction("no, none", (comma,)),
        Prediction("", (comma,)),
        Prediction("lost", (comma,), error="unreadable"),
    ]
    rows = ifeval_rows(found)
    assert rows.tolist() == [[1, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2], [0, 0, 1, 0, 0, 1], [0, 0, 1, 0, 0, 1],
                             [0, 0, 1, 0, 0, 1]]  # fmt: skip
    parts = [100 / 5, 200 / 5, 300 / 7, 400 / 7]
    assert ifeval_parts(rows.sum(0, keepdims=True))[0] == pytest.approx(parts)
    total = score("ifeval", found)
    assert total.value == pytest.approx(np.mean(parts))
    assert (total.n, total.empty, total.failed) == (5, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no comma, please", "expected {"),
        (instruction("keywords:rhyme", {}), "'keywords:rhyme' is unknown"),
        (instruction("keywords:frequency", {"keyword": "a", "relation": None}), "lacks frequency and relation"),
        (
            instruction("length_constraints:number_words", {"num_words": 3, "relation": "around"}),
            "relation='around' cannot be used: expected one of 'less than'",
        ),
        (instruction("length_constraints:number_paragraphs", {"num_paragraphs": "few"}), "num_paragraphs='few' cannot"),
        (instruction("keywords:existence", {"keywords": ["("]}), r"keywords=\['\('\] cannot be used: missing \)"),
        (instruction("keywords:existence", {"keywords": "word"}), "expected a list of words"),
        (instruction("startend:end_checker", {"end_phrase": 3}), "end_phrase=3 cannot be used: expected a text"),
    ],
)
def test_what_cannot_be_checked_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_instruction(text)
    with pytest.raises(ValueError, match=message):
        score("ifeval", [Prediction("a", (text,))])


def test_an_answer_of_brackets_alone_is_no_json() -> None:
    for depth in (2_000, 200_000):
        text = instruction("detectable_format:json_format", {})
        assert score("ifeval", [Prediction("[" * depth, (text,))]).value == 0.0


@pytest.mark.parametrize(
    ("package", "name", "arguments"),
    [
        (
            "nltk.tokenize",
            "change_case:capital_word_frequency",
            {"capital_frequency": 1, "capital_relation": "at least"},
        ),
        ("punkt.data", "length_constraints:number_sentences", {"num_sentences": 1, "relation": "at least"}),
        ("langdetect", "language:response_language", {"language": "en"}),
    ],
)
def test_missing_packages_are_named(
    package: str, name: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for cached in (_detector, _splitter):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install 'qa-train\[ifeval\]'"):
        score("ifeval", [Prediction("Some words.", (instruction(name, arguments),))])
    for cached in (_detector, _splitter):
        cached.cache_clear()
