"""Preference pairs from a model's own answers, ranked by a metric that can be checked.

For every clip, k answers are sampled; the best becomes ``chosen`` and the worst ``rejected`` when
their scores are far enough apart. Nothing is judged by another model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qa_train.data.prompts import PromptBank
from qa_train.eval.questions import Question, part_text
from qa_train.eval.records import EvalSet, record_questions
from qa_train.eval.scores import word_edits
from qa_train.eval.text import transcript_words
from qa_train.infer.generate import Decoding, Generator, Item

# Clips whose waveforms are held in memory at a time.
_CHUNK = 256


@dataclass(frozen=True)
class Pair:
    """One preference pair: what was asked about which clip, and the two answers."""

    key: str
    prompt: str
    wave: np.ndarray
    chosen: str
    rejected: str
    language: str | None

    def record(self, split: str) -> dict[str, Any]:
        """The JSON member of the pair's shard record."""
        return {
            "messages": [{"role": "user", "content": f"<audio>{self.prompt}"}],
            "chosen": self.chosen,
            "rejected": self.rejected,
            "language": self.language,
            "split": split,
            "source": "sampled",
        }


def sampled_pairs(
    generator: Generator,
    clips: EvalSet,
    bank: PromptBank,
    *,
    samples: int = 4,
    temperature: float = 0.9,
    margin: float = 0.15,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Iterator[Pair]:
    """Pairs for the transcription questions about ``clips`` (training data, never held-out data).

    ``margin``: least difference of word error rate (edits / reference words) between the two
    answers. The chosen answer is the best sample, so that the model learns from what it can say.
    """
    questions = record_questions(clips, bank)
    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        waves = [question.load() for question in chunk]
        items = [Item(question.sample, wave) for question, wave in zip(chunk, waves, strict=True)]
        for question, wave, answers in zip(chunk, waves, generator.sample(items, samples, decoding), strict=True):
            texts = [answer.text.strip() for answer in answers if not answer.truncated]
            pair = _best_and_worst(question, texts, margin)
            if pair is not None:
                yield Pair(
                    question.sample.key, part_text(question.sample.messages[-1]), wave[0], *pair, question.language
                )


def _best_and_worst(question: Question, texts: list[str], margin: float) -> tuple[str, str] | None:
    reference = transcript_words(question.references[0], question.language)
    if not reference or len(set(texts)) < 2:
        return None
    answers = [transcript_words(text, question.language) for text in texts]
    edits = word_edits([reference] * len(answers), answers)[:, 0] / len(reference)
    best, worst = int(edits.argmin()), int(edits.argmax())
    if edits[worst] - edits[best] < margin or not texts[best] or not texts[worst]:
        return None
    return texts[best], texts[worst]
