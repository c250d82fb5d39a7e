"""Scores of transcripts with more than words: two parts, speakers, times. Forms as ``configs/prompts`` writes them.

- ``first_line_wer``, ``rest_bleu``: of "transcript, then its translation on the next line".
- ``cp_wer``: of turns "[0.00-3.20] Ann: How are you?". The concatenated words of each speaker, the speakers of the
  answer assigned to those of the reference so that the fewest words are wrong (cpWER, Watanabe et al. 2020). Names and
  times do not count. Lines without a speaker are those of one more.
- ``word_times``: of words "[0.12-0.31] the". The share of reference words that the answer has, with start and end
  within ``TOLERANCE_S``, in percent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import jiwer
import numpy as np

from qa_train.eval.scores.normalise import without_tags
from qa_train.eval.scores.prediction import NoReferenceWords, Prediction, answer_of

TOLERANCE_S = 0.2
# The assignment looks at every set of the reference's speakers.
MAX_SPEAKERS = 12
Units = Callable[[str, str | None], list[str]]
_TURN = re.compile(r"^(?:\[[\d.]+-[\d.]+\]\s*)?([^:：\[\]]{1,40})[:：]\s*(.*)$")
_WORD = re.compile(r"\[(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)\]\s*([^\s\[]+)")


def first_lines(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Answers and references cut to their first line."""
    return [_each(p, lambda text: text.strip().split("\n")[0]) for p in predictions]


def after_first_lines(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Answers and references without their first line, on one line; the language is English."""
    rest = [_each(p, lambda text: " ".join(text.strip().split("\n")[1:])) for p in predictions]
    return [replace(p, language="en") for p in rest]


def _each(prediction: Prediction, cut: Callable[[str], str]) -> Prediction:
    references = tuple(cut(text) for text in prediction.references)
    return replace(prediction, text=cut(answer_of(prediction)), references=references)


def speakers(text: str) -> dict[str, str]:
    """{speaker: all words}, in order of appearance; "" for lines that name none."""
    found: dict[str, list[str]] = {}
    for line in without_tags(text).split("\n"):
        turn = _TURN.match(line.strip())
        name, words = (turn.group(1).strip(), turn.group(2)) if turn else ("", re.sub(r"\[[\d.]+-[\d.]+\]", " ", line))
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
            saved = len(reference) + len(words) - _distance(reference, words)
            after[free | 1 << i] = np.maximum(after[free | 1 << i], most[free] + saved)
        most = after
    return int(sum(map(len, said)) + sum(map(len, wanted)) - most.max())


def _distance(reference: Sequence[str], words: Sequence[str]) -> int:
    if not reference:
        return len(words)
    found = jiwer.process_words([" ".join(reference)], [" ".join(words)])
    return found.substitutions + found.deletions + found.insertions


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
        found = jiwer.process_words([" ".join(w for *_, w in wanted)], [" ".join(w for *_, w in said)])
        pairs = [
            (wanted[c.ref_start_idx + i], said[c.hyp_start_idx + i])
            for c in found.alignments[0]
            if c.type == "equal"
            for i in range(c.ref_end_idx - c.ref_start_idx)
        ]
        near = [max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= TOLERANCE_S + 1e-9 for a, b in pairs]
        rows.append((sum(near), len(wanted)))
    return np.array(rows, dtype=np.int64)
