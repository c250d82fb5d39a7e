"""The plan: pure, exact in its shares, full and even in its batches, and seekable."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from qa_train.data.order.batch_plan import Plan
from qa_train.data.order.epoch import Ints
from qa_train.data.order.packing import Cost, pack
from qa_train.data.order.shuffle_window import Lengths, SampleRef


@dataclass
class Fake:
    """A source whose lengths depend on row and epoch; every ``bad``-th row does not qualify."""

    name: str
    weight: float
    shard_lengths: Ints
    fingerprint: str = "f"
    longest: int = 300
    bad: int = 0
    max_epochs: int | None = None
    settings: str = "s"
    shard_ids: list[str] | None = None
    asked: Counter[tuple[int, int]] = field(default_factory=Counter)

    def lengths(self, rows: Ints, epoch: int) -> Lengths:
        self.asked.update((row, epoch) for row in rows.tolist())
        audio = 10 + (rows * 7919 + epoch * 104_729) % self.longest
        reason = np.full(len(rows), "", dtype=object)
        if self.bad:
            reason[rows % self.bad == 0] = "filtered by where"
        tokens = audio + 10 + rows * 31 % 40
        return Lengths(tokens, tokens**2, audio, audio**2, tokens - audio - 5, reason)


def fake(name: str, weight: float, shards: list[int], **options: object) -> Fake:
    return Fake(name, weight, np.asarray(shards, dtype=np.int64), **options)  # type: ignore[arg-type]


def sources() -> list[Fake]:
    return [fake("a", 3, [100, 80, 120]), fake("b", 1, [40]), fake("c", 2, [0, 500]), fake("off", 0, [9])]


def make(some: list[Fake] | None = None, **options: int) -> Plan:
    return Plan(
        some or sources(),
        **{"seed": 1, "tokens_per_batch": 3000, "batches_per_step": 4, "shuffle_window": 900, **options},
    )


GOLDEN = [SampleRef(2, 346, 0), SampleRef(1, 34, 0), SampleRef(2, 46, 0), SampleRef(1, 5, 0)]


def test_the_plan_is_a_pure_function_of_its_arguments() -> None:
    forward = make()
    wanted = [forward.batch(k) for k in range(300)]
    backward = make()
    assert [backward.batch(k) for k in reversed(range(300))] == wanted[::-1]
    assert [make(seed=2).batch(k) for k in range(3)] != wanted[:3]
    assert forward.fingerprint == make().fingerprint
    for change in ({"seed": 2}, {"tokens_per_batch": 2999}, {"shuffle_window": 901}, {"cost": Cost(audio=9)}):
        assert make(**change).fingerprint != forward.fingerprint  # type: ignore[arg-type]
    # Batches per step say how many batches make a step, not what is in them.
    other = make(batches_per_step=5)
    assert other.fingerprint == forward.fingerprint
    assert [other.batch(k) for k in range(50)] == wanted[:50]


def test_golden_order() -> None:
    """A change here means that no run of an earlier version can be continued: raise plan._VERSION with it."""
    assert make().batch(0)[:4] == GOLDEN


def test_seek_needs_no_replay() -> None:
    walked = make()
    hint = walked.seek_hint(200)
    resumed = make()
    resumed.seek(*hint)
    assert [resumed.batch(k) for k in range(200, 260)] == [walked.batch(k) for k in range(200, 260)]
    asked = sum(sum(source.asked.values()) for source in resumed.sources if isinstance(source, Fake))
    windows = 1 + walked.locate(259)[0] - walked.locate(200)[0]
    # A source that begins anew, or of which some rows do not qualify, looks at 8 more.
    assert asked <= windows * (900 + 3 * 8)
    with pytest.raises(ValueError, match="not the state of a plan"):
        walked.seek(1, 5)


def test_the_rate_is_of_what_this_process_planned() -> None:
    plan = make()
    assert plan.rate is None
    plan.window(2)
    assert plan._maker.planned_samples == 3 * 900
    assert plan.rate is not None
    assert 100 < plan.rate < 1e9


@pytest.mark.parametrize(("bad", "share"), [(0, 1.0), (2, 0.5), (5, 0.8)])
def test_little_more_is_measured_than_is_taken(bad: int, share: float) -> None:
    many = [fake(str(i), 1, [5000], bad=bad) for i in range(64)]
    make(many, shuffle_window=2048).window(0)
    assert 2048 <= sum(sum(source.asked.values()) for source in many) <= 2048 / share + 64 * 16


def test_other_batches_per_step_continue_at_the_next_step() -> None:
    """Step 50 of 4 batches is followed by step 50 of 6 batches, which begins at another number."""
    before = make()
    after = make(batches_per_step=6)
    after.seek(*before.seek_hint(200))
    assert [after.batch(300 + i) for i in range(60)] == [before.batch(200 + i) for i in range(60)]
    again = make(batches_per_step=6)
    again.seek(*after.seek_hint(330))
    assert again.batch(340) == before.batch(240)
    with pytest.raises(ValueError, match="is before"):
        after.batch(0)
    with pytest.raises(ValueError, match="inside a step of 4 batches"):
        after.seek(*before.seek_hint(202))


def test_changed_data_continue_without_a_gap() -> None:
    before = make()
    hint = before.seek_hint(200)
    window, _ = before.locate(200)
    some = sources()
    some[1].fingerprint = "changed"
    some.append(fake("new", 1, [60]))
    after = make(some)
    after.seek(*hint)
    refs = [ref for batch in after.window(window).batches for ref in batch]
    assert after.locate(200) == (window, 200)
    # The unchanged sources go on where their window began.
    for source in (0, 2):
        old = [ref for batch in before.window(window).batches for ref in batch if ref.source == source]
        assert Counter(old) - Counter(r for r in refs if r.source == source) == Counter() or len(old) > 200
        assert min(r.epoch for r in refs if r.source == source) == min(r.epoch for r in old)
    began = {ref.epoch for batch in before.window(window).batches for ref in batch if ref.source == 1}
    assert min(r.epoch for r in refs if r.source == 1) in {min(began) + 1, min(began) + 2}
    assert min(r.epoch for r in refs if r.source == 4) == 0


def test_processes_share_what_they_planned() -> None:
    """The main process asks for the state at a save though only its workers planned that far."""
    main = make()
    worker = pickle.loads(pickle.dumps(main))
    worker._board = main._board
    wanted = worker.seek_hint(300)
    worker.batch(300)
    assert main.seek_hint(300) == wanted
    assert not any(source.asked for source in main.sources if isinstance(source, Fake))


def test_shares_are_exact_over_time_and_epochs_do_not_mix() -> None:
    plan = make()
    seen: list[list[SampleRef]] = [[], [], [], []]
    for number in range(7):
        window = plan.window(number)
        assert window.too_long == []
        for ref in sorted((ref for batch in window.batches for ref in batch), key=lambda ref: ref.epoch):
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


def test_records_that_do_not_qualify_are_passed_over_and_do_not_change_shares() -> None:
    some = [fake("a", 1, [100, 80, 120], bad=2), fake("b", 1, [50, 50])]
    plan = make(some, shuffle_window=100)
    refs = [ref for number in range(6) for batch in plan.window(number).batches for ref in batch]
    assert Counter(ref.source for ref in refs) == {0: 300, 1: 300}
    first = [ref for ref in refs if ref.source == 0]
    # Half of the rows qualify, so 300 samples are two epochs; each of them is there once.
    assert Counter((ref.row, ref.epoch) for ref in first) == Counter((r, e) for r in range(1, 300, 2) for e in (0, 1))
    left = sum((plan.window(n).skipped[0] for n in (4, 5)), Counter())
    assert set(left) == {"filtered by where"}
    with pytest.raises(ValueError, match=r"source 'a': none of 300 records is usable; skipped: \{'filtered by where'"):
        make([fake("a", 1, [100, 80, 120], bad=1)]).batch(0)


def test_a_source_that_runs_dry_leaves_its_share_to_the_others() -> None:
    some = [fake("a", 2, [400]), fake("b", 1, [400]), fake("c", 3, [50, 40], max_epochs=2)]
    plan = make(some, shuffle_window=120)
    counts = [Counter(r.source for batch in plan.window(n).batches for r in batch) for n in range(9)]
    # 60 of each window until 180 were taken: three windows; then 2 : 1 of all.
    assert [c[2] for c in counts] == [60, 60, 60, 0, 0, 0, 0, 0, 0]
    assert counts[0][0] == 40
    assert counts[0][1] == 20
    for n in range(3, 9):
        assert sum(counts[m][0] for m in range(3, n + 1)) == 80 * (n - 2)
    # The state says so too.
    resumed = make(some, shuffle_window=120)
    k = plan._starts[6].first_batch
    resumed.seek(*plan.seek_hint(k))
    assert resumed.batch(k) == plan.batch(k)
    with pytest.raises(ValueError, match="every source has max_epochs"):
        make([fake("c", 3, [50], max_epochs=2)])


def test_a_window_mixes_several_shards_but_reads_few() -> None:
    plan = make([fake("a", 1, [5000] * 50), fake("b", 1, [100_000])], shuffle_window=800)
    seen = set()
    for number in range(4):
        refs = [ref for batch in plan.window(number).batches for ref in batch]
        shards = Counter(ref.row // 5000 for ref in refs if ref.source == 0)
        assert len(shards) == 4
        assert min(shards.values()) > 60
        seen |= set(shards)
        halves = Counter((i < len(refs) // 2, ref.source) for i, ref in enumerate(refs))
        assert min(halves.values()) > 100
    assert len(seen) == 4


def test_windows_smaller_than_the_number_of_sources_still_advance() -> None:
    for samples in (1, 2):
        plan = make(shuffle_window=samples)
        rows = Counter(ref.source for k in range(150) for ref in plan.batch(k))
        assert rows[0] > rows[2] > rows[1] > 0


def test_what_fits_in_no_batch_is_reported_and_only_that() -> None:
    plan = make([fake("a", 1, [200], longest=300)], tokens_per_batch=250, shuffle_window=200)
    window = plan.window(0)
    assert len(window.too_long) + sum(map(len, window.batches)) == 200
    lengths = fake("a", 1, [200]).lengths(np.arange(200), 0)
    assert {ref.row for ref in window.too_long} == set(np.flatnonzero(lengths.tokens > 250).tolist())


def test_impossible_plans_fail_clearly() -> None:
    with pytest.raises(ValueError, match=r"tokens_per_batch=10 \(the shortest has 2"):
        make(tokens_per_batch=10).batch(0)
    with pytest.raises(ValueError, match="weight above 0"):
        make([fake("a", 0, [1])])
    with pytest.raises(ValueError, match="'a' has no usable record"):
        make([fake("a", 1, [0])])
    with pytest.raises(ValueError, match="must be 1 or more"):
        make(batches_per_step=0)
    assert pack(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 10) == []
