"""Questions and answers, checked by a second way to compute them."""

from __future__ import annotations

import re
from collections import Counter

from scripts.quickstart_data import voice_chat
from scripts.quickstart_data.spoken_text import TextIndex, spoken

NUMBER = {word: i for i, word in enumerate(voice_chat.NUMBERS)}


def test_sums_and_comparisons_are_right() -> None:
    checked: Counter[str] = Counter()
    for question in voice_chat.all_questions():
        numbers = [NUMBER[word] for word in question.spoken.split() if word in NUMBER]
        if question.family == "sum":
            assert NUMBER[question.answer] == sum(numbers)
            assert question.reply.endswith(f" is {question.answer}.")
        elif question.family == "comparison":
            first, second = numbers
            assert (question.answer == "yes") == (first > second if "bigger" in question.spoken else first < second)
            assert question.reply.lower().startswith(question.answer + ",")
        elif question.family == "next number":
            after = re.search("after|follows", question.spoken) is not None
            assert NUMBER[question.answer] == numbers[0] + (1 if after else -1)
        checked[question.family] += 1
    assert min(checked.values()) > 40


def test_questions_are_spoken_forms_and_distinct() -> None:
    questions = voice_chat.all_questions()
    assert len({question.spoken for question in questions}) == len(questions)
    for question in questions:
        assert spoken(question.spoken, "en") == question.spoken
        assert question.answer.lower() in question.reply.lower()


def test_one_question_has_one_reply_and_commands_say_what_was_asked() -> None:
    for question in voice_chat.all_questions():
        if question.family == "device":
            words = set(question.spoken.split())
            room, state = question.answer.split()[-3], question.answer.split()[-1]
            assert {room, state, question.answer.split()[0]} <= words
            assert ("on" in words) == (state == "on")


def test_held_out_questions_are_unseen_but_not_unknowable() -> None:
    train, held_out = voice_chat.split(180)
    assert len(held_out) == 180
    assert len(set(Counter(question.family for question in held_out))) == 9
    index = TextIndex(question.spoken for question in train)
    assert not any(index.conflicts(question.spoken) for question in held_out)
    replies = {question.reply for question in train}
    for question in held_out:
        if question.family == "sum":
            left, right = question.reply.lower().split(" is ")[0].split(" plus ")
            assert any(
                reply.lower().startswith((f"{left} plus {right} ", f"{right} plus {left} ")) for reply in replies
            )
        elif question.family != "comparison":
            assert question.reply in replies, question


def test_choice_is_balanced_and_repeatable() -> None:
    train, _ = voice_chat.split(180)
    chosen = voice_chat.choose(train, 900, seed=1)
    assert set(Counter(question.family for question in chosen).values()) == {100}
    assert chosen == voice_chat.choose(train, 900, seed=1)
    assert chosen != voice_chat.choose(train, 900, seed=2)
