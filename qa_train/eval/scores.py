"""Scores as pure functions: answers and references in, a number with its uncertainty out.

An answer that is empty, cut short or that never came (unreadable clip) is an item like any
other: it is scored against its reference and counted beside the score, never dropped.
All values are percentages (BLEU and chrF: their usual 0-100 points).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jiwer
import numpy as np

from qa_train.eval.overlap import bleu_points, bleu_statistics, chrf_points, chrf_statistics
from qa_train.eval.text import (
    CHARACTER_LANGUAGES,
    label_form,
    label_words,
    strip_tags,
    transcript_words,
    whisper_normalise,
)

RESAMPLES = 1000


@dataclass(frozen=True)
class Prediction:
    """One answer beside what it should have been."""

    text: str
    # Accepted answers; several only for labels ("contains" and "accuracy").
    references: tuple[str, ...]
    language: str | None = None
    # Other labels of the same question: an answer that names one of them too is wrong ("contains").
    choices: tuple[str, ...] = ()
    truncated: bool = False
    # Why there is no answer (unreadable clip, ...); the item is then scored as an empty answer.
    error: str | None = None


@dataclass(frozen=True)
class Score:
    """A score over ``n`` items with a 95 % confidence interval and the counts of odd answers."""

    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    empty: int = 0
    truncated: int = 0
    failed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, numbers rounded to two decimals."""
        return {k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(self).items()}


def word_edits(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> np.ndarray:
    """Edit distances of paired unit sequences: int array [n, 2] of (edits, reference units).

    Units may be words or characters. An empty reference costs one edit per unit of the answer.
    """
    # jiwer splits on spaces: no unit contains one except the space itself in character scoring.
    joined = [
        [" ".join("\u2423" if unit == " " else unit for unit in units) for units in side]
        for side in (references, hypotheses)
    ]
    output = jiwer.process_words(joined[0], joined[1])
    rows = []
    for reference, chunks in zip(references, output.alignments, strict=True):
        edits = sum(
            max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in chunks if c.type != "equal"
        )
        rows.append((edits, len(reference)))
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def bootstrap_interval(
    statistics: np.ndarray,
    value: Callable[[np.ndarray], np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile bootstrap over items of a corpus-level score.

    statistics: [n, k], summable per item; value: [r, k] sums -> [r] scores. Items are drawn with
    replacement; the draw depends on ``seed`` and n alone.
    """
    n = len(statistics)
    generator = np.random.default_rng(seed)
    sums = np.stack([statistics[generator.integers(0, n, size=n)].sum(axis=0) for _ in range(resamples)])
    low, high = np.percentile(value(sums), [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % Wilson score interval of a share, in percent (Wilson 1927; sound for small n, 0 and n)."""
    if n <= 0:
        raise ValueError("an interval of a share needs at least one item, found n = 0")
    share = right / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 100 / (1 + z * z / n)
    return max(0.0, (centre - half) * scale), min(100.0, (centre + half) * scale)


def _finish(metric: str, predictions: Sequence[Prediction], value: float, low: float, high: float) -> Score:
    return Score(
        metric,
        value,
        low,
        high,
        len(predictions),
        empty=sum(p.error is None and not strip_tags(p.text) for p in predictions),
        truncated=sum(p.truncated for p in predictions),
        failed=sum(p.error is not None for p in predictions),
    )


def _answer(prediction: Prediction) -> str:
    return "" if prediction.error is not None else prediction.text


def _error_rate(metric: str, predictions: Sequence[Prediction], units: Callable[[str, str | None], list[str]]) -> Score:
    references = [units(p.references[0], p.language) for p in predictions]
    edits = word_edits(references, [units(_answer(p), p.language) for p in predictions])
    if not edits[:, 1].sum():
        raise ValueError(
            f"{metric}: no reference has any word left after normalisation ({len(predictions)} items); "
            "check the gt field of the data"
        )

    def rate(sums: np.ndarray) -> np.ndarray:
        return 100.0 * sums[:, 0] / np.maximum(sums[:, 1], 1)

    value = float(rate(edits.sum(axis=0, keepdims=True))[0])
    return _finish(metric, predictions, value, *bootstrap_interval(edits, rate))


def wer(
    predictions: Sequence[Prediction],
    normalise: Callable[[str, str | None], str] = whisper_normalise,
) -> Score:
    """Word error rate: sum of edits / sum of reference words (characters for zh, yue, ja), in percent."""
    return _error_rate("wer", predictions, lambda t, language: transcript_words(t, language, normalise))


def cer(
    predictions: Sequence[Prediction],
    normalise: Callable[[str, str | None], str] = whisper_normalise,
) -> Score:
    """Character error rate over the normalised text, the spaces between words included, in percent."""

    def characters(text: str, language: str | None) -> list[str]:
        units = transcript_words(text, language, normalise)
        return units if language in CHARACTER_LANGUAGES else list(" ".join(units))

    return _error_rate("cer", predictions, characters)


def label_matches(prediction: Prediction) -> bool:
    """Whether the answer is one of the accepted labels (``text.label_form`` equality)."""
    answer = label_form(_answer(prediction))
    return bool(answer) and answer in {label_form(reference) for reference in prediction.references}


def label_contained(prediction: Prediction) -> bool:
    """Whether the answer says an accepted label as whole words, and none of the other choices."""
    words = f" {' '.join(label_words(_answer(prediction)))} "

    def says(label: str) -> bool:
        wanted = label_words(label)
        return bool(wanted) and f" {' '.join(wanted)} " in words

    accepted = {label_form(reference) for reference in prediction.references}
    # A choice that is a part of an accepted label ("guitar", "bass guitar") is no second answer.
    others = [c for c in prediction.choices if not any(f" {label_form(c)} " in f" {label} " for label in accepted)]
    return any(says(label) for label in prediction.references) and not any(says(c) for c in others)


def _share(metric: str, predictions: Sequence[Prediction], right: Callable[[Prediction], bool]) -> Score:
    count = sum(map(right, predictions))
    n = len(predictions)
    return _finish(metric, predictions, 100.0 * count / n, *wilson_interval(count, n))


def accuracy(predictions: Sequence[Prediction]) -> Score:
    """Share of answers that equal an accepted label, in percent; anything else is wrong."""
    return _share("accuracy", predictions, label_matches)


def contains(predictions: Sequence[Prediction]) -> Score:
    """Share of answers that name the right label inside a sentence, in percent (``label_contained``)."""
    return _share("contains", predictions, label_contained)


def bleu(predictions: Sequence[Prediction]) -> Score:
    """Corpus BLEU of sacrebleu without further normalisation; ``language`` is that of the references.

    Tokenised as in the released ``evaluate_st.py``: zh, ja-mecab, else 13a.
    """
    tokenizer = {"zh": "zh", "ja": "ja-mecab"}.get(predictions[0].language or "", "13a")
    return _overlap("bleu", predictions, partial(bleu_statistics, tokenizer=tokenizer), bleu_points)


def chrf(predictions: Sequence[Prediction]) -> Score:
    """Corpus chrF2 as sacrebleu computes it: kinder than BLEU to short sentences and small models."""
    return _overlap("chrf", predictions, chrf_statistics, chrf_points)


def _overlap(
    metric: str,
    predictions: Sequence[Prediction],
    statistics: Callable[[str, str], list[int]],
    points: Callable[[np.ndarray], np.ndarray],
) -> Score:
    rows = np.array([statistics(strip_tags(_answer(p)), p.references[0]) for p in predictions], dtype=np.int64)
    value = float(points(rows.sum(axis=0, keepdims=True))[0])
    return _finish(metric, predictions, value, *bootstrap_interval(rows, points))


METRICS: dict[str, Callable[[Sequence[Prediction]], Score]] = {
    "wer": wer,
    "cer": cer,
    "accuracy": accuracy,
    "contains": contains,
    "bleu": bleu,
    "chrf": chrf,
}
LOWER_IS_BETTER = frozenset({"wer", "cer"})


def score(metric: str, predictions: Sequence[Prediction]) -> Score:
    """Score all predictions of one source by the named metric."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: expected one of {', '.join(sorted(METRICS))}")
    if not predictions:
        raise ValueError(f"no items to score by {metric}: the source is empty")
    return METRICS[metric](predictions)
