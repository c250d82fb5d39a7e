"""BLEU and chrF from sums over sentences, so that resampling sentences for an interval is cheap.

Both equal sacrebleu's corpus scores (tests). A statistic row is summed over any set of sentences
and then turned into points.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
from sacrebleu.metrics.bleu import BLEU

CHRF_ORDER = 6
CHRF_BETA = 2


@lru_cache(maxsize=4)
def _scorer(tokenizer: str) -> BLEU:
    try:
        return BLEU(tokenize=tokenizer)
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"BLEU with the tokenizer {tokenizer} needs mecab-python3 and ipadic: pip install 'qa-train[eval]'"
        ) from error


def bleu_statistics(answer: str, reference: str, tokenizer: str = "13a") -> list[int]:
    """Matches and totals of the 1- to 4-grams, then the two lengths: 10 integers."""
    one = _scorer(tokenizer).corpus_score([answer], [[reference]])
    return [*one.counts, *one.totals, one.sys_len, one.ref_len]


def bleu_points(sums: np.ndarray) -> np.ndarray:
    """[r, 10] summed statistics -> [r] BLEU with sacrebleu's default smoothing."""
    rows = sums.tolist()
    return np.array([BLEU.compute_bleu(row[:4], row[4:8], row[8], row[9], "exp").score for row in rows])


def chrf_statistics(answer: str, *references: str) -> list[int]:
    """For character n-grams of order 1 to 6, without white space: answer's, reference's and common ones.

    Of several references it is the one that gives the answer most points, the first of equal ones.
    """
    rows = [_chrf_row(answer, reference) for reference in references]
    return rows[int(np.argmax(chrf_points(np.array(rows))))] if len(rows) > 1 else rows[0]


def _chrf_row(answer: str, reference: str) -> list[int]:
    row: list[int] = []
    texts = ["".join(text.split()) for text in (answer, reference)]
    for order in range(1, CHRF_ORDER + 1):
        grams = [Counter(t[i : i + order] for i in range(len(t) - order + 1)) for t in texts]
        # As sacrebleu: what the reference is too short for is not counted against the answer.
        said = grams[0].total() if grams[1] else 0
        row += [said, grams[1].total(), (grams[0] & grams[1]).total()]
    return row


def chrf_points(sums: np.ndarray) -> np.ndarray:
    """[r, 18] summed statistics -> [r] chrF2: F score of the mean precision and the mean recall.

    Orders that the answers or the references are too short for do not count (Popovic 2015;
    sacrebleu's "effective order").
    """
    counts = sums.reshape(len(sums), CHRF_ORDER, 3).astype(float)
    usable = (counts[:, :, 0] > 0) & (counts[:, :, 1] > 0)
    orders = np.maximum(usable.sum(1), 1)
    safe = np.maximum(counts[:, :, :2], 1)
    precision, recall = (((counts[:, :, 2] / safe[:, :, i]) * usable).sum(1) / orders for i in (0, 1))
    weight = CHRF_BETA**2
    divisor = weight * precision + recall
    return 100 * (1 + weight) * precision * recall / np.where(divisor > 0, divisor, 1)
