"""METEOR 1.5 for English through the jar that pycocoevalcap brings (Denkowski and Lavie 2014).

The jar aligns an answer with each reference by equal words, stems, synonyms and paraphrases, and gives the statistics
of the best one. As in published numbers a corpus has the score of its summed statistics, not the mean over its items.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from qa_train.eval.scores.caption_metrics import find_java, tokenised
from qa_train.eval.scores.prediction import Prediction

# Words and function words of answer and reference; matches of content and of function words by each of four ways to
# match, on both sides; chunks; matched words of both sides. In the order in which the jar prints them.
STATISTICS, CHUNKS = 23, 20
# What a match counts by the word itself, its stem, a synonym, a paraphrase.
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
# The jar's parameters for English: weight of recall, of content words; exponent and weight of the penalty for chunks.
ALPHA, DELTA, BETA, GAMMA = 0.85, 0.75, 0.2, 0.6


def meteor_rows(predictions: Sequence[Prediction]) -> np.ndarray:
    """Statistics of each answer with the reference that fits it best, to be summed over items. [n, 23]

    Raises:
        ValueError: texts of another language, no pycocoevalcap, no Java, or the jar did not answer every line with
            statistics.
    """
    if others := sorted({p.language for p in predictions if p.language not in (None, "en")}):
        raise ValueError(f"meteor knows English words only, and items are in {', '.join(others)}: use metric: chrf")
    answers, wanted = tokenised("meteor", predictions)
    # Three bars part the texts of a line.
    lines = tuple(
        " ||| ".join(["SCORE", *(text.replace("|||", "") for text in (*group, answer))])
        for answer, group in zip(answers, wanted, strict=True)
    )
    rows = np.array(_aligned(lines), dtype=float).reshape(len(lines), STATISTICS)
    # An answer that matches as a whole is not a chunk, alone or in a sum.
    whole = (_matches(rows).sum((1, 2)) == rows[:, :2]).all(1) & (rows[:, CHUNKS] == 1)
    rows[whole, CHUNKS] = 0
    return rows


def meteor_points(sums: np.ndarray) -> np.ndarray:
    """[r, 23] summed statistics -> [r] METEOR x 100."""
    words, function_words = sums[:, :2], sums[:, 2:4]
    length = DELTA * (words - function_words) + (1 - DELTA) * function_words
    weighted = np.einsum("rwcs,w,c->rs", _matches(sums), WEIGHTS, [DELTA, 1 - DELTA])
    # Nothing matches nothing: the score is 0.
    precision, recall = (weighted / np.where(length > 0, length, 1)).T
    divisor = (1 - ALPHA) * recall + ALPHA * precision
    mean = precision * recall / np.where(divisor > 0, divisor, 1)
    pieces = 2 * sums[:, CHUNKS] / np.maximum(sums[:, CHUNKS + 1 :].sum(1), 1)
    return 100 * np.maximum(mean * (1 - GAMMA * pieces**BETA), 0)


def _matches(rows: np.ndarray) -> np.ndarray:
    """[r, 4 ways to match, content or function words, answer or reference]."""
    return rows[:, 4:CHUNKS].reshape(-1, len(WEIGHTS), 2, 2)


@lru_cache(maxsize=4)
def _aligned(lines: tuple[str, ...]) -> list[list[float]]:
    """The jar's statistics of each line: one process, which takes seconds to start and ends with its input."""
    from pycocoevalcap.meteor import meteor

    jar = Path(meteor.__file__).with_name(meteor.METEOR_JAR)
    done = subprocess.run(
        [find_java(), "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"],
        input="".join(line + "\n" for line in lines), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    found = done.stdout.splitlines()
    try:
        rows = [[float(number) for number in line.split()] for line in found]
    except ValueError:
        rows = []
    if done.returncode or len(rows) != len(lines) or any(len(row) != STATISTICS for row in rows):
        raise ValueError(
            f"METEOR gave {len(found)} lines for {len(lines)} items, or other things than {STATISTICS} numbers each "
            f"(exit code {done.returncode}): {(done.stderr.strip() or done.stdout.strip())[:300]}"
        )
    return rows
