"""Asking a model all questions of an evaluation: chunked reading, a journal to resume from, the probe."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qa_train.data.audio.waveform import BadAudio
from qa_train.eval.questions import Question
from qa_train.eval.scores.normalise import strip_tags
from qa_train.eval.scores.task_metrics import Prediction, wilson_interval
from qa_train.infer.generate import Answer, Decoding, Item
from qa_train.utils.atomic import write_text

# Clips held in memory at a time; batches are length-sorted within a chunk.
CHUNK = 512


@dataclass(frozen=True)
class Outcome:
    """What came of one question: an answer, or why there is none."""

    text: str = ""
    truncated: bool = False
    error: str | None = None
    # Digests of the clips that were heard, and of all that was asked in one batch.
    clips: str = ""
    batch: str = ""


class Journal:
    """Answers given so far, one JSON line each, under the identity of model, data and decoding.

    Opening a journal of the same identity gives its answers back; any other content is replaced.
    Failed answers are not kept: a clip that could not be read is tried again.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.outcomes = {i: o for i, o in read_journal(path, identity).items() if o.error is None}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(dict(identity), sort_keys=True)]
        lines += [self._line(index, outcome) for index, outcome in self.outcomes.items()]
        write_text(path, "\n".join(lines) + "\n")

    @staticmethod
    def _line(index: int, outcome: Outcome) -> str:
        return json.dumps({"index": index, **asdict(outcome)}, ensure_ascii=False)

    def add(self, outcomes: Mapping[int, Outcome]) -> None:
        """Append answers, those not in it yet, and have them on disk before returning."""
        outcomes = {i: outcome for i, outcome in outcomes.items() if self.outcomes.get(i) != outcome}
        if not outcomes:
            return
        self.outcomes |= outcomes
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(self._line(index, outcome) + "\n" for index, outcome in outcomes.items())
            file.flush()
            os.fsync(file.fileno())


def read_journal(path: Path, identity: Mapping[str, Any]) -> dict[int, Outcome]:
    """The outcomes of a journal of this identity, failed ones too; {} for another one or none."""
    if not path.is_file():
        return {}
    rows = []
    # Not splitlines(): an answer may hold other line separators (U+2028), which JSON does not escape.
    for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            # The line that a killed process was writing.
            break
    if not rows or rows[0] != json.loads(json.dumps(dict(identity))):
        return {}
    return {row.pop("index"): Outcome(**row) for row in rows[1:]}


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Answerer(Protocol):
    """Whatever answers items in order: a ``Generator``, or an endpoint.

    With an attribute ``alone`` that is true, an answer does not hang on the items asked beside it.
    """

    def generate(
        self,
        items: Sequence[Item],
        decoding: Decoding | None = None,
        *,
        on_batch: Callable[[dict[int, Answer]], None] | None = None,
    ) -> list[Answer]:
        """Answers in the order of the items; ``on_batch`` receives {item number: answer} as they come."""
        ...


def answer_questions(
    generator: Answerer,
    questions: Sequence[Question],
    decoding: Decoding,
    *,
    known: Mapping[int, Outcome] | None = None,
    on_answers: Callable[[dict[int, Outcome]], None] | None = None,
) -> list[Outcome]:
    """Answer every question that is not ``known`` yet; the result is in the order of the questions.

    An unreadable clip and a refused item give an outcome with ``error``; any other failure is the caller's to see.
    ``on_answers`` receives new outcomes by question number, batch by batch.
    """
    outcomes = dict(known or {})
    report = on_answers or (lambda new: None)
    todo = [i for i in range(len(questions)) if i not in outcomes]

    def keep(new: dict[int, Outcome]) -> None:
        outcomes.update(new)
        report(new)

    for start in range(0, len(todo), CHUNK):
        items: dict[int, Item] = {}
        for i in todo[start : start + CHUNK]:
            try:
                items[i] = Item(questions[i].sample, questions[i].load())
            except BadAudio as error:
                keep({i: Outcome(error=str(error))})
        numbers = list(items)

        def answered(done: dict[int, Answer], numbers: list[int] = numbers) -> None:
            keep({numbers[j]: Outcome(a.text, a.truncated, a.error) for j, a in done.items()})

        generator.generate(list(items.values()), decoding, on_batch=answered)
    return [outcomes[i] for i in range(len(questions))]


def predictions(questions: Sequence[Question], outcomes: Sequence[Outcome]) -> list[Prediction]:
    """Questions and outcomes as what the scores take."""
    return [
        Prediction(o.text, q.references, q.language, q.choices, o.truncated, o.error)
        for q, o in zip(questions, outcomes, strict=True)
    ]


def silence_probe(
    generator: Answerer,
    questions: Sequence[Question],
    outcomes: Sequence[Outcome],
    decoding: Decoding,
    count: int,
) -> dict[str, Any] | None:
    """Share of answers that change when every clip is replaced by silence of the same length.

    Up to ``count`` questions, spread evenly over those answered; None when none has a clip. A
    model that hears its clips changes most open answers; a share near 0 says that it does not.
    """
    picks = _probed(questions, outcomes, count)

    def silent(question: Question) -> tuple[np.ndarray, ...]:
        return tuple(np.zeros_like(wave) for wave in question.load())

    asked = [replace(questions[i], load=partial(silent, questions[i])) for i in picks]
    return _changed(answer_questions(generator, asked, decoding), [outcomes[i] for i in picks]) if picks else None


# Both shares of changed answers surely below this: the model does not listen.
DEAF_PERCENT = 25.0


def listening_probe(
    generator: Answerer,
    questions: Sequence[Question],
    outcomes: Sequence[Outcome],
    decoding: Decoding,
    count: int,
) -> dict[str, Any] | None:
    """Up to ``count`` questions asked again in three ways: {"again", "silence", "other_clip", "listens"}.

    ``again`` is the control: the share of answers that change when the same clip is asked again. Endpoints, and
    bfloat16 in batches of other items, do not repeat themselves. Against those second answers stand the ones to silence
    of the same length and to another item's clip, cut or repeated to the same length: who counts seconds hears nothing.

    ``listens`` is True when one of the two shares lies above ``DEAF_PERCENT`` and above the control's, each by its 95 %
    interval; False when both lie below ``DEAF_PERCENT``; None when that cannot be told. None instead of all: no clips.
    """
    picks = _probed(questions, outcomes, count)
    if not picks:
        return None
    pool = _probed(questions, outcomes, 2 * count)

    def silent(i: int) -> tuple[np.ndarray, ...]:
        return tuple(np.zeros_like(wave) for wave in questions[i].load())

    def exchanged(i: int) -> tuple[np.ndarray, ...]:
        # Half the probed items further on: neighbours are often cut from one recording.
        others = [j for j in pool if j != i] or [i]
        place = sum(j < i for j in others)
        other = questions[others[(place + len(others) // 2) % len(others)]]
        waves = other.load()
        return tuple(np.resize(waves[k % len(waves)], len(own)) for k, own in enumerate(questions[i].load()))

    def answers(load: Callable[[int], tuple[np.ndarray, ...]]) -> list[Outcome]:
        return answer_questions(generator, [replace(questions[i], load=partial(load, i)) for i in picks], decoding)

    same = answers(lambda i: questions[i].load())
    again = _changed(same, [outcomes[i] for i in picks])
    shares = {"silence": _changed(answers(silent), same), "other_clip": _changed(answers(exchanged), same)}
    surely = max(DEAF_PERCENT, again["ci_high"])
    listens: bool | None = None
    if all(share["ci_high"] < DEAF_PERCENT for share in shares.values()):
        listens = False
    elif any(share["ci_low"] > surely for share in shares.values()):
        listens = True
    return {"again": again, **shares, "listens": listens}


def _probed(questions: Sequence[Question], outcomes: Sequence[Outcome], count: int) -> list[int]:
    """Up to ``count`` answered questions with a clip, spread evenly."""
    with_clip = [i for i, q in enumerate(questions) if q.sample.num_clips and outcomes[i].error is None]
    if not with_clip or count < 1:
        return []
    places = np.unique(np.linspace(0, len(with_clip) - 1, count).round().astype(int))
    return [with_clip[i] for i in places]


def _changed(after: Sequence[Outcome], before: Sequence[Outcome]) -> dict[str, Any]:
    """Of the questions that were answered both times: how many, the share of other answers, its 95 % interval."""
    pairs = [(new, old) for new, old in zip(after, before, strict=True) if new.error is None and old.error is None]
    changed = sum(strip_tags(new.text) != strip_tags(old.text) for new, old in pairs)
    low, high = wilson_interval(changed, len(pairs)) if pairs else (0.0, 100.0)
    return {
        "n": len(pairs),
        "changed_percent": round(100 * changed / max(1, len(pairs)), 2),
        "ci_low": round(low, 2),
        "ci_high": round(high, 2),
    }
