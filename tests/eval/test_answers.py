"""The engine that answers questions: one result for any number of ranks, after any kill, alone or in step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answerers import Counting, gathering

from qa_train.data.audio.waveform import BadAudio
from qa_train.data.text.sample import AudioPart, Message, Sample
from qa_train.eval.answers import Journal, Limits, Outcome, answer, read_journal
from qa_train.eval.questions import Question
from qa_train.eval.ranks import Ranks
from qa_train.infer.generate import Decoding

LIMITS = Limits(batch_size=4, token_budget=10_000)
DECODING = Decoding(temperature=1.0, seed=7)


def wave() -> tuple[np.ndarray, ...]:
    return (np.zeros(16_000, np.float32),)


def unreadable() -> tuple[np.ndarray, ...]:
    raise BadAudio("broken")


def asked(count: int) -> list[Question]:
    """Of like length, so that they are asked in their order."""
    message = Message("user", (AudioPart(0),))
    samples = [Sample(f"k{i}", (message,), 1, "asr", "en", "chat") for i in range(count)]
    return [Question(sample, wave, ("x",), "wer", "set", "en", tokens=40) for sample in samples]


def shared(
    world: int, questions: list[list[Question]], answerers: list[Counting], folder: Path | None = None, **how: Any
) -> list[list[Outcome]]:
    """What each of several ranks, here threads, gets; ``questions``: as each of them can read them."""
    gather = gathering(world)

    def work(rank: int) -> list[Outcome]:
        ranks = Ranks(rank, world, partial(gather, rank))
        journal = Journal(folder, "answers", {"model": 1}, ranks) if folder else None
        return answer(questions[rank], answerers[rank], DECODING, limits=LIMITS, ranks=ranks, journal=journal, **how)

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(work, range(world)))


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_the_batches_and_all_get_all_answers(world: int, samples: int) -> None:
    alone, progress = Counting(), []
    whole = answer(asked(10), alone, DECODING, samples=samples, limits=LIMITS, on_progress=progress.append)
    sizes = [4, 4, 2] if samples == 1 else [2] * 5
    assert [len(batch) for batch in alone.asked] == sizes == progress
    # Every batch draws its own numbers, whoever answers it.
    rows = 4 // samples
    assert [one.text for one in whole] == [f"k{i} {j} seed {7 + i // rows}" for i in range(10) for j in range(samples)]
    answerers = [Counting() for _ in range(world)]
    found = shared(world, [asked(10)] * world, answerers, samples=samples)
    assert found == [whole] * world
    assert [each.asked for each in answerers] == [alone.asked[rank::world] for rank in range(world)]


@pytest.mark.parametrize(("alone", "sizes"), [(False, [2] * 5), (True, [4, 4, 2])])
def test_a_batch_of_clips_of_unknown_length_is_asked_in_parts(alone: bool, sizes: list[int]) -> None:
    questions = [replace(question, tokens=0) for question in asked(10)]
    answerer = Counting(alone=alone)
    drawing = replace(DECODING, max_new_tokens=10)
    # A second of sound and its turn are 29 tokens.
    found = answer(questions, answerer, drawing, limits=Limits(4, 2 * (29 + 10)))
    assert [len(part) for part in answerer.asked] == sizes
    seeds = [7, 7, 10, 10, 8, 8, 11, 11, 9, 9] if not alone else [7] * 4 + [8] * 4 + [9] * 2
    assert [one.text for one in found] == [f"k{i} 0 seed {seed}" for i, seed in enumerate(seeds)]


@pytest.mark.parametrize(("samples", "dies"), [(1, 1), (1, 2), (2, 1), (2, 4)])
@pytest.mark.parametrize("worlds", [(1, 1), (1, 3), (1, 2)])
def test_a_kill_and_other_ranks_ask_only_what_is_left(
    tmp_path: Path, samples: int, dies: int, worlds: tuple[int, int]
) -> None:
    whole = answer(asked(10), Counting(), DECODING, samples=samples, limits=LIMITS)
    first = [Counting(dies=dies) for _ in range(worlds[0])]
    with pytest.raises(KeyboardInterrupt):
        shared(worlds[0], [asked(10)] * worlds[0], first, tmp_path, samples=samples)
    again = [Counting() for _ in range(worlds[1])]
    found = shared(worlds[1], [asked(10)] * worlds[1], again, tmp_path, samples=samples)
    plain = [[replace(one, clips="", batch="") for one in each] for each in found]
    assert plain == [whole] * worlds[1]
    batches = 3 if samples == 1 else 5
    assert sum(len(each.asked) for each in again) == batches - dies
    last = Counting()
    assert shared(1, [asked(10)], [last], tmp_path, samples=samples) == [found[0]]
    assert last.asked == []


def test_half_a_batch_is_asked_again_as_a_whole(tmp_path: Path) -> None:
    shared(1, [asked(10)], [Counting()], tmp_path, samples=2)
    path = tmp_path / "answers-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 20
    # Draw 1 of question 5 is gone, and the line that a killed process was writing is cut.
    kept = "".join(line for line in lines if '"index": 11,' not in line)
    path.write_bytes(kept.encode() + '{"index": 11, "text": "你'.encode()[:-1])
    again = Counting()
    (found,) = shared(1, [asked(10)], [again], tmp_path, samples=2)
    assert again.asked == [["k4", "k5"]]
    assert found[11].text == "k5 1 seed 9"
    assert len(read_journal(path, {"model": 1})) == 20


def test_answers_of_another_model_are_replaced(tmp_path: Path) -> None:
    changes: list[int] = []
    journal = Journal(tmp_path, "answers", {"model": 0}, on_change=lambda: changes.append(1))
    answer(asked(10), Counting(), limits=LIMITS, journal=journal)
    assert len(changes) == 3
    again = Counting()
    shared(1, [asked(10)], [again], tmp_path)
    assert len(again.asked) == 3
    # Of the same one nothing is asked and nothing changes.
    journal = Journal(tmp_path, "answers", {"model": 1}, on_change=lambda: pytest.fail("changed"))
    answer(asked(10), Counting(dies=0), limits=LIMITS, journal=journal)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_clip_that_cannot_be_read_is_tried_again_and_asks_nothing_else_again(tmp_path: Path, samples: int) -> None:
    whole = asked(3)
    broken = [*whole[:2], replace(whole[2], load=unreadable)]
    (first,) = shared(1, [broken], [Counting()], tmp_path, samples=samples)
    assert [one.error for one in first] == [None] * 2 * samples + ["broken"] * samples
    again = Counting()
    assert shared(1, [broken], [again], tmp_path, samples=samples) == [first]
    assert again.asked == []
    # Once it can be read, its batch is asked anew: the arithmetic is that of an undisturbed try.
    (repaired,) = shared(1, [whole], [again], tmp_path, samples=samples)
    assert again.asked == ([["k0", "k1", "k2"]] if samples == 1 else [["k2"]])
    assert repaired[-1].text.startswith(f"k2 {samples - 1} seed")


def test_an_endpoint_is_asked_only_for_what_is_missing(tmp_path: Path) -> None:
    (first,) = shared(1, [asked(6)], [Counting(refuses=("k1", "k4", "k5"), alone=True)], tmp_path)
    assert [one.error for one in first] == [None, "refused", None, None, "refused", "refused"]
    again = Counting(refuses=("k4",), alone=True)
    (found,) = shared(1, [asked(6)], [again], tmp_path)
    assert again.asked == [["k1"], ["k4", "k5"]]
    assert [one.error for one in found] == [None, None, None, None, "refused", None]


def test_a_first_batch_that_is_refused_as_a_whole_stops(tmp_path: Path) -> None:
    refuses = Counting(refuses=tuple(f"k{i}" for i in range(4)))
    with pytest.raises(ValueError, match="all of the first 4 questions were refused: refused"):
        shared(1, [asked(6)], [refuses], tmp_path)
    # After one answer it is the matter of the questions.
    shared(1, [asked(6)], [Counting()], tmp_path)
    (found,) = shared(1, [asked(6)], [Counting(refuses=("k0", "k1", "k2", "k3"))], tmp_path)
    assert not any(one.error for one in found)
    # And where the caller counts, at once.
    refuses.asked.clear()
    (found,) = shared(1, [asked(6)], [refuses], tmp_path / "counted", all_may_fail=True)
    assert [one.error for one in found] == ["refused"] * 4 + [None] * 2


def test_answers_to_items_alone_outlive_another_batch_size(tmp_path: Path) -> None:
    """Asked in the order of the questions, whatever their length."""
    questions = [replace(each, tokens=40 + i) for i, each in enumerate(asked(7))]
    first, again = Counting(alone=True, dies=2), Counting(alone=True)
    with pytest.raises(KeyboardInterrupt):
        answer(questions, first, limits=Limits(2), journal=Journal(tmp_path, "answers", {}))
    assert first.asked == [["k0", "k1"], ["k2", "k3"]]
    answer(questions, again, limits=Limits(3), journal=Journal(tmp_path, "answers", {}))
    assert again.asked == [["k4", "k5"], ["k6"]]


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("world", [2, 3])
def test_in_step_all_ask_the_same_without_what_one_cannot_read(world: int, samples: int) -> None:
    """Rank 1 cannot read two of the clips; a rank that asked them alone would wait for the others for ever."""
    mine = [asked(7) for _ in range(world)]
    mine[1][0] = replace(mine[1][0], load=unreadable)
    mine[1][5] = replace(mine[1][5], load=unreadable)
    answerers = [Counting() for _ in range(world)]
    found = shared(world, mine, answerers, in_step=True, samples=samples)
    assert all(each.asked == answerers[0].asked for each in answerers)
    assert sum(len(batch) for batch in answerers[0].asked) == 5
    assert all(each == found[0] for each in found)
    errors = [one.error for one in found[0][::samples]]
    assert errors == ["broken", None, None, None, None, "broken", None]
