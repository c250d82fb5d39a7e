"""Scores as pure functions: answers and references in, a number with its uncertainty out.

An empty, truncated or missing answer (unreadable clip) is an item like any other: it is scored against its reference,
counted and reported, never dropped. All values are percentages (BLEU and chrF: their usual 0-100 points; caption
metrics: 100 times their usual value; boundary_error: milliseconds).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from rapidfuzz.distance import Levenshtein

from qa_train.eval.scores.caption_metrics import caption_rows, meteor_points, meteor_rows
from qa_train.eval.scores.ifeval import ifeval_points, ifeval_rows
from qa_train.eval.scores.labels import (
    airbench_right,
    choice_right,
    exact_match,
    label_contained,
    label_matches,
    macro_f1_points,
    macro_f1_rows,
    map_points,
    map_rows,
    option_tokens_right,
    tokens_right,
    unparsed_labels,
)
from qa_train.eval.scores.normalise import (
    CHARACTER_LANGUAGES,
    strip_tags,
    transcript_words,
    without_tags,
)
from qa_train.eval.scores.overlap import bleu_points, bleu_statistics, chrf_points, chrf_statistics
from qa_train.eval.scores.own_metric import own_metric, own_statistics
from qa_train.eval.scores.prediction import NoReferenceWords, Prediction, Score, answer_of
from qa_train.eval.scores.timed import (
    after_first_lines,
    boundary_error_rows,
    boundary_f1_rows,
    cp_rows,
    first_lines,
    without_times,
    word_time_rows,
)
from qa_train.eval.scores.voicebench import bbh_answer, bbh_right, refuses

RESAMPLES = 1000


# (rows [n, k] of per-item statistics, sums [r, k] -> scores [r]): all that intervals and tests need.
Statistics = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]


def word_edits(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> np.ndarray:
    """Edit distances of paired unit sequences: int array [n, 2] of (edits, reference units).

    Units may be words or characters. An empty reference costs one edit per unit of the answer.
    """
    rows = [(Levenshtein.distance(a, b), len(a)) for a, b in zip(references, hypotheses, strict=True)]
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


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share, in percent (Wilson 1927; sound for small n, 0 and n)."""
    if n <= 0:
        raise ValueError("an interval of a share needs at least one item, found n = 0")
    share, z = right / n, 1.959964
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 100 / (1 + z * z / n)
    return max(0.0, (centre - half) * scale), min(100.0, (centre + half) * scale)


def _error_statistics(metric: str, predictions: Sequence[Prediction]) -> Statistics:
    """Rows of (edits, reference units): words, or of "cer" the characters with the spaces between words.

    A language without words between spaces (zh, yue, ja) is counted in characters.
    """

    def units(text: str, language: str | None) -> list[str]:
        words = transcript_words(text, language)
        return words if metric == "wer" or language in CHARACTER_LANGUAGES else list(" ".join(words))

    references = [units(p.references[0], p.language) for p in predictions]
    edits = word_edits(references, [units(answer_of(p), p.language) for p in predictions])
    if not edits[:, 1].sum():
        raise NoReferenceWords(metric, len(predictions), edits[:, 0].tolist())
    return edits, _percent


_BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab"}


def _bleu_statistics(predictions: Sequence[Prediction]) -> Statistics:
    """Corpus BLEU without normalisation; ``language`` is that of the references.

    Tokenised as in the released ``evaluate_st.py``: zh, ja-mecab, else 13a. ValueError: languages that need several.
    """
    found = sorted({_BLEU_TOKENIZERS.get(p.language or "", "13a") for p in predictions})
    if len(found) > 1:
        languages = sorted({p.language or "unknown" for p in predictions})
        raise ValueError(
            f"BLEU needs one tokenizer for all references, and they are in {', '.join(languages)}: split them by "
            "language"
        )
    tokenizer = found[0]
    return _overlap_statistics(predictions, partial(bleu_statistics, tokenizer=tokenizer)), bleu_points


def _overlap_statistics(predictions: Sequence[Prediction], one: Callable[..., list[int]]) -> np.ndarray:
    return np.array([one(without_tags(answer_of(p)), *p.references) for p in predictions], dtype=np.int64)


def _share_statistics(right: Callable[[Prediction], bool], predictions: Sequence[Prediction]) -> Statistics:
    """Rows of (right, 1)."""
    rows = np.array([(right(p), 1) for p in predictions], dtype=np.int64)
    return rows, _percent


def _percent(sums: np.ndarray) -> np.ndarray:
    """[r, 2] sums of (part, whole) -> [r] percent."""
    return 100.0 * sums[:, 0] / np.maximum(sums[:, 1], 1)


def _mean_statistics(rows: np.ndarray) -> Statistics:
    """Rows of (score of the item, 1)."""
    return rows, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1)


# Metrics that are a share of right answers.
SHARES: dict[str, Callable[[Prediction], bool]] = {
    # The label, whatever its letter case and punctuation.
    "accuracy": label_matches,
    # The label letter for letter (MELD, VocalSound).
    "exact": exact_match,
    # The right label inside a sentence, and no other one.
    "contains": label_contained,
    # A multiple-choice option by letter or text.
    "choice": choice_right,
    # AIR-Bench Foundation's reading of letters.
    "airbench": airbench_right,
    # MMAU's and MMAR's word rule, on the unchanged answer, or after replacing a letter by its option's text.
    "tokens": tokens_right,
    "mmau": option_tokens_right,
    # A harmful request is declined; the reference is not used.
    "refusal": refuses,
    # Yes, no, (A) or (B), as BBH's tasks in VoiceBench are answered.
    "bbh": bbh_right,
}
_OTHERS: dict[str, Callable[[Sequence[Prediction]], Statistics]] = {
    "wer": partial(_error_statistics, "wer"),
    "cer": partial(_error_statistics, "cer"),
    "bleu": _bleu_statistics,
    # Transcripts with a translation below, with speakers, with the times of words or segments.
    "first_line_wer": lambda predictions: _error_statistics("wer", first_lines(predictions)),
    "rest_bleu": lambda predictions: _bleu_statistics(after_first_lines(predictions)),
    "cp_wer": lambda predictions: (cp_rows(predictions, transcript_words), _percent),
    "word_times": lambda predictions: (word_time_rows(predictions), _percent),
    "timed_wer": lambda predictions: _error_statistics("wer", without_times(predictions)),
    "boundary_f1": lambda predictions: (boundary_f1_rows(predictions), _percent),
    "boundary_error": lambda predictions: _mean_statistics(boundary_error_rows(predictions)),
    "chrf": lambda predictions: (_overlap_statistics(predictions, chrf_statistics), chrf_points),
    "cider": lambda predictions: _mean_statistics(caption_rows("cider", predictions)),
    "rouge_l": lambda predictions: _mean_statistics(caption_rows("rouge_l", predictions)),
    "meteor": lambda predictions: (meteor_rows(predictions), meteor_points),
    # Instructions that were followed; the references are the instructions.
    "ifeval": lambda predictions: (ifeval_rows(predictions), ifeval_points),
    "macro_f1": lambda predictions: (macro_f1_rows(predictions), macro_f1_points),
    "map": lambda predictions: (map_rows(predictions), map_points),
}
STATISTICS = {name: partial(_share_statistics, right) for name, right in SHARES.items()} | _OTHERS
_ERROR_RATES = frozenset({"wer", "cer", "first_line_wer", "cp_wer", "timed_wer"})
# Metrics that know one right answer.
ONE_REFERENCE = _ERROR_RATES | {
    "bleu", "rest_bleu", "word_times", "boundary_f1", "boundary_error", "choice", "airbench", "tokens", "mmau", "bbh",
    "macro_f1",
}  # fmt: skip


def is_metric(name: str) -> bool:
    """Whether there is such a metric, built in or of the user's own.

    Raises:
        ValueError: one's own that the command line does not allow, or that is no function of predictions.
    """
    return name in STATISTICS or own_metric(name) is not None


def lower_is_better(metric: str) -> bool:
    """Whether a smaller number is a better one. ValueError: see ``is_metric``."""
    if metric in STATISTICS:
        return metric in _ERROR_RATES or metric == "boundary_error"
    return bool(getattr(own_metric(metric), "lower_is_better", False))


def rows_of_all(metric: str) -> bool:
    """Whether classes take their rows from those of all items.

    CIDEr-D weighs n-grams over all of them, METEOR's program would start again for every class, and one's own metric
    may load a model.
    """
    return metric in ("cider", "meteor") or metric not in STATISTICS


def without_reference(metric: str) -> bool:
    """Whether it looks at the answer alone. ValueError: see ``is_metric``."""
    return metric == "refusal" or (
        metric not in STATISTICS and bool(getattr(own_metric(metric), "without_reference", False))
    )


def unknown_metric(name: str, others: Sequence[str] = ()) -> str:
    """What to say of a name that is no metric; ``others``: names that are right as well."""
    return (
        f"metric {name!r} is unknown: use one of {', '.join((*sorted(STATISTICS), *others))}, or a function of your "
        "own as package.module:function (docs/extend.md)"
    )


def item_statistics(metric: str, predictions: Sequence[Prediction]) -> Statistics:
    """Per-item rows of a metric and the function from their sums to its value.

    Raises:
        ValueError: an unknown metric, no items, or references that the metric cannot use (see ``check_references``).
    """
    if not is_metric(metric):
        raise ValueError(unknown_metric(metric))
    if not predictions:
        raise ValueError(f"no items to score by {metric}: the source is empty")
    check_references(metric, [p.references for p in predictions])
    return STATISTICS[metric](predictions) if metric in STATISTICS else own_statistics(metric, tuple(predictions))


def check_references(metric: str, references: Sequence[Sequence[str]]) -> None:
    """ValueError when items have several references and the metric would look at the first alone."""
    several = [each for each in references if len(each) > 1]
    if metric in ONE_REFERENCE and several:
        raise ValueError(
            f"{metric} takes one reference and {len(several)} of {len(references)} items have several, e.g. "
            f"{list(several[0][:3])}: give one, or use a metric that accepts any of them (accuracy, exact, contains; "
            "chrf, cider or rouge_l for captions)"
        )


def interval(metric: str, rows: np.ndarray, value: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """95 % interval of a score from its items' rows [n, k]: Wilson's of a share, else the bootstrap's."""
    # One's own metric may be a share as well: drawing again from items that are all right finds no wrong one.
    if metric in SHARES or (metric not in STATISTICS and np.isin(value(rows), (0.0, 100.0)).all()):
        return wilson_interval(int((value(rows) == 100.0).sum()), len(rows))
    if metric in _ERROR_RATES and not rows[:, 0].any():
        # Drawing again from items without an error finds none: the share of words that may still be wrong.
        return wilson_interval(0, int(rows[:, 1].sum()))
    return bootstrap_interval(rows, value)


def score(metric: str, predictions: Sequence[Prediction]) -> Score:
    """Score all predictions of one source by the named metric."""
    rows, value = item_statistics(metric, predictions)
    low, high = interval(metric, rows, value)
    return Score(
        metric,
        float(value(rows.sum(axis=0, keepdims=True))[0]),
        low,
        high,
        len(predictions),
        empty=sum(p.error is None and not strip_tags(answer_of(p)) for p in predictions),
        truncated=sum(p.truncated for p in predictions),
        failed=sum(p.error is not None for p in predictions),
        unparsed=_unparsed(metric, predictions),
    )


def _unparsed(metric: str, predictions: Sequence[Prediction]) -> int:
    if metric == "bbh":
        return sum(bool(strip_tags(answer_of(p))) and bbh_answer(p) is None for p in predictions)
    return unparsed_labels(metric, predictions)
