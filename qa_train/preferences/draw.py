"""Preference pairs from a model's own answers to questions about recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from qa_train.config import EvalSetConfig
from qa_train.data.text.prompts import PromptBank
from qa_train.eval.answers import Limits, answer
from qa_train.eval.eval_sets import record_questions
from qa_train.eval.questions import Question
from qa_train.infer.generate import Decoding, Generator
from qa_train.preferences.rank import ByWordErrors, Pair, Ranker, ranked


def sampled_pairs(
    generator: Generator,
    clips: EvalSetConfig,
    bank: PromptBank,
    *,
    limits: Limits | None = None,
    samples: int = 4,
    seed: int = 0,
    ranker: Ranker = ByWordErrors(),  # noqa: B008 - frozen
    skipped: Counter[str] | None = None,
) -> Iterator[Pair]:
    """Pairs for the questions about ``clips`` (training data, never held-out data), in one go.

    ``ranker``: by default word error rate, for transcription questions. ``skipped`` counts, by reason, the questions
    that make no pair because they cannot be asked.
    """
    skipped = Counter() if skipped is None else skipped
    questions = askable(record_questions("pairs", clips, bank), skipped)
    decoding = Decoding(max_new_tokens=64, temperature=0.9, seed=seed)
    drawn = answer(questions, generator, decoding, samples=samples, limits=limits)
    yield from ranked(questions, drawn, samples, ranker, skipped)


def askable(questions: Sequence[Question], skipped: Counter[str]) -> list[Question]:
    """The questions that a pair can hold: one user message about one clip."""
    kept = []
    for question in questions:
        if len(question.sample.messages) > 1:
            skipped["several turns or a system prompt"] += 1
        elif question.sample.num_clips != 1:
            skipped["not exactly one clip"] += 1
        else:
            kept.append(question)
    return kept
