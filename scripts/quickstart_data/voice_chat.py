"""Spoken questions with checkable answers, from small grammars (the voice-chat half of SFT).

A question is spoken; the answer is text and repeats what was asked, so that a wrong answer shows
whether the question was misheard or the fact was not known. ``answer`` is the part that must be right.

Held-out questions are texts that training never speaks. What they ask can be inferred from training:
the same fact in other words, the mirrored sum, or a device and a room that were trained apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from data_pipelines.clips.picks import draw
from scripts.quickstart_data.spoken_text import TextIndex

NUMBERS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
OPPOSITES = (
    "hot cold,big small,fast slow,day night,up down,open closed,light dark,hard soft,wet dry,full empty,"
    "happy sad,young old,long short,high low,rich poor,strong weak,clean dirty,loud quiet,early late,near far,"
    "left right,first last,good bad,thick thin"
)
CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin", "England": "London",
    "Russia": "Moscow", "China": "Beijing", "Japan": "Tokyo", "Greece": "Athens", "Egypt": "Cairo",
    "Poland": "Warsaw", "Austria": "Vienna", "Norway": "Oslo", "Sweden": "Stockholm", "Ireland": "Dublin",
    "Portugal": "Lisbon", "Cuba": "Havana", "Peru": "Lima", "Canada": "Ottawa", "Hungary": "Budapest",
}  # fmt: skip
DEVICES = ("light", "fan", "heater", "radio", "television", "lamp", "music", "alarm")
# Families that ask for something to be done, not for a fact.
COMMANDS = ("device", "timer")
# Questions that training never hears, of which the first are spoken by a voice that it never hears either.
NUM_HELD_OUT_QUESTIONS, NUM_UNSEEN_VOICE = 180, 60
ROOMS = ("kitchen", "bedroom", "bathroom", "garage", "office", "hall", "garden", "basement")


@dataclass(frozen=True)
class Question:
    """One question: how it is spoken (normalised), the whole reply, the part that must be right."""

    family: str
    spoken: str
    reply: str
    answer: str


def _sums() -> Iterator[Question]:
    for a in range(1, 11):
        for b in range(1, 11):
            x, y, total = NUMBERS[a], NUMBERS[b], NUMBERS[a + b]
            for words in (f"what is {x} plus {y}", f"how much is {x} plus {y}", f"please add {x} and {y}"):
                yield Question("sum", words, f"{x.capitalize()} plus {y} is {total}.", total)


def _neighbours() -> Iterator[Question]:
    lists = (("day", DAYS, True), ("month", MONTHS, True), ("number", NUMBERS[:20], False))
    for noun, items, circular in lists:
        for i, item in enumerate(items):
            for shift, side, verb in ((1, "after", "follows"), (-1, "before", "precedes")):
                if not circular and not 0 <= i + shift < len(items):
                    continue
                other = items[(i + shift) % len(items)]
                for words in (
                    f"which {noun} comes {side} {item}",
                    f"what is the {noun} {side} {item}",
                    f"tell me the {noun} that {verb} {item}",
                ):
                    shown = other if circular else other.lower()
                    reply = f"The {noun} {side} {item} is {shown}."
                    yield Question(f"next {noun}", words.lower(), reply, shown)


def _opposites() -> Iterator[Question]:
    pairs = [pair.split() for pair in OPPOSITES.split(",")]
    for word, other in pairs + [pair[::-1] for pair in pairs]:
        for words in (
            f"what is the opposite of {word}",
            f"give me the opposite of {word}",
            f"which word is the opposite of {word}",
        ):
            yield Question("opposite", words, f"The opposite of {word} is {other}.", other)


def _capitals() -> Iterator[Question]:
    for country, city in CAPITALS.items():
        for words in (
            f"what is the capital of {country}",
            f"tell me the capital of {country}",
            f"which city is the capital of {country}",
            f"do you know the capital of {country}",
        ):
            yield Question("capital", words.lower(), f"The capital of {country} is {city}.", city)


def _comparisons() -> Iterator[Question]:
    for a in range(1, 21):
        for b in range(1, 21):
            if a == b:
                continue
            x, y = NUMBERS[a], NUMBERS[b]
            for relation, true in (("bigger", a > b), ("smaller", a < b)):
                reply = f"Yes, {x} is {relation} than {y}." if true else f"No, {x} is not {relation} than {y}."
                yield Question("comparison", f"is {x} {relation} than {y}", reply, "yes" if true else "no")


def _commands() -> Iterator[Question]:
    for device in DEVICES:
        for room in ROOMS:
            for state in ("on", "off"):
                reply = f"OK, the {device} in the {room} is {state}."
                for words in (f"turn {state} the {device} in the {room}", f"switch the {room} {device} {state}"):
                    yield Question("device", words, reply, f"{device} in the {room} is {state}")
    for amount in (*NUMBERS[2:], "thirty", "forty", "fifty"):
        for unit in ("minutes", "seconds", "hours"):
            reply = f"OK, the timer is set for {amount} {unit}."
            for words in (f"set a timer for {amount} {unit}", f"start a timer of {amount} {unit}"):
                yield Question("timer", words, reply, f"{amount} {unit}")


def all_questions() -> list[Question]:
    """Every question of every grammar; the spoken texts are distinct."""
    makers = (_sums, _neighbours, _opposites, _capitals, _comparisons, _commands)
    return [question for make in makers for question in make()]


def by_family(questions: list[Question], seed: str) -> dict[str, list[Question]]:
    """Questions grouped by family, each in a pseudo-random order that depends on ``seed`` and text."""
    families: dict[str, list[Question]] = defaultdict(list)
    for question in sorted(questions, key=lambda question: draw(seed, question.spoken)):
        families[question.family].append(question)
    return dict(families)


def _in_turns(families: dict[str, list[Question]], limit: int) -> list[Question]:
    """One question of each family in turn, until ``limit`` or until all are used."""
    longest = max(map(len, families.values()))
    turns = [family[i] for i in range(longest) for family in families.values() if i < len(family)]
    return turns[:limit]


def _asks(question: Question) -> str:
    """What is asked, whatever the wording: the reply names it (sums count in either order)."""
    if question.family == "sum":
        left, right = question.reply.lower().split(" is ")[0].split(" plus ")
        return " plus ".join(sorted((left, right)))
    return question.reply


def split(limit: int) -> tuple[list[Question], list[Question]]:
    """(train, held out): ``limit`` held-out questions, the same number of each family as far as they go.

    A held-out question is taken only if two other questions ask the same (or, for comparisons, if it
    can be inferred from the order of the numbers), so that it is unseen but not unknowable.
    """
    questions = all_questions()
    asked: dict[str, int] = defaultdict(int)
    for question in questions:
        asked[_asks(question)] += 1
    held_out: list[Question] = []
    families = by_family(questions, "voice-chat-held-out")
    # At most a quarter of a family, so that small families keep enough wordings to learn from.
    offered = {family: items[: len(items) // 4] for family, items in families.items()}
    for question in _in_turns(offered, len(questions)):
        least = 1 if question.family == "comparison" else 2
        if len(held_out) < limit and asked[_asks(question)] >= least:
            asked[_asks(question)] -= 1
            held_out.append(question)
    unseen = TextIndex(question.spoken for question in held_out)
    train = [question for question in questions if not unseen.conflicts(question.spoken)]
    return train, held_out


def choose(questions: list[Question], num: int, *, seed: int) -> list[Question]:
    """``num`` questions in turns over the families; a small family repeats before a big one is used up.

    Repeats are separate utterances: the voice is drawn from the text and the turn.
    """
    families = by_family(questions, f"voice-chat-{seed}")
    chosen = [family[i % len(family)] for i in range(num) for family in families.values()]
    return chosen[:num]


def record(question: Question, *, split: str, speaker: str, source: str) -> dict[str, object]:
    """The shard record of a spoken question (a chat about the record's own clip)."""
    return {
        "text": question.spoken,
        "language": "en",
        "messages": [
            {"role": "user", "content": "<audio>"},
            {"role": "assistant", "content": question.reply},
        ],
        "answer": question.answer,
        "family": question.family,
        "task": "chat",
        "split": split,
        "speaker": speaker,
        "source": source,
        "license": "CC0-1.0",
    }
