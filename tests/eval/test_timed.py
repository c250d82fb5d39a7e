"""Transcripts with a translation, with speakers, with times: counted by hand, and against every assignment."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace
from itertools import permutations

import pytest

from qa_train.eval.scores.prediction import Prediction
from qa_train.eval.scores.task_metrics import lower_is_better, score, word_edits
from qa_train.eval.scores.timed import (
    boundary_error_rows,
    boundary_f1_rows,
    cp_rows,
    speakers,
    timed_words,
    word_time_rows,
)


def test_the_two_parts_of_a_transcript_with_translation() -> None:
    item = Prediction("hola mundos\nhello big world again", ("hola mundo\nhello big world again",), "es")
    assert score("first_line_wer", [item]).value == 50.0
    assert score("rest_bleu", [item]).value == pytest.approx(100)
    # Without a second line there is no translation.
    assert score("rest_bleu", [Prediction("hello big world again", item.references, "es")]).value == 0.0
    assert score("first_line_wer", [Prediction("hola mundo\nx", item.references, "es", error="lost")]).value == 100.0


def test_speakers_and_their_words() -> None:
    text = "[0.00-1.50] Ana: hola a todos\n[1.50-2.00] Bo: sí: claro\n[2.00-2.25] Ana: adiós\n[3-4] nobody named"
    assert speakers(text) == {"Ana": "hola a todos adiós", "Bo": "sí: claro", "": "nobody named"}


def test_names_do_not_count_and_speakers_are_assigned() -> None:
    reference = "[0.00-1.00] Ann: one two three\n[1.00-2.00] Bob: four five"
    assert score("cp_wer", [Prediction("[0-1] S2: four five\n[1-2] S1: one two three", (reference,))]).value == 0.0
    # One speaker's words given to the other: two inserted, two missing, of five.
    assert score("cp_wer", [Prediction("A: one two three four five", (reference,))]).value == 80.0
    assert score("cp_wer", [Prediction("", (reference,))]).value == 100.0
    assert score("cp_wer", [Prediction("A: one two three\nB: four five\nC: six", (reference,))]).value == 20.0


def test_the_assignment_is_the_best_of_all() -> None:
    draw = random.Random(1)

    def turns(count: int) -> list[str]:
        return [" ".join(draw.choices("a b c d".split(), k=draw.randint(1, 6))) for _ in range(count)]

    for _ in range(60):
        said, wanted = turns(draw.randint(0, 4)), turns(draw.randint(1, 4))
        size = max(len(said), len(wanted))
        padded = [[text.split() for text in [*side, *[""] * (size - len(side))]] for side in (said, wanted)]
        every = [int(word_edits(padded[1], list(order))[:, 0].sum()) for order in permutations(padded[0])]
        texts = ["\n".join(f"S{i}: {text}" for i, text in enumerate(side)) for side in (said, wanted)]
        ((edits, _),) = cp_rows([Prediction(texts[0], (texts[1],))], lambda text, language: text.split()).tolist()
        assert edits == min(every)


def test_many_speakers_are_assigned_at_once() -> None:
    wanted = "\n".join(f"S{i}: w{i} a b" for i in range(12))
    said = "\n".join(f"T{i}: w{i} a b" for i in reversed(range(60)))
    # 48 speakers too many, of three words each.
    start = time.process_time()
    assert score("cp_wer", [Prediction(said, (wanted,))]).value == 100.0 * 48 * 3 / 36
    assert time.process_time() - start < 5


def test_references_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="cp_wer: no reference has any word"):
        score("cp_wer", [Prediction("a b c", ("",))])


def test_words_at_their_times() -> None:
    reference = "[0.10-0.50] Hola, [0.50-1.00] mundo [1.00-1.40] mundo"
    assert timed_words(reference)[0] == (0.1, 0.5, "hola")
    late = "[0.30-0.70] hola [0.50-1.30] mundo [1.00-1.40] mundo"
    # The first is 0.2 s late, the second ends 0.3 s late.
    assert word_time_rows([Prediction(late, (reference,))]).tolist() == [[2, 3]]
    assert score("word_times", [Prediction("[1.00-1.40] mundo", (reference,))]).value == pytest.approx(100 / 3)
    assert score("word_times", [Prediction("hola mundo mundo", (reference,))]).value == 0.0
    with pytest.raises(ValueError, match="no word with its times"):
        score("word_times", [Prediction("x", ("hola",))])


SEGMENTS = "[0.00-2.40] How are you?\n[3.00-4.10] I am fine.\n[4.10-6.00] And you?"


def test_segments_at_their_times() -> None:
    late = "[0.20-2.40] How are you?\n[3.30-6.00] I am fine and you"
    item = Prediction(late, (SEGMENTS,), "en")
    # Of 3 starts and 3 ends 0.00, 2.40 and 6.00 are found; 10 boundaries in all.
    assert boundary_f1_rows([item]).tolist() == [[6, 10]]
    assert score("boundary_f1", [item]).value == 60.0
    # Starts are 0.2, 0.3 and 0.8 s away, ends 0, 1.7 and 0 s.
    assert score("boundary_error", [item]).value == pytest.approx(3000 / 6)
    assert score("timed_wer", [item]).value == 0.0
    exact = replace(item, text=SEGMENTS)
    assert [score(name, [exact]).value for name in ("boundary_f1", "boundary_error", "timed_wer")] == [100.0, 0.0, 0.0]
    # Words alone, or none, find no boundary, and are worse than any times within the 6 s.
    words = replace(item, text="How are you? I am fine. And you?")
    assert score("boundary_f1", [words]).value == 0.0
    for none in (words, replace(item, text=""), replace(item, text=SEGMENTS, error="lost")):
        assert score("boundary_error", [none]).value == pytest.approx(6000)
    assert score("timed_wer", [words]).value == 0.0
    # As many segments as there are seconds find every boundary, and are no better for it.
    many = replace(item, text="".join(f"[{i / 10:.2f}-{i / 10:.2f}] x\n" for i in range(100)))
    assert score("boundary_error", [many]).value == pytest.approx(0.0, abs=1e-9)
    assert score("boundary_f1", [many]).value < 7
    for name in ("boundary_f1", "boundary_error"):
        assert lower_is_better(name) == (name == "boundary_error")
        with pytest.raises(ValueError, match=f"{name}: no segment with its times in the reference 'hola'"):
            score(name, [Prediction("x", ("hola",))])


def test_boundaries_against_every_pairing() -> None:
    draw = random.Random(2)

    def most(wanted: list[float], said: list[float]) -> int:
        """The twin: the first of the wanted ones is left over, or paired with any that fits."""
        if not wanted:
            return 0
        others = [most(wanted[1:], said)]
        for i, other in enumerate(said):
            if abs(other - wanted[0]) <= 0.2 + 1e-9:
                others.append(1 + most(wanted[1:], said[:i] + said[i + 1 :]))
        return max(others)

    def spans(count: int) -> list[tuple[float, float]]:
        starts = [draw.randint(0, 15) / 10 for _ in range(count)]
        return [(start, start + draw.randint(0, 8) / 10) for start in starts]

    for _ in range(200):
        wanted, said = spans(draw.randint(1, 5)), spans(draw.randint(0, 6))
        texts = ["\n".join(f"[{start:.2f}-{end:.2f}] x" for start, end in side) for side in (said, wanted)]
        item = Prediction(texts[0], (texts[1],))
        hits = sum(most([span[kind] for span in wanted], [span[kind] for span in said]) for kind in (0, 1))
        assert boundary_f1_rows([item]).tolist() == [[2 * hits, 2 * len(wanted) + 2 * len(said)]]
        long = max(end for _, end in wanted) - min(start for start, _ in wanted)
        far = [
            min((abs(span[kind] - other[kind]) for other in said), default=long) for span in wanted for kind in (0, 1)
        ]
        ((total, count),) = boundary_error_rows([item]).tolist()
        assert total == pytest.approx(1000 * math.fsum(far))
        assert count == 2 * len(wanted)
