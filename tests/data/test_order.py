"""Orders of epochs, mixtures, packing: the parts of the plan, each against a plain twin or by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from qa_train.data.mixture_report import imbalance
from qa_train.data.order import mixture
from qa_train.data.order.epoch import EpochOrder
from qa_train.data.order.packing import Cost, fill, level, pack
from qa_train.data.order.shuffle_window import Lengths


@pytest.mark.parametrize("lengths", [[7], [3, 0, 5], [100] * 300, [1] * 1000, [9000, 1, 20_000, 3, 12_000, 17_000]])
def test_an_epoch_holds_every_row_once(lengths: list[int]) -> None:
    order = EpochOrder(np.asarray(lengths), 1, "name", 0)
    whole = order.rows(0, sum(lengths) + 5)
    assert sorted(whole.tolist()) == list(range(sum(lengths)))
    # Read in pieces, from anywhere, it is the same.
    fresh = EpochOrder(np.asarray(lengths), 1, "name", 0)
    for start in (len(whole) // 2, 0, len(whole) - 1):
        assert (fresh.rows(start, 1000) == whole[start : start + 1000]).all()
    if len(whole) > 100:
        assert (EpochOrder(np.asarray(lengths), 1, "name", 1).rows(0, 50) != whole[:50]).any()


def test_a_group_mixes_its_shards() -> None:
    order = EpochOrder(np.asarray([10_000] * 40), 0, "a", 0)
    for group in range(10):
        rows = order.rows(group * 40_000, 1000)
        counts = np.unique(rows // 10_000, return_counts=True)[1]
        assert len(counts) == 4
        assert counts.min() > 180


def test_a_huge_epoch_is_not_held_in_memory() -> None:
    order = EpochOrder(np.full(190_000, 1000), 0, "a", 0)
    rows = order.rows(123_456_789, 100)
    assert order.total == 190_000_000
    assert len(set(rows.tolist())) == 100
    assert sum(group.nbytes for group in order._groups.values()) < 1 << 20


def test_shares_by_hand() -> None:
    lines = [mixture.Line("a", 1, 100, 16), mixture.Line("b", 1, 50, 1), mixture.Line("c", 0, 9, 9)]
    assert mixture.effective_weights(lines, "weight", 1) == [1, 1, 0]
    assert mixture.effective_weights(lines, "temperature", 1) == pytest.approx([1, 1 / 16, 0])
    assert mixture.effective_weights(lines, "temperature", 2) == pytest.approx([1, 1 / 4, 0])
    assert mixture.effective_weights(lines, "epochs", 1) == [100, 50, 0]
    for by, temperature, message in (("hours", 1, "use one of weight"), ("temperature", 0, "above 0")):
        with pytest.raises(ValueError, match=message):
            mixture.effective_weights(lines, by, temperature)
    with pytest.raises(ValueError, match="'t' has no hours"):
        mixture.effective_weights([mixture.Line("t", 1, 5, 0)], "temperature", 1)
    taken = np.sum([mixture.take([3, 1, 2], 100, c) for c in range(7)], axis=0)
    assert taken.tolist() == [350, 117, 233]


def test_quotas_by_hand() -> None:
    assert mixture.quotas(np.asarray([5, 5]), None) is None
    assert mixture.quotas(np.asarray([5, 5]), 10) is None
    for counts, limit, wanted in (([10, 30, 0], 8, [2, 6, 0]), ([1, 1, 1], 2, [1, 1, 0])):
        found = mixture.quotas(np.asarray(counts), limit)
        assert found is not None
        assert found.tolist() == wanted


def corpus(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Audio and text tokens of 8192 samples of a kind (25 audio tokens a second)."""
    rng = np.random.default_rng(0)
    seconds = {
        "read": np.clip(rng.gamma(8, 12.5 / 8, 8192), 1, 25),
        "short": np.clip(rng.gamma(6, 5 / 6, 8192), 1, 15),
        "sounds": np.full(8192, 10.0),
    }
    if kind == "mixed":
        parts = [corpus(part) for part in seconds]
        order = rng.permutation(8192)
        audio, text = (np.concatenate([part[i] for part in parts])[order] for i in (0, 1))
        # A fifth is text only: its tokens cost less than those of audio.
        only = rng.random(8192) < 0.2
        return np.where(only, 0, audio), np.where(only, text + rng.integers(50, 500, 8192), text)
    audio = np.round(seconds[kind] * 25).astype(np.int64)
    return audio, 15 + rng.poisson(10, 8192) + rng.poisson(2.7 * seconds[kind])


def lengths(audio: np.ndarray, text: np.ndarray) -> Lengths:
    """One clip and one document each; half of the text is the answer."""
    tokens = audio + text
    return Lengths(tokens, tokens**2, audio, audio**2, text // 2, np.full(len(text), "", dtype=object))


@pytest.mark.parametrize("kind", ["read", "short", "sounds", "mixed"])
def test_batches_are_full_and_cost_the_same(kind: str) -> None:
    audio, text = corpus(kind)
    tokens = audio + text
    costs = Cost().of(lengths(audio, text))
    batches = pack(tokens, costs, 8192)
    assert sorted(i for batch in batches for i in batch) == list(range(8192))
    sums = np.asarray([tokens[batch].sum() for batch in batches])
    assert sums.max() <= 8192
    assert sums.mean() / 8192 >= (0.979 if kind == "sounds" else 0.98)
    found = imbalance(np.asarray([costs[batch].sum() for batch in batches]), 64)
    assert set(found) == {2, 4, 8, 16, 32, 64}
    assert found[8]["worst"] <= 0.006
    assert found[64]["worst"] <= 0.006


def test_packing_of_awkward_lengths() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert pack(none, none, 10) == []
    costs = np.ones(100, dtype=np.int64)
    for lengths in (np.full(100, 10), np.full(100, 6), np.tile([10, 1], 50), np.tile([9, 2, 2, 7], 25)):
        batches = pack(lengths, costs, 10)
        assert sorted(i for batch in batches for i in batch) == list(range(100))
        assert max(lengths[batch].sum() for batch in batches) <= 10
        assert all(batches)


def plainly_level(
    batches: list[list[int]], tokens: list[int], costs: list[int], budget: int, swaps: int
) -> list[list[int]]:
    """The same swaps, found by trying each of them."""
    batches = [list(batch) for batch in batches]
    mean = Fraction(sum(costs), len(batches))
    stuck: set[int] = set()

    def over(batch: list[int]) -> Fraction:
        return sum((costs[i] for i in batch), start=-mean)

    for _ in range(swaps):
        free = [n for n in range(len(batches)) if n not in stuck]
        if not free:
            break
        first = max(free, key=lambda n: (abs(over(batches[n])), -n))
        before = over(batches[first])
        if abs(before) <= mean / 1000:
            break
        other = (min if before > 0 else max)(range(len(batches)), key=lambda n: over(batches[n]))
        found: tuple[Fraction, list[int], list[int]] = (abs(before), batches[first], batches[other])
        for a in [[], *([i] for i in batches[first])]:
            for b in [[], *([i] for i in batches[other])]:
                mine = [i for i in batches[first] if i not in a] + b
                theirs = [i for i in batches[other] if i not in b] + a
                if max(sum(tokens[i] for i in batch) for batch in (mine, theirs)) <= budget:
                    found = min(
                        found, (max(abs(over(mine)), abs(over(theirs))), mine, theirs), key=lambda option: option[0]
                    )
        if found[0] == abs(before):
            stuck.add(first)
        else:
            batches[first], batches[other] = found[1:]
    return [batch for batch in batches if batch]


@pytest.mark.parametrize("kind", ["read", "sounds", "mixed"])
def test_levelling_equals_its_plain_twin(kind: str) -> None:
    audio, text = (part[:150] for part in corpus(kind))
    tokens = audio + text
    costs = Cost().of(lengths(audio, text))
    filled = fill(tokens, 2500)
    expected = plainly_level(filled, tokens.tolist(), costs.tolist(), 2500, swaps=8 * len(filled))
    found = level(filled, tokens, costs, 2500)
    assert [sorted(batch) for batch in found] == [sorted(batch) for batch in expected]
    assert found != filled
    sums = [[int(costs[batch].sum()) for batch in batches] for batches in (filled, found)]
    assert max(sums[1]) - min(sums[1]) < max(sums[0]) - min(sums[0])


def test_levelling_by_hand() -> None:
    lengths, costs = np.asarray([5, 5, 5, 5]), np.asarray([9, 9, 1, 1])
    assert level([[0, 1], [2, 3]], lengths, costs, 10) == [[1, 2], [3, 0]]
    # Without room for a swap nothing changes; a sample may move alone.
    assert level([[0, 1], [2, 3]], np.asarray([4, 4, 3, 6]), costs, 9) == [[0, 1], [2, 3]]
    assert level([[0, 1, 2], [3]], np.asarray([3, 3, 3, 3]), np.asarray([4, 4, 4, 4]), 9) == [[1, 2], [3, 0]]
    assert level([], np.asarray([]), np.asarray([]), 9) == []


def test_imbalance_by_hand() -> None:
    # Two ranks do (1 + 3, 2 + 2) and (1 + 1, 3 + 3): 0 % and 50 % above the mean.
    found = imbalance(np.asarray([1, 2, 3, 2, 1, 3, 1, 3]), 4)
    assert found[2] == {"mean": pytest.approx(0.25), "worst": pytest.approx(0.5)}
    assert found[4]["worst"] == pytest.approx(0.5)
