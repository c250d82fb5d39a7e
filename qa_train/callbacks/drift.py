"""The rule of ``evaluation.stop``: has a set moved too far from the first evaluation of the run?

Training on one aim can cost another: answers get longer or speech recognition gets worse, and a narrow mixture forgets
tasks that it does not contain. A set that the run does not train on shows this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qa_train.config import StopConfig
from qa_train.eval.answers import Outcome
from qa_train.eval.questions import Question
from qa_train.eval.scores.normalise import transcript_words
from qa_train.eval.scores.prediction import without_thoughts
from qa_train.eval.scores.task_metrics import lower_is_better


def check_rule(name: str, rule: StopConfig, metric: str) -> None:
    """ValueError for a limit on the side where the set's metric gets better."""
    wrong, right = ("fall", "rise") if lower_is_better(metric) else ("rise", "fall")
    if getattr(rule, wrong) is not None:
        better = "lower" if lower_is_better(metric) else "higher"
        raise ValueError(f"evaluation.stop.{name}.{wrong}: {metric} is better when it is {better}; use {right}")


def mean_words(questions: Sequence[Question], outcomes: Sequence[Outcome]) -> float:
    """Words of an answer (characters of Chinese and Japanese); thoughts, tags and punctuation are not counted."""
    said = [
        len(transcript_words(without_thoughts(o.text), q.language)) for q, o in zip(questions, outcomes, strict=True)
    ]
    return round(sum(said) / len(said), 2)


def drifted(name: str, rule: StopConfig, start: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How a set violates its rule; None if it does not.

    ``start`` and ``now`` are records of metrics.jsonl: ``eval/NAME`` (points), and ``evaluation`` with ``words``.
    """
    before, after = start[f"eval/{name}"], now[f"eval/{name}"]
    for key, moved in (("rise", after - before), ("fall", before - after)):
        limit = getattr(rule, key)
        if limit is not None and moved > limit:
            verb = "rose" if key == "rise" else "fell"
            return (
                f"{name} {verb} by {moved:.1f} points, from {before:.1f} to {after:.1f} "
                f"(evaluation.stop.{name}.{key}: {limit:g})"
            )
    if rule.length_ratio is not None:
        words, first = now["evaluation"][name]["words"], start["evaluation"][name]["words"]
        if not first / rule.length_ratio <= words <= first * rule.length_ratio:
            return (
                f"{name} has answers of {words:.1f} words instead of {first:.1f} "
                f"(evaluation.stop.{name}.length_ratio: {rule.length_ratio:g})"
            )
    return None
