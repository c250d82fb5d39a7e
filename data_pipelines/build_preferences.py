"""`qa-train data preferences shards=... out=FOLDER`: preference pairs made by rule from annotated recordings.

The better answer is known from the annotation, the worse one is a typical hallucination (``family`` in the record):

wrong clip, words left out, words added, speech denied   a transcript, against one that is not what was said
invented speech         a sound without speech: that there is none, against words that nobody said
wrong sound             the label, against another one
sound denied            the label, against the answer that there is no speech, which is one to another question
absent event, present event   the truth about whether a sound is there, against its contrary (about equally often)
swapped order           two events in their order, against the other order
answered, not transcribed     a spoken question to be transcribed: its words, against an answer to it
transcribed, not answered     the same clip with no text at all: the answer, against the question's words

``OUT/NAME.lesson.json`` has for each family the side effects of its pairs: how long chosen and rejected answers are,
which of them is longer how often, and a few to read.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from data_pipelines.build_analysis import labels_not_heard, labels_of
from data_pipelines.chat_shards import BuilderConfig, Chat, build
from data_pipelines.clips.picks import draw, pick
from data_pipelines.clips.read_shards import Place, places, shard_paths
from data_pipelines.importing.import_report import Report
from data_pipelines.synthetic.preferences import (
    MIN_WORDS,
    NO_SPEECH,
    QUESTIONS,
    SOUND_QUESTIONS,
    denial,
    with_words,
    without_words,
)
from qa_train.data.shards.index import load_index
from qa_train.data.stores.folders import open_folder, write_text

# (family, question, chosen, rejected); an empty question: the clip alone.
Made = tuple[str, str, str, str]
FAMILIES = (
    "wrong clip", "words left out", "words added", "speech denied", "invented speech", "wrong sound", "sound denied",
    "absent event", "present event", "swapped order", "answered, not transcribed", "transcribed, not answered",
)  # fmt: skip
_HEARD = ("Can you hear {}?", "Is there {} in this recording?", "Do you hear {} here?")
_ORDER = ("What do you hear first, and what then?", "In which order do the sounds come?")
_EXAMPLES = 3
_SAID = 500
_NEAR = 8


@dataclass
class PreferencesConfig(BuilderConfig):
    """Options of `qa-train data preferences`."""

    # Indexed shards (a pattern, or [A,B]) whose records hold transcripts, labels, events or spoken chats.
    shards: Any = MISSING
    # Only records with this value, e.g. where.split=train.
    where: dict[str, Any] = field(default_factory=dict)
    # Kinds of pairs, e.g. families=[wrong clip,speech denied]; by default all that a record can give.
    families: list[str] = field(default_factory=lambda: list(FAMILIES))
    # Maximum pairs from one recording, drawn from all that it can give.
    per_clip: int = 2
    # Labels of sounds that may contain speech; no "invented speech" pair is made from them.
    voices: list[str] = field(default_factory=lambda: ["human sound", "singing voice", "speech", "Speech"])
    # Prefix of the shards.
    name: str = "preferences"
    # Licence, written into the report.
    license: str = ""


def main(options: PreferencesConfig) -> int:
    """Make preference pairs by rule from annotated recordings: the truth against a typical hallucination.

    OUT/NAME.lesson.json describes for each family what its pairs teach, with a few to read.
    """
    print(build_preferences(options).text())
    print(f"what the pairs teach, and pairs to read: {options.out}/{options.name}.lesson.json")
    return 0


def build_preferences(options: PreferencesConfig) -> Report:
    """One shard of pairs for each shard of recordings that gives any; ValueError for wrong options or shards."""
    if unknown := set(options.families) - set(FAMILIES):
        raise ValueError(f"data preferences: no family {sorted(unknown)}: use any of {list(FAMILIES)}")
    if options.per_clip < 1:
        raise ValueError("data preferences: per_clip must be at least 1")
    report = Report("preference pairs by rule", "splits of the recordings", options.license or "that of the recordings")
    found = {str(path): places(str(path), where=options.where) for path in shard_paths(options.shards)}
    labels = sorted({label for some in found.values() for place in some for label in labels_of(place.record)})
    names = ("where", "families", "per_clip", "voices", "name", "seed")
    settings = {name: getattr(options, name) for name in names}
    # Sounds and speech often lie in different shards: the sentence that was not said may come from any of them.
    said = {place.record["text"] for some in found.values() for place in some if place.record.get("text")}
    settings["said"] = sorted(said, key=lambda text: draw(options.seed, text, "said"))[:_SAID]
    parts: list[tuple[tuple[Any, ...], int]] = []
    for path, some in found.items():
        counts = [len(pairs_of(place, _texts(some), labels, settings)) for place in some]
        for place, count in zip(some, counts, strict=True):
            if not count:
                report.drop(place.key, "no family that the record can give")
        if sum(counts):
            parts.append(((path, load_index(path).fingerprint, labels, settings), sum(counts)))
    build(options.name, options.out, contrast, parts, report, options.engine_with(options.workers))
    out = open_folder(options.out)
    lesson = lessons([out / f"{options.name}-{i:05d}.tar" for i in range(len(parts))])
    write_text(out / f"{options.name}.lesson.json", json.dumps(lesson, indent=2, ensure_ascii=False) + "\n")
    return report


def _texts(some: list[Place]) -> dict[str, list[str]]:
    """The transcripts of a shard by language, each by its length: what else could have been said."""
    found: dict[str, set[str]] = {}
    for place in some:
        if place.record.get("text"):
            found.setdefault(str(place.record.get("language")), set()).add(place.record["text"])
    return {language: sorted(texts, key=lambda text: (len(text), text)) for language, texts in found.items()}


def _of_like_length(text: str, texts: list[str], *names: object) -> str | None:
    """Another one of the texts (by length), among those nearest: length alone cannot tell that it is wrong."""
    at = bisect_left(texts, (len(text), text), key=lambda other: (len(other), other))
    near = [other for other in texts[max(0, at - _NEAR // 2) : at + _NEAR // 2 + 1] if other != text]
    return pick(near, *names, "other") if near else None


def contrast(shard: str, digest: str, labels: list[str], settings: dict[str, Any]) -> Iterator[Chat]:
    """The pairs from the recordings of one shard; ``digest`` pins its content in the recipe."""
    some = places(shard, where=settings["where"])
    texts = _texts(some)
    for place in some:
        made = pairs_of(place, texts, labels, settings)
        wave = place.wave() if made else None
        for family, question, chosen, rejected in made:
            record = place.facts | {
                "messages": [{"role": "user", "content": f"<audio>{question}"}], "chosen": chosen, "rejected": rejected,
                "family": family, "task": "preference", "made_from": place.origin,
            }  # fmt: skip
            assert wave is not None
            key = f"{settings['name']}-{place.key}-{family.replace(',', '').replace(' ', '-')}"
            yield Chat(key, record, (wave,))


def pairs_of(place: Place, texts: dict[str, list[str]], labels: list[str], settings: dict[str, Any]) -> list[Made]:
    """The pairs drawn for one recording, in the order of ``FAMILIES``; each family comes once at most."""
    every = (*_about_words(place, texts, settings), *_about_sounds(place, labels, settings), *_about_mode(place))
    possible = [made for made in every if made[0] in settings["families"] and made[2] != made[3]]
    drawn = sorted(possible, key=lambda made: draw(settings["seed"], place.key, made[0], "drawn"))
    return [made for made in possible if made in drawn[: settings["per_clip"]]]


def _about_words(place: Place, texts: dict[str, list[str]], settings: dict[str, Any]) -> Iterator[Made]:
    record, names = place.record, (settings["seed"], place.key)
    question = pick(QUESTIONS, *names, "question")
    text = record.get("text")
    if not text:
        heard = labels_of(record)
        # Without a label it is unknown whether there is speech.
        if heard and settings["said"] and not set(heard) & set(settings["voices"]):
            yield "invented speech", question, NO_SPEECH, pick(settings["said"], *names, "invented")
        return
    words = text.split()
    if len(words) < MIN_WORDS:
        return
    other = _of_like_length(text, texts[str(record.get("language"))], *names)
    if other is not None:
        yield "wrong clip", question, text, other
        yield "words added", question, text, " ".join(with_words(words, other.split(), *names, "added"))
    yield "words left out", question, text, " ".join(without_words(words, *names, "left out"))
    yield "speech denied", question, text, NO_SPEECH


def _about_sounds(place: Place, labels: list[str], settings: dict[str, Any]) -> Iterator[Made]:
    record, names = place.record, (settings["seed"], place.key)
    mine, others = labels_of(record), labels_not_heard(record, labels)
    if mine and others:
        other = pick(others, *names, "other sound")
        if len(mine) == 1:
            question = pick(SOUND_QUESTIONS, *names, "sound question")
            yield "wrong sound", question, mine[0], other
            yield "sound denied", question, mine[0], denial(*names)
        # One of the two: a model that always answers no must be wrong half the time.
        present = draw(*names, "present") < 0.5
        label = (pick(mine, *names, "mine") if present else other).lower()
        asked = pick(_HEARD, *names, "heard").format(label)
        yes, no = f"Yes, I hear {label}.", f"No, I do not hear {label}."
        yield ("present event", asked, yes, no) if present else ("absent event", asked, no, yes)
    timed = [event for event in record.get("events") or [] if "start" in event and "end" in event]
    if len(timed) == 2:
        first, then = sorted(timed, key=lambda event: event["start"])
        one, two = first["label"].lower(), then["label"].lower()
        # Sounds that overlap have no clear order.
        if one != two and first["end"] <= then["start"]:
            asked = pick(_ORDER, *names, "order question")
            yield "swapped order", asked, f"First {one}, then {two}.", f"First {two}, then {one}."


def _about_mode(place: Place) -> Iterator[Made]:
    """A spoken question: whether it is to be answered or transcribed depends only on the accompanying text."""
    text, messages = place.record.get("text"), place.record.get("messages") or []
    spoken = [m for m in messages if m["role"] != "system"]
    if not text or len(spoken) != 2 or [m["role"] for m in spoken] != ["user", "assistant"]:
        return
    if spoken[0]["content"] == "<audio>" and isinstance(spoken[1]["content"], str):
        answer = spoken[1]["content"]
        yield "answered, not transcribed", pick(QUESTIONS, place.key, "transcribe"), text, answer
        yield "transcribed, not answered", "", answer, text


def lessons(paths: list[Path]) -> dict[str, Any]:
    """What the pairs of these shards teach, by family: lengths in words, and pairs to read."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for row in load_index(str(path)).table.to_pylist():
            record = json.loads(row["meta"])
            chosen, rejected = len(record["chosen"].split()), len(record["rejected"].split())
            empty = {"pairs": 0, "chosen_words": 0, "rejected_words": 0, "chosen_longer": 0, "rejected_longer": 0}
            family = found.setdefault(record["family"], {**empty, "examples": []})
            for name, value in zip(empty, (1, chosen, rejected, chosen > rejected, rejected > chosen), strict=True):
                family[name] += int(value)
            if len(family["examples"]) < _EXAMPLES:
                question = record["messages"][0]["content"].replace("<audio>", "") or "(the clip alone)"
                texts = {name: record[name] for name in ("chosen", "rejected")}
                family["examples"].append({"key": row["key"], "question": question, **texts})
    for family in found.values():
        for name in ("chosen_words", "rejected_words"):
            family[name] = round(family[name] / family["pairs"], 2)
    return dict(sorted(found.items()))
