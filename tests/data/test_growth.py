"""Data that grow under a run: nothing is seen twice, nothing is lost, and every process agrees."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.batches import Batches, open_data
from qa_train.data.loader import delivered
from qa_train.data.order.batch_plan import Plan
from qa_train.data.order.epoch import EpochOrder, Ints
from qa_train.data.order.growth import GrownOrder, Records, placed, write_record
from qa_train.data.order.passes import Passes
from qa_train.data.order.shuffle_window import Lengths, SampleRef
from tests.data.conftest import speech_record, write_shards
from tests.data.test_plan import Fake, fake, make


class Named(Fake):
    """Lengths depend on a row's shard and its place there, as those of real records, not on its number."""

    def lengths(self, rows: Ints, epoch: int) -> Lengths:
        assert self.shard_ids is not None
        starts = np.cumsum(self.shard_lengths) - self.shard_lengths
        shards = np.searchsorted(starts, rows, side="right") - 1
        places = [sum(map(ord, self.shard_ids[n])) * 1000 for n in shards] + rows - starts[shards]
        return super().lengths(np.asarray(places, dtype=np.int64), epoch)


def source(name: str, weight: float, shards: dict[str, int], **options: object) -> Named:
    """Its fingerprint is of its shards, as that of real sources."""
    lengths = np.asarray(list(shards.values()), dtype=np.int64)
    return Named(name, weight, lengths, str(sorted(shards.items())), longest=60, shard_ids=list(shards), **options)  # type: ignore[arg-type]


A = {f"a{n:02}": 60 + n for n in range(12)}
B = {"b0": 40, "b1": 50}
# The new ones come in the middle, at the start and at the end.
MORE = {"a00a": 31, **A, "a99": 77, "z": 5}
MORE = dict(sorted(MORE.items()))


def mixture(a: dict[str, int] = A, b: dict[str, int] = B, **more: dict[str, int]) -> list[Fake]:
    return [source("a", 3, a), source("b", 1, b), *(source(name, 1, shards) for name, shards in more.items())]


def names(plan: Plan, refs: list[SampleRef]) -> list[tuple[str, str, int, int]]:
    """Source, shard, row in it, and epoch."""
    out = []
    for ref in refs:
        of = plan.sources[ref.source]
        starts = np.cumsum(of.shard_lengths) - of.shard_lengths
        shard = int(np.searchsorted(starts, ref.row, side="right")) - 1
        assert of.shard_ids is not None
        out.append((of.name, of.shard_ids[shard], ref.row - int(starts[shard]), ref.epoch))
    return out


def taken(plan: Plan, first: int, last: int) -> list[tuple[str, str, int, int]]:
    return [name for k in range(first, last) for name in names(plan, plan.batch(k))]


class Run:
    """A run that is stopped, and continued on other data, as a stage does it."""

    def __init__(self, folder: Path, seen: list[tuple[str, str, int, int]], state: tuple[int, ...], at: int) -> None:
        self.folder, self.seen, self.state, self.at = folder, seen, state, at

    @classmethod
    def fresh(cls, folder: Path, sources: list[Fake], steps: int, **options: int) -> Run:
        plan = make(sources, **{"shuffle_window": 200, **options})
        write_record(folder, plan.fingerprint, plan.record())
        return cls(folder, taken(plan, 0, steps), plan.seek_hint(steps), steps)

    def go_on(self, sources: list[Fake], steps: int, **options: int) -> list[str]:
        plan = make(sources, **{"shuffle_window": 200, **options})
        told = plan.seek(*self.state, records=Records.read(self.folder))
        write_record(self.folder, plan.fingerprint, plan.record())
        worker = pickle.loads(pickle.dumps(plan))
        self.seen += taken(worker, self.at, self.at + steps)
        self.at += steps
        self.state = plan.seek_hint(self.at)
        assert self.state == worker.seek_hint(self.at)
        return told

    def epochs(self, name: str) -> dict[int, Counter[tuple[str, int]]]:
        """How often each record of a source was seen, by epoch."""
        found: dict[int, Counter[tuple[str, int]]] = {}
        for of, shard, row, epoch in self.seen:
            if of == name:
                found.setdefault(epoch, Counter())[shard, row] += 1
        return found


def everything(shards: dict[str, int]) -> Counter[tuple[str, int]]:
    return Counter((shard, row) for shard, rows in shards.items() for row in range(rows))


@pytest.mark.parametrize("at", [1, 3, 7, 16, 29])
def test_a_grown_source_goes_on_with_its_epoch(tmp_path: Path, at: int) -> None:
    run = Run.fresh(tmp_path, mixture(), at)
    told = run.go_on(mixture(MORE), 80 - at)
    grown = 1 if at == 29 else 0
    assert told == [f"source 'a' has 3 new shards: they join epoch {grown}"]
    a, b = run.epochs("a"), run.epochs("b")
    # That epoch holds every record once, old and new; nothing comes twice in any, and no epoch is cut short.
    assert [a[epoch] for epoch in range(grown)] == [everything(A)] * grown
    assert a[grown] == everything(MORE)
    assert max(a[grown + 1].values()) == 1
    assert [b[epoch] for epoch in range(8)] == [everything(B)] * 8


def test_growth_again_and_again_at_any_place(tmp_path: Path) -> None:
    """In the first epoch, three times; interruptions between them; and once more in a later epoch."""
    steps = [A, {**A, "a11b": 20}, {**A, "a11b": 20, "a05x": 33}, MORE | {"a11b": 20, "a05x": 33}]
    sorted_steps = [dict(sorted(each.items())) for each in steps]
    run = Run.fresh(tmp_path, mixture(sorted_steps[0]), 2)
    for shards in sorted_steps[1:]:
        run.go_on(mixture(shards), 3)
        # A restart without a change, also inside the window that is finished as it was planned.
        run.go_on(mixture(shards), 1)
    run.go_on(mixture(sorted_steps[-1]), 60)
    assert run.epochs("a")[0] == everything(sorted_steps[-1])
    last = max(run.epochs("a"))
    final = dict(sorted({**sorted_steps[-1], "m": 41}.items()))
    run.go_on(mixture(final), 70)
    epochs = run.epochs("a")
    assert epochs[last] == everything(final) or epochs[last + 1] == everything(final)
    assert all(max(seen.values()) == 1 for seen in epochs.values())


def test_every_interruption_gives_the_same_order(tmp_path: Path) -> None:
    once = Run.fresh(tmp_path / "once", mixture(), 5)
    often = Run.fresh(tmp_path / "often", mixture(), 5)
    once.go_on(mixture(MORE), 40)
    for _ in range(40):
        often.go_on(mixture(MORE), 1)
    assert often.seen == once.seen


def test_a_new_source_joins_after_the_window(tmp_path: Path) -> None:
    run = Run.fresh(tmp_path, mixture(), 3)
    told = run.go_on(mixture(c={"c0": 90}), 60)
    assert told == ["source 'c' is new: it begins with its first epoch"]
    assert run.epochs("a")[0] == everything(A)
    assert run.epochs("b")[0] == everything(B)
    assert run.epochs("c")[0] == everything({"c0": 90})
    shares = Counter(name for name, *_ in run.seen[-1000:])
    assert shares["c"] / 1000 == pytest.approx(0.2, abs=0.01)


def test_a_source_that_was_read_to_its_end_reads_what_is_new(tmp_path: Path) -> None:
    def both(b: dict[str, int]) -> list[Fake]:
        return [source("a", 1, A), source("b", 1, b, max_epochs=2)]

    run = Run.fresh(tmp_path, both(B), 40)
    assert run.epochs("b") == {0: everything(B), 1: everything(B)}
    told = run.go_on(both({**B, "b2": 30}), 30)
    assert told == ["source 'b' has 1 new shards: they join epoch 1"]
    assert run.epochs("b") == {0: everything(B), 1: everything({**B, "b2": 30})}


@pytest.mark.parametrize("change", ["removed", "settings", "no record"])
def test_what_did_not_only_grow_starts_its_next_epoch(tmp_path: Path, change: str) -> None:
    run = Run.fresh(tmp_path, mixture(), 4)
    changed = mixture({k: v for k, v in MORE.items() if k != "a03"} if change == "removed" else MORE)
    if change == "settings":
        changed[0].settings = "other"
    if change == "no record":
        run.folder = tmp_path / "empty"
    assert run.go_on(changed, 30) == ["source 'a' has other records or settings: it starts its next epoch"]
    assert min(run.epochs("a")) == 0
    assert max(run.epochs("b")[0].values()) <= 2, "at most a window is seen twice"


def test_a_source_with_max_samples_starts_its_next_epoch(tmp_path: Path) -> None:
    run = Run.fresh(tmp_path, mixture(), 4)
    changed = [fake("a", 3, list(MORE.values()), fingerprint="limited"), *mixture()[1:]]
    plan = make(changed, shuffle_window=200)
    assert "starts its next epoch" in plan.seek(*run.state, records=Records.read(tmp_path))[0]


def test_other_settings_of_the_plan_keep_the_grown_epoch(tmp_path: Path) -> None:
    """With another token budget the window cannot be had back: it is seen again, the epoch still goes on."""
    run = Run.fresh(tmp_path, mixture(), 4)
    run.go_on(mixture(MORE), 60, tokens_per_batch=2000)
    seen = run.epochs("a")[0]
    assert set(seen) == set(everything(MORE))
    assert max(seen.values()) == 2


def test_other_batches_per_step_and_growth_at_once(tmp_path: Path) -> None:
    run = Run.fresh(tmp_path, mixture(), 8)
    plan = make(mixture(MORE), shuffle_window=200, batches_per_step=6)
    plan.seek(*run.state, records=Records.read(tmp_path))
    run.seen += taken(plan, 12, 60)
    assert run.epochs("a")[0] == everything(MORE)


def test_passes_count_through_a_growth(tmp_path: Path) -> None:
    run = Run.fresh(tmp_path, mixture(), 8)
    plan = make(mixture(MORE, c={"c0": 90}), shuffle_window=200)
    plan.seek(*run.state, records=Records.read(tmp_path))
    passes = Passes(plan)
    found = [passes.after(k) for k in range(8, 40)]
    assert all(len(each) == 3 for each in found)
    assert all(0 <= a <= b + 0.05 for one, two in pairwise(found) for a, b in zip(one, two, strict=True))


def test_a_grown_order_holds_every_row_once() -> None:
    lengths = np.asarray([5, 0, 9, 40_000, 3, 7, 20_000, 1], dtype=np.int64)
    old = np.asarray([0, 2, 3, 6], dtype=np.int64)
    for position in (0, 1, 9_000, 60_013, 60_014):
        order: GrownOrder | EpochOrder = EpochOrder(lengths, "k", shards=old)
        before = order.rows(0, position)
        order = GrownOrder(order, position, lengths, np.asarray([4, 5], dtype=np.int64), "k")
        order = GrownOrder(order, position + 2, lengths, np.asarray([7], dtype=np.int64), "k")
        rows = np.concatenate([order.rows(p, 1000) for p in range(0, order.total, 1000)])
        assert (rows[: len(before)] == before).all()
        assert sorted(rows.tolist()) == list(range(int(lengths.sum())))


def test_a_renamed_shard_is_the_same_shard(tmp_path: Path) -> None:
    run = Run.fresh(tmp_path, mixture(), 4)
    renamed = mixture()
    renamed[0].fingerprint = "of other names"
    assert run.go_on(renamed, 60) == ["source 'a' has the same shards under other names: it is in epoch 0"]
    assert run.epochs("a")[0] == everything(A)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"settings": "[1,2,3,4,5]", "sources": [{"name": "a"}]}',
        '{"settings": "5", "sources": []}',
        '{"settings": "[1,2,3,4,5]", "sources": 7}',
        '{"settings": "[1,2,3,4,5]", "sources": [{"name": "a", "weight": -1, "max_epochs": null, "fingerprint": "f", '
        '"settings": "s", "shards": null}]}',
        '{"settings": "[1,2,3,4,5]", "sources": [{"name": "a", "weight": 1, "max_epochs": 0, "fingerprint": "f", '
        '"settings": "s", "shards": [3]}]}',
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is not the record of a plan"):
        Records.read(tmp_path)


def test_what_is_placed() -> None:
    """By content, in the order of then; shards without rows do not count."""
    (then,) = make([source("a", 1, {"x": 3, "none": 0, "y": 4})]).record().sources
    now = source("a", 1, {"y": 4, "none": 0, "new": 2, "x": 3})
    assert placed(then, now).tolist() == [3, 0]  # type: ignore[union-attr]
    assert placed(then, source("a", 1, {"y": 4})) is None
    assert placed(None, now) is None


def test_shards_that_join_a_real_source(tmp_path: Path, tokenizer: Any) -> None:
    """With shards on disk, in the middle of a window; the workers of another shape read the same."""
    parts = [write_shards(tmp_path, name, 40, 20, speech_record) for name in ("b", "c")]
    sound = write_shards(tmp_path, "sound", 30, 100, lambda i: {"label": "bell"})

    def opened(*patterns: str) -> Batches:
        some = {
            "asr": SourceConfig(name="asr", shards=[*patterns], task="asr", weight=3),
            "sounds": SourceConfig(name="sounds", shards=[sound], task="sound_class", template="chat", weight=1),
        }
        cfg = DataConfig(sources=some, tokens_per_batch=300, shuffle_window=50)
        return open_data(cfg, tokenizer, 80, seed=3, batches_per_step=1)

    before = opened(*parts)
    seen = first_epoch(before, 0, 3)
    write_record(tmp_path / "plans", before.fingerprint, before.plan.record())
    parts.insert(0, write_shards(tmp_path, "a", 40, 20, speech_record))
    after = opened(*parts)
    told = after.plan.seek(*before.plan.seek_hint(3), records=Records.read(tmp_path / "plans"))
    assert told == ["source 'asr' has 2 new shards: they join epoch 0"]
    batches = list(delivered(pickle.loads(pickle.dumps(after)), 3, 40, 2, 1))
    assert batches == [after.keys(k) for k in range(3, 43)]
    assert Counter(seen + first_epoch(after, 3, 43)) == Counter(f"{name}{n:04d}" for name in "abc" for n in range(40))


def first_epoch(batches: Batches, first: int, last: int) -> list[str]:
    """Keys of the first source's records in its first epoch."""
    refs = [ref for k in range(first, last) for ref in batches.plan.batch(k)]
    return [batches.sources[0].key(ref.row) for ref in refs if (ref.source, ref.epoch) == (0, 0)]


@pytest.mark.parametrize("at", [2, 6, 13, 20])
def test_counting_the_steps_of_epochs_leaves_no_trace(tmp_path: Path, at: int) -> None:
    """A start walks the first windows of a fresh plan to count; a grown run goes on from other ones."""
    run = Run.fresh(tmp_path, mixture(), 3)
    run.go_on(mixture(MORE), at)
    whole = Run(run.folder, list(run.seen), run.state, run.at)
    whole.go_on(mixture(MORE), 60)
    plan = make(mixture(MORE), shuffle_window=200)
    plan.window(5)
    plan.forget()
    plan.seek(*run.state, records=Records.read(run.folder))
    assert taken(plan, run.at, run.at + 60) == whole.seen[len(run.seen) :]
    # Nor do windows that were planned and not forgotten.
    plan = make(mixture(MORE), shuffle_window=200)
    plan.window(5)
    plan.seek(*run.state, records=Records.read(run.folder))
    assert taken(plan, run.at, run.at + 60) == whole.seen[len(run.seen) :]


def test_other_batches_per_step_twice_in_the_first_window() -> None:
    """Each time the batches have other numbers, and the state another start of window 0."""
    before = make(batches_per_step=4)
    once = make(batches_per_step=2)
    once.seek(*before.seek_hint(8))
    again = make(batches_per_step=2)
    again.seek(*once.seek_hint(6))
    assert [again.batch(k) for k in range(6, 40)] == [before.batch(k + 4) for k in range(6, 40)]
    far = make(batches_per_step=16)
    far_state = far.seek_hint(160)
    fewer = make(batches_per_step=2)
    fewer.seek(*far_state)
    resumed = make(batches_per_step=2)
    resumed.window(3)
    resumed.seek(*fewer.seek_hint(24))
    assert [resumed.batch(k) for k in range(24, 60)] == [far.batch(k + 140) for k in range(24, 60)]
