"""Samples into batches that are full, and equally costly, so that no rank waits for another.

1. Fill: samples are packed in pools of at least ``POOL`` batches taken in the order of the plan: longest
   first, each into the batch that is emptiest. Samples that do not fit move to the next pool. Every pool aims at the
   same tokens per batch, so the last batches of a window are as full as the others.
2. Level: the batch whose cost is farthest from the mean swaps the two samples with the batch at the
   other end that bring both nearest to it, again and again, until all are within ``_LEVEL`` of the mean.

Costs are summed and compared as integers, so that the result is the same on every machine.
"""

from __future__ import annotations

import bisect
import heapq
import math
from dataclasses import astuple, dataclass

import numpy as np

from qa_train.data.order.epoch import Ints
from qa_train.data.order.shuffle_window import Lengths

POOL = 32
# Aim a little below the budget: without slack the last samples of a pool would not fit.
_AIM = 0.995
# Below this fill a pool is packed again, its shortest samples by best fit: fuller, a little less even.
_GOOD_FILL = 0.985
_BEST_FIT_SHARE = 0.3
# Costs are level when they differ from their mean by no more than one part in so many.
_LEVEL = 1000
# Swaps per batch at most; rarely more than two are needed.
_SWAPS = 8


@dataclass(frozen=True)
class Cost:
    """Cost of a sample from its lengths, in LLM tokens: coefficients of tokens^2 per document, audio tokens, audio
    tokens^2 per clip segment, and scored rows.

    The default is that of the released 8.4B model when all of it trains (``qa_train.planner.balance`` has others).
    """

    token_squared: float = 2.02e-5
    audio: float = 0.197
    audio_squared: float = 5.06e-5
    scored: float = 0.0987

    def of(self, lengths: Lengths) -> Ints:
        """Cost of each sample in thousandths of a token."""
        cost = lengths.tokens + self.token_squared * lengths.tokens_squared + self.scored * lengths.scored
        cost = cost + self.audio * lengths.audio + self.audio_squared * lengths.audio_squared
        return np.rint(1000 * cost).astype(np.int64)

    def key(self) -> list[float]:
        """The coefficients, for fingerprints."""
        return list(astuple(self))


def pack(tokens: Ints, costs: Ints, budget: int) -> list[list[int]]:
    """Item numbers in batches of at most ``budget`` tokens; every item is in exactly one.

    No item may be longer than the budget.
    """
    return [sorted(batch) for batch in level(fill(tokens, budget), tokens, costs, budget)]


def fill(tokens: Ints, budget: int) -> list[list[int]]:
    """Batches of at most ``budget`` tokens, in the order of the items by pools, as full as they get."""
    if not len(tokens):
        return []
    total = int(tokens.sum())
    count = int(np.ceil(total / (budget * _AIM)))
    # Pools of equal size, so that the last one is as large as the others.
    bounds = np.linspace(0, count, max(1, count // POOL) + 1).round().astype(int)
    ends = np.cumsum(tokens)
    batches: list[list[int]] = []
    carried = np.zeros(0, dtype=np.int64)
    start = 0
    for size in np.diff(bounds)[:-1].tolist():
        done = (int(ends[start - 1]) if start else 0) - int(tokens[carried].sum())
        stop = int(np.searchsorted(ends, done + size * total / count, side="right"))
        made, carried = _pool(np.concatenate([carried, np.arange(start, stop)]), tokens, budget, size)
        batches += made
        start = max(start, stop)
    return batches + _last(np.concatenate([carried, np.arange(start, len(tokens))]), tokens, budget)


def level(batches: list[list[int]], tokens: Ints, costs: Ints, budget: int) -> list[list[int]]:
    """The batches after swaps that bring their costs to their mean; a sample may also move without one in return."""
    batches = [list(batch) for batch in batches]
    count = len(batches)
    load = np.asarray([tokens[batch].sum() for batch in batches], dtype=np.int64)
    # Differences of the batches' costs from their mean, times their number: integers.
    total = int(costs.sum())
    over = np.asarray([costs[batch].sum() for batch in batches], dtype=np.int64) * count - total
    stuck = np.zeros(count, dtype=bool)
    for _ in range(_SWAPS * count):
        first = int(np.argmax(np.where(stuck, -1, np.abs(over))))
        if stuck[first] or abs(over[first]) <= total // _LEVEL:
            break
        other = int(np.argmin(over) if over[first] > 0 else np.argmax(over))
        a, b = (np.asarray([-1, *batches[i]]) for i in (first, other))
        # Items moved from the first batch to the other, for each pair; -1 is no item.
        less = np.where(a < 0, 0, tokens[a])[:, None] - np.where(b < 0, 0, tokens[b])
        cheaper = (np.where(a < 0, 0, costs[a])[:, None] - np.where(b < 0, 0, costs[b])) * count
        after = np.maximum(np.abs(over[first] - cheaper), np.abs(over[other] + cheaper))
        after[(load[first] - less > budget) | (load[other] + less > budget)] = np.iinfo(np.int64).max
        i, j = np.unravel_index(int(np.argmin(after)), after.shape)
        if after[i, j] >= abs(over[first]):
            stuck[first] = True
            continue
        for place, old, new in ((first, a[i], b[j]), (other, b[j], a[i])):
            batches[place] = [item for item in batches[place] if item != old] + ([int(new)] if new >= 0 else [])
        load[[first, other]] += np.asarray([-less[i, j], less[i, j]])
        over[[first, other]] += np.asarray([-cheaper[i, j], cheaper[i, j]])
    return [batch for batch in batches if batch]


def _pool(items: Ints, tokens: Ints, budget: int, count: int) -> tuple[list[list[int]], Ints]:
    """At most ``count`` batches, and the items that fit into none."""
    made, left = _place(items, tokens, budget, count)
    if tokens[items].sum() - tokens[left].sum() < _GOOD_FILL * count * budget and len(left):
        again, fewer = _place(items, tokens, budget, count, best_fit=_BEST_FIT_SHARE)
        if tokens[fewer].sum() < tokens[left].sum():
            made, left = again, fewer
    return [batch for batch in made if batch], np.sort(left)


def _last(items: Ints, tokens: Ints, budget: int) -> list[list[int]]:
    """All items in as few batches as they fit into, equally full."""
    count = max(1, int(np.ceil(tokens[items].sum() / budget)))
    while True:
        made, left = _place(items, tokens, budget, count)
        if not len(left):
            return [batch for batch in made if batch]
        count += 1


def _place(items: Ints, tokens: Ints, budget: int, count: int, best_fit: float = 0.0) -> tuple[list[list[int]], Ints]:
    """Items into ``count`` batches, longest first; the last ``best_fit`` of them where least room is left."""
    order = items[np.argsort(-tokens[items], kind="stable")]
    pairs = list(zip(order.tolist(), tokens[order].tolist(), strict=True))
    loose = math.ceil(len(pairs) * (1 - best_fit))
    batches: list[list[int]] = [[] for _ in range(count)]
    left = []
    # The least loaded first; at a tie the first one.
    least = [(0, number) for number in range(count)]
    for item, size in pairs[:loose]:
        load, number = least[0]
        if load + size > budget:
            left.append(item)
            continue
        heapq.heapreplace(least, (load + size, number))
        batches[number].append(item)
    # From the least to the most loaded; at a tie the first one last.
    loads = sorted((load, -number) for load, number in least)
    for item, size in pairs[loose:]:
        fits = bisect.bisect(loads, (budget - size, 1))
        if not fits:
            left.append(item)
            continue
        load, number = loads.pop(fits - 1)
        bisect.insort(loads, (load + size, number))
        batches[-number].append(item)
    return batches, np.asarray(left, dtype=np.int64)
