"""The plan: pure, exact in its shares, full in its batches, and seekable."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from qa_train.data.plan import Ints, Plan, SampleRef, pack


@dataclass
class Fake:
    """A source whose token counts depend on row and epoch."""

    name: str
    weight: float
    shard_lengths: list[int]
    fingerprint: str = "f"
    longest: int = 300
    asked: Counter[tuple[int, int]] = field(default_factory=Counter)

    def token_counts(self, rows: Ints, epochs: Ints) -> Ints:
        self.asked.update(zip(rows.tolist(), epochs.tolist(), strict=True))
        return 20 + (rows * 7919 + epochs * 104_729) % self.longest


GOLDEN = [SampleRef(0, 275, 0), SampleRef(1, 15, 0), SampleRef(2, 208, 0), SampleRef(0, 142, 0)]


def make(**options: int) -> Plan:
    sources = [Fake("a", 3, [100, 80, 120]), Fake("b", 1, [40]), Fake("c", 2, [0, 500]), Fake("off", 0, [9])]
    return Plan(
        sources, **{"seed": 1, "tokens_per_batch": 3000, "batches_per_step": 4, "chapter_samples": 900, **options}
    )


def test_the_plan_is_a_pure_function_of_its_arguments() -> None:
    forward = make()
    wanted = [forward.batch(k) for k in range(300)]
    backward = make()
    assert [backward.batch(k) for k in reversed(range(300))] == wanted[::-1]
    assert [make(seed=2).batch(k) for k in range(3)] != wanted[:3]
    assert forward.fingerprint == make().fingerprint
    for change in ({"seed": 2}, {"tokens_per_batch": 2999}, {"batches_per_step": 5}, {"chapter_samples": 901}):
        assert make(**change).fingerprint != forward.fingerprint


def test_golden_order() -> None:
    """A change here means that no run of an earlier version can be continued."""
    assert make().batch(0)[:4] == GOLDEN


def test_seek_needs_no_replay() -> None:
    walked = make()
    hint = walked.seek_hint(200)
    resumed = make()
    resumed.seek(*hint)
    assert [resumed.batch(k) for k in range(200, 260)] == [walked.batch(k) for k in range(200, 260)]
    asked = sum(sum(source.asked.values()) for source in resumed.sources if isinstance(source, Fake))
    chapters = 1 + walked.seek_hint(259)[0] - hint[0]
    assert asked <= chapters * 902
    with pytest.raises(ValueError, match="chapter 0 starts at batch 0"):
        resumed.seek(0, 5)


def test_shares_are_exact_over_time_and_epochs_do_not_mix() -> None:
    plan = make()
    seen: list[list[SampleRef]] = [[], [], [], []]
    for number in range(7):
        for ref in sorted_by_place(plan, number):
            seen[ref.source].append(ref)
        total = 900 * (number + 1)
        for source, share in ((0, 3 / 6), (1, 1 / 6), (2, 2 / 6)):
            assert abs(len(seen[source]) - share * total) <= 0.5
    assert seen[3] == []
    for source, rows in ((0, 300), (1, 40), (2, 500)):
        for epoch in range(len(seen[source]) // rows):
            part = seen[source][epoch * rows : (epoch + 1) * rows]
            assert sorted(ref.row for ref in part) == list(range(rows))
            assert {ref.epoch for ref in part} == {epoch}
    # Epochs differ in their order.
    assert [r.row for r in seen[1][:40]] != [r.row for r in seen[1][40:80]]


def sorted_by_place(plan: Plan, number: int) -> list[SampleRef]:
    """The chapter's samples before packing: packing keeps them, but not their order."""
    chapter = plan.chapter(number)
    assert chapter.too_long == []
    packed = [ref for batch in chapter.batches for ref in batch]
    # Epochs are in order before packing, and packing is checked on its own: sort by epoch.
    return sorted(packed, key=lambda ref: ref.epoch)


def test_a_chapter_reads_few_shards_and_spreads_its_sources() -> None:
    sources = [Fake("a", 1, [100] * 50), Fake("b", 1, [1000])]
    plan = Plan(sources, seed=0, tokens_per_batch=3000, batches_per_step=1, chapter_samples=400)
    for number in (0, 3):
        refs = [ref for batch in plan.chapter(number).batches for ref in batch]
        assert len({ref.row // 100 for ref in refs if ref.source == 0}) <= 3
        halves = Counter((i < len(refs) // 2, ref.source) for i, ref in enumerate(refs))
        assert min(halves.values()) > 80


@pytest.mark.parametrize(("longest", "fill"), [(150, 0.99), (700, 0.98)])
def test_batches_are_full_and_within_the_budget(longest: int, fill: float) -> None:
    sources = [Fake("a", 1, [5000], longest=longest)]
    plan = Plan(sources, seed=0, tokens_per_batch=3000, batches_per_step=1, chapter_samples=5000)
    chapter = plan.chapter(0)
    sizes = [
        int(sources[0].token_counts(np.array([r.row for r in b]), np.array([r.epoch for r in b])).sum())
        for b in chapter.batches
    ]
    assert max(sizes) <= 3000
    assert sum(sizes) == chapter.tokens
    assert np.mean(sizes) / 3000 >= fill
    assert sorted(ref.row for batch in chapter.batches for ref in batch) == list(range(5000))


def test_packing_by_hand() -> None:
    assert pack([5, 6, 4, 3, 2], 10) == [[0, 2], [1, 3], [4]]
    assert pack([], 10) == []


def test_what_fits_in_no_batch_is_reported_and_only_that() -> None:
    plan = Plan(
        [Fake("a", 1, [200], longest=300)], seed=0, tokens_per_batch=250, batches_per_step=1, chapter_samples=200
    )
    chapter = plan.chapter(0)
    assert len(chapter.too_long) + sum(map(len, chapter.batches)) == 200
    counts = plan.sources[0].token_counts(np.arange(200), np.zeros(200, dtype=np.int64))
    assert {ref.row for ref in chapter.too_long} == set(np.flatnonzero(counts > 250).tolist())


def test_impossible_plans_fail_clearly() -> None:
    with pytest.raises(ValueError, match=r"tokens_per_batch=10 \(the shortest has 20"):
        make(tokens_per_batch=10).batch(0)
    with pytest.raises(ValueError, match="weight above 0"):
        Plan([Fake("a", 0, [1])], seed=0, tokens_per_batch=1, batches_per_step=1, chapter_samples=1)
    with pytest.raises(ValueError, match="'a' has no usable record"):
        Plan([Fake("a", 1, [0])], seed=0, tokens_per_batch=1, batches_per_step=1, chapter_samples=1)
    with pytest.raises(ValueError, match="must be 1 or more"):
        make(batches_per_step=0)


def test_chapters_smaller_than_the_number_of_sources_still_advance() -> None:
    plan = make(chapter_samples=2)
    rows = Counter(ref.source for k in range(600) for ref in plan.batch(k))
    assert rows[0] > rows[2] > rows[1] > 0
