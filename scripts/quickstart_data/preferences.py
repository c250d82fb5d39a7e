"""Preference pairs made by rule against hallucination: the better answer is known from the data.

* A clip without speech, asked for its words: better "there is no speech", worse an invented transcript or the name of
  the sound.
* A clip with a label, asked for its sound: better its label, worse another one, or the denial of speech, which is an
  answer to another question; and any clip, asked whether somebody speaks: better the truth. Else learning to deny
  speech would cost these answers.
* A clip with speech: better its transcript; worse the transcript of another clip, one with words left
  out, one with words added, or the claim that there is no speech (else the denial would always win).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.clips.picks import draw, pick
from data_pipelines.synthetic.preferences import (
    MIN_WORDS,
    NO_SPEECH,
    QUESTIONS,
    SOUND_QUESTIONS,
    denial,
    with_words,
    without_words,
)
from scripts.quickstart_data.clip import Clip, read_shard

SPEECH_QUESTIONS = ("Is there any speech here?", "Is somebody speaking in this recording?")
# Classes in which somebody may be heard: not clean examples of "no speech".
_VOICES = ("human sound", "singing voice")
PAIRS_PER_CLIP = 2
_WORSE = ("wrong clip", "words left out", "words added", "speech denied")
_KEPT_FIELDS = ("language", "label", "split", "source", "license", "speaker", "text")


def _worse_transcript(kind: str, text: str, others: list[str], *names: object) -> str:
    # A wrong transcript of like length cannot be told by its length alone.
    near = sorted(others, key=lambda other: (abs(len(other) - len(text)), draw(*names, other)))[:8]
    other = pick(near, *names, "other")
    if kind == "wrong clip":
        return str(other)
    if kind == "words left out":
        return " ".join(without_words(text.split(), *names, "cut"))
    if kind == "words added":
        return " ".join(with_words(text.split(), other.split(), *names, "insert"))
    return NO_SPEECH


def pair(clip: Clip, kind: str, *, chosen: str, rejected: str, seed: int, questions: Sequence[str] = QUESTIONS) -> Clip:
    """The clip as a preference record: messages end with the user's turn."""
    question = pick(questions, seed, clip.key, kind, "question")
    facts = {name: clip.record[name] for name in _KEPT_FIELDS if name in clip.record}
    record = {
        **facts,
        "messages": [{"role": "user", "content": f"<audio>{question}"}],
        "chosen": chosen,
        "rejected": rejected,
        "family": kind,
        "task": "preference",
    }
    return replace(clip, key=f"{clip.key}-{kind.replace(' ', '-')}", record=record)


def make_pairs(clips: Sequence[Clip], *, seed: int, per_clip: int = PAIRS_PER_CLIP) -> Iterator[Clip]:
    """``per_clip`` pairs for each sound without voices and each English clip of at least three words,
    one more for each about whether it holds speech, and two for each label.

    At most four transcripts for a speech clip: there are four ways to be wrong.
    """
    speech = [
        clip for clip in clips
        if clip.record.get("language") == "en" and len(clip.record.get("text", "").split()) >= MIN_WORDS
    ]  # fmt: skip
    texts = sorted({clip.record["text"] for clip in speech})
    labels = sorted({clip.record["label"] for clip in clips if "label" in clip.record})
    for clip in clips:
        label = clip.record.get("label")
        if label is not None and len(labels) > 1:
            other = pick([each for each in labels if each != label], seed, clip.key, "label")
            yield pair(clip, "wrong sound", chosen=label, rejected=other, seed=seed, questions=SOUND_QUESTIONS)
            denied = denial(seed, clip.key)
            yield pair(clip, "sound denied", chosen=label, rejected=denied, seed=seed, questions=SOUND_QUESTIONS)
        if "text" in clip.record or label in _VOICES:
            continue
        yield _speech_or_not(clip, "No", "Yes", seed)
        for turn in range(per_clip):
            kind = "invented speech" if turn == 0 else f"invented speech {turn + 1}"
            # Worse is a transcript of something else, and just as much the answer to another question.
            rejected = label if turn % 2 and label else pick(texts, seed, clip.key, turn)
            made = pair(clip, kind, chosen=NO_SPEECH, rejected=rejected, seed=seed)
            yield replace(made, record={**made.record, "family": "invented speech"})
    for clip in speech:
        yield _speech_or_not(clip, "Yes", "No", seed)
        text = clip.record["text"]
        others = [other for other in texts if other != text]
        first = int(draw(seed, clip.key, "kind") * len(_WORSE))
        for turn in range(min(per_clip, len(_WORSE))):
            kind = _WORSE[(first + turn) % len(_WORSE)]
            worse = _worse_transcript(kind, text, others, seed, clip.key, kind)
            yield pair(clip, kind, chosen=text, rejected=worse, seed=seed)


def _speech_or_not(clip: Clip, chosen: str, rejected: str, seed: int) -> Clip:
    return pair(clip, "speech or not", chosen=chosen, rejected=rejected, seed=seed, questions=SPEECH_QUESTIONS)


def denials(clips: Sequence[Clip], *, seed: int) -> Iterator[Clip]:
    """Each sound without voices as a chat: asked for its words, the answer is that there are none.

    DPO strengthens an answer that a model gives at times; this teaches it in the first place.
    """
    for clip in clips:
        if "text" in clip.record or clip.record.get("label") in _VOICES:
            continue
        made = pair(clip, "denial", chosen=NO_SPEECH, rejected="", seed=seed)
        asked = made.record["messages"]
        facts = {name: made.record[name] for name in (*_KEPT_FIELDS, "family") if name in made.record}
        answer = {"role": "assistant", "content": NO_SPEECH}
        yield replace(made, record={**facts, "messages": [*asked, answer], "task": "chat"})


def pairs(shards: list[str], digests: list[str], split: str, seed: int) -> Iterator[Clip]:
    """Pairs from the clips of ``shards`` that lie on side ``split``; ``digests`` tie a recipe to their content."""
    assert len(shards) == len(digests)

    def usable(record: dict[str, Any]) -> bool:
        return record["split"] == split and record.get("language", "en") == "en"

    return make_pairs([clip for shard in shards for clip in read_shard(Path(shard), keep=usable)], seed=seed)
