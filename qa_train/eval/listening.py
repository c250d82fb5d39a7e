"""The listening probe: does an answer change when the audio changes?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from qa_train.eval.answers import Answerer, Limits, Outcome, answer
from qa_train.eval.questions import Question
from qa_train.eval.scores.normalise import strip_tags
from qa_train.eval.scores.task_metrics import wilson_interval
from qa_train.infer.generate import Decoding

# Both shares of changed answers surely below this: the model does not listen.
DEAF_PERCENT = 25.0


def listening_probe(
    generator: Answerer,
    questions: Sequence[Question],
    outcomes: Sequence[Outcome],
    decoding: Decoding,
    count: int,
    limits: Limits | None = None,
) -> dict[str, Any] | None:
    """Up to ``count`` questions asked again in three ways: {"again", "silence", "other_clip", "listens"}.

    ``again`` is the control: the share of answers that change when the same clip is asked again. Endpoints, and
    bfloat16 in batches of other items, do not repeat themselves. Those second answers are compared with the answers to
    silence of the same length and to another item's clip, cut or repeated to the same length, so a model that only uses
    clip length is not counted as listening.

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
        asked = [replace(questions[i], load=partial(load, i)) for i in picks]
        return answer(asked, generator, decoding, limits=limits)

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
