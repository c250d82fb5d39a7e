"""Samples into batches that are full, and equally costly, so that no rank waits for another.

``B`` is the token budget of a batch. Samples are packed in pools of at least ``POOL`` batches taken in the
order of the plan: longest first, each into the batch that is emptiest and whose ratio of cost to
tokens it corrects best. What fits nowhere moves on to the next pool. Every pool aims at the same
tokens per batch, so the last batches of a chapter are as full as the others.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from qa_train.data.order import Ints

POOL = 32
# Aim a little below the budget: with nothing to spare the last samples of a pool would fit nowhere.
_AIM = 0.995
# Below this fill a pool is packed again, its shortest samples by best fit: fuller, a little less even.
_GOOD_FILL = 0.985
_BEST_FIT_SHARE = 0.3
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """Forward cost of a sample from its lengths: coefficients of tokens, tokens^2, audio tokens and, per clip
    segment, audio tokens^2.

    The default is in GFLOP for the released model's shape: the LLM's matrices 2 x 6.476e9 per token
    and its causal attention 32 x 2 x 4096; the encoder's layers 2 x 1.258e9 per audio token (two
    frames) with the convolutions, and its attention 32 x 4 x 1280 x 2^2. Only ratios matter.
    """

    token: float = 12.95
    token_squared: float = 2.62e-4
    audio: float = 2.55
    audio_squared: float = 6.55e-4

    def of(self, tokens: Ints, audio: Ints, audio_squared: Ints) -> Floats:
        """Cost of each sample; ``audio_squared`` sums the squared audio tokens of its segments."""
        return (
            self.token * tokens
            + self.token_squared * tokens**2
            + self.audio * audio
            + self.audio_squared * (audio_squared)
        )

    def key(self) -> list[float]:
        """The coefficients, for fingerprints."""
        return list(astuple(self))


def pack(tokens: Ints, costs: Floats, budget: int) -> list[list[int]]:
    """Item numbers in batches of at most ``budget`` tokens; every item is in exactly one.

    No item may be longer than the budget.
    """
    if not len(tokens):
        return []
    total = int(tokens.sum())
    # Cost above or below what the item's tokens would cost on average, in tokens.
    excess = costs * (total / costs.sum()) - tokens
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
        made, carried = _pool(np.concatenate([carried, np.arange(start, stop)]), tokens, excess, budget, size)
        batches += made
        start = max(start, stop)
    rest = np.concatenate([carried, np.arange(start, len(tokens))])
    return [sorted(batch) for batch in batches + _last(rest, tokens, excess, budget)]


def _pool(items: Ints, tokens: Ints, excess: Floats, budget: int, count: int) -> tuple[list[list[int]], Ints]:
    """At most ``count`` batches, and the items that fit into none."""
    made, left = _place(items, tokens, excess, budget, count)
    if tokens[items].sum() - tokens[left].sum() < _GOOD_FILL * count * budget and len(left):
        again, fewer = _place(items, tokens, excess, budget, count, best_fit=_BEST_FIT_SHARE)
        if tokens[fewer].sum() < tokens[left].sum():
            made, left = again, fewer
    return [batch for batch in made if batch], np.sort(left)


def _last(items: Ints, tokens: Ints, excess: Floats, budget: int) -> list[list[int]]:
    """All items in as few batches as they fit into, equally full."""
    count = max(1, int(np.ceil(tokens[items].sum() / budget)))
    while True:
        made, left = _place(items, tokens, excess, budget, count)
        if not len(left):
            return [batch for batch in made if batch]
        count += 1


def _place(
    items: Ints, tokens: Ints, excess: Floats, budget: int, count: int, best_fit: float = 0.0
) -> tuple[list[list[int]], Ints]:
    """Items into ``count`` batches, longest first; the last ``best_fit`` of them where least room is left."""
    order = items[np.argsort(-tokens[items], kind="stable")]
    load, uneven = np.zeros(count), np.zeros(count)
    batches: list[list[int]] = [[] for _ in range(count)]
    left = []
    tight = len(order) * (1 - best_fit)
    for place, item in enumerate(order.tolist()):
        length = tokens[item]
        balance = np.abs(uneven + excess[item])
        score = balance + load if place < tight else balance - 2 * load
        score[load + length > budget] = np.inf
        best = int(np.argmin(score))
        if score[best] == np.inf:
            left.append(item)
            continue
        batches[best].append(item)
        load[best] += length
        uneven[best] += excess[item]
    return batches, np.asarray(left, dtype=np.int64)
