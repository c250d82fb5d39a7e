"""Scores of transcripts with more than words: two parts, speakers, times. Forms as ``configs/prompts`` writes them.

- ``first_line_wer``, ``rest_bleu``: of "transcript, then its translation on the next line".
- ``cp_wer``: of turns "[0.00-3.20] Ann: How are you?". The concatenated words of each speaker, the speakers of the
  answer assigned to those of the reference so that the fewest words are wrong (cpWER, Watanabe et al. 2020). Names and
  times do not count. Lines without a speaker are those of one more.
- ``word_times``: of words "[0.12-0.31] the". The share of reference words that the answer has, with start and end
  within ``TOLERANCE_S``, in percent.
- ``timed_wer``: of segments "[0.00-2.40] How are you?", or of words with times. The word error rate without the times.
- ``boundary_f1``: F1 of the starts and ends of segments, each paired with one of the same kind within ``TOLERANCE_S``
  (a collar), in percent; the words do not count.
- ``boundary_error``: mean absolute boundary error, in milliseconds: from every start and end of the reference to the
  nearest one of the answer. Without times in the answer each is as far away as the reference is long.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from rapidfuzz.distance import Levenshtein

from qa_train.eval.scores.normalise import without_tags
from qa_train.eval.scores.prediction import NoReferenceWords, Prediction, answer_of

TOLERANCE_S = 0.2
# 0.30 - 0.10 is more than 0.2 in floating point.
_ROUNDING = 1e-9
# The assignment looks at every set of the reference's speakers.
MAX_SPEAKERS = 12
Units = Callable[[str, str | None], list[str]]
_TURN = re.compile(r"^(?:\[[\d.]+-[\d.]+\]\s*)?([^:：\[\]]{1,40})[:：]\s*(.*)$")
# Not of a model that repeats a digit.
_SPAN = re.compile(r"\[(\d{1,9}(?:\.\d+)?)-(\d{1,9}(?:\.\d+)?)\]")
_WORD = re.compile(_SPAN.pattern + r"\s*([^\s\[]+)")


def first_lines(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Answers and references cut to their first line."""
    return [_each(p, lambda text: text.strip().split("\n")[0]) for p in predictions]


def after_first_lines(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Answers and references without their first line, on one line; the language is English."""
    rest = [_each(p, lambda text: " ".join(text.strip().split("\n")[1:])) for p in predictions]
    return [replace(p, language="en") for p in rest]


def without_times(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Answers and references without the times in brackets, on one line."""
    return [_each(p, lambda text: " ".join(_SPAN.sub(" ", text).split())) for p in predictions]


def _each(prediction: Prediction, cut: Callable[[str], str]) -> Prediction:
    references = tuple(cut(text) for text in prediction.references)
    return replace(prediction, text=cut(answer_of(prediction)), references=references)


def speakers(text: str) -> dict[str, str]:
    """{speaker: all words}, in order of appearance; "" for lines that name none."""
    found: dict[str, list[str]] = {}
    for line in without_tags(text).split("\n"):
        turn = _TURN.match(line.strip())
        name, words = (turn.group(1).strip(), turn.group(2)) if turn else ("", _SPAN.sub(" ", line))
        if words.strip():
            found.setdefault(name, []).append(words.strip())
    return {name: " ".join(parts) for name, parts in found.items()}


def cp_rows(predictions: Sequence[Prediction], units: Units) -> np.ndarray:
    """Rows of (edits under the best assignment, reference units) [n, 2]. ``units(text, language)``: words, normalised.

    Raises:
        ValueError: more than ``MAX_SPEAKERS`` speakers in a reference.
        NoReferenceWords: no reference with a word.
    """
    rows = []
    for p in predictions:
        said, wanted = (
            [units(words, p.language) for words in speakers(text).values()] for text in (answer_of(p), p.references[0])
        )
        if len(wanted) > MAX_SPEAKERS:
            raise ValueError(f"cp_wer: {len(wanted)} speakers in a reference; at most {MAX_SPEAKERS} can be assigned")
        rows.append((_fewest_edits(said, wanted), sum(map(len, wanted))))
    if not sum(count for _, count in rows):
        raise NoReferenceWords("cp_wer", len(rows), [edits for edits, _ in rows])
    return np.array(rows, dtype=np.int64)


def _fewest_edits(said: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> int:
    """Of all ways to give each wanted speaker at most one of those said; who is left over is all wrong."""
    # What a pair saves against leaving both over; the most, by the set of wanted speakers that are taken (bits).
    most = np.full(1 << len(wanted), -1, dtype=np.int64)
    most[0] = 0
    sets = np.arange(len(most))
    for words in said:
        after = most.copy()
        for i, reference in enumerate(wanted):
            free = sets[(sets >> i & 1 == 0) & (most >= 0)]
            saved = len(reference) + len(words) - Levenshtein.distance(reference, words)
            after[free | 1 << i] = np.maximum(after[free | 1 << i], most[free] + saved)
        most = after
    return int(sum(map(len, said)) + sum(map(len, wanted)) - most.max())


def timed_words(text: str) -> list[tuple[float, float, str]]:
    """(start, end, word) of every word that has its times, lower case, without marks around it."""
    found = [(float(a), float(b), word.lower().strip(".,;:!?\"'。，、！？")) for a, b, word in _WORD.findall(text)]
    return [entry for entry in found if entry[2]]


def word_time_rows(predictions: Sequence[Prediction]) -> np.ndarray:
    """Rows of (words said at their time, reference words) [n, 2].

    Words are paired by the alignment of fewest edits, not by their times. ValueError: a reference without any.
    """
    rows = []
    for p in predictions:
        wanted, said = timed_words(p.references[0]), timed_words(without_tags(answer_of(p)))
        if not wanted:
            raise ValueError(f"word_times: no word with its times in the reference {p.references[0]!r}")
        found = Levenshtein.opcodes([w for *_, w in wanted], [w for *_, w in said]).as_matching_blocks()
        pairs = [(wanted[block.a + i], said[block.b + i]) for block in found for i in range(block.size)]
        near = [max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= TOLERANCE_S + _ROUNDING for a, b in pairs]
        rows.append((sum(near), len(wanted)))
    return np.array(rows, dtype=np.int64)


def boundaries(text: str) -> tuple[list[float], list[float]]:
    """Starts and ends of all segments in seconds, each sorted."""
    spans = [(float(start), float(end)) for start, end in _SPAN.findall(text)]
    return sorted(start for start, _ in spans), sorted(end for _, end in spans)


def boundary_f1_rows(predictions: Sequence[Prediction]) -> np.ndarray:
    """Rows of (2 x paired boundaries, boundaries of reference and answer) [n, 2]. ValueError: as `_wanted`."""
    rows = []
    for p in predictions:
        wanted, said = _wanted("boundary_f1", p), boundaries(without_tags(answer_of(p)))
        hits = sum(map(_paired, wanted, said))
        rows.append((2 * hits, sum(map(len, (*wanted, *said)))))
    return np.array(rows, dtype=np.int64)


def boundary_error_rows(predictions: Sequence[Prediction]) -> np.ndarray:
    """Rows of (sum of distances in milliseconds, boundaries of the reference) [n, 2]. ValueError: as `_wanted`."""
    rows = []
    for p in predictions:
        wanted, said = _wanted("boundary_error", p), boundaries(without_tags(answer_of(p)))
        if said[0]:
            sides = zip(wanted, said, strict=True)
            far = [np.abs(np.subtract.outer(ours, theirs)).min(axis=1).sum() for ours, theirs in sides]
        else:
            # No answer must not be better than a bad one: each boundary is as far as it can be.
            far = [2 * len(wanted[0]) * (wanted[1][-1] - wanted[0][0])]
        rows.append((1000 * sum(far), 2 * len(wanted[0])))
    return np.array(rows, dtype=np.float64)


def _wanted(metric: str, prediction: Prediction) -> tuple[list[float], list[float]]:
    """Boundaries of the reference. ValueError: it has none."""
    found = boundaries(prediction.references[0])
    if not found[0]:
        raise ValueError(f"{metric}: no segment with its times in the reference {prediction.references[0]!r}")
    return found


def _paired(wanted: Sequence[float], said: Sequence[float]) -> int:
    """Most pairs within the tolerance, each time in one at most. Both are sorted, so the earliest that fits is best."""
    count = place = 0
    for each in wanted:
        while place < len(said) and said[place] < each - TOLERANCE_S - _ROUNDING:
            place += 1
        if place < len(said) and said[place] <= each + TOLERANCE_S + _ROUNDING:
            count, place = count + 1, place + 1
    return count
