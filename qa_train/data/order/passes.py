"""How often a run has been through each of its sources: a pure function of the plan."""

from __future__ import annotations

import numpy as np

from qa_train.data.order.batch_plan import Plan
from qa_train.data.order.epoch import Ints


class Passes:
    """Passes through every source up to a batch; keeps the counts of one window. Picklable."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._window = -1
        # [batches of the window, sources]: samples of each source up to and with a batch.
        self._taken: Ints = np.zeros((0, 0), dtype=np.int64)

    def after(self, k: int) -> list[float]:
        """Passes through every source, by its number, when batch k has been trained on; 0 for unused ones.

        A window's start knows exactly how far each source was read, records that were passed over included;
        inside a window a source moves with its samples.
        """
        start, following = self.plan.bounds(k)
        if self._window != start.window:
            self._window, self._taken = start.window, self._count(start.window)
        done, all_of_it = self._taken[k - start.first_batch], self._taken[-1]
        found = [0.0] * len(self.plan.sources)
        for u, i in enumerate(self.plan.used):
            total = int(np.sum(self.plan.sources[i].shard_lengths))
            first, last = (epoch + place / total for epoch, place in (start.cursors[u], following.cursors[u]))
            share = done[i] / all_of_it[i] if all_of_it[i] else 1.0
            found[i] = float(first + share * (last - first))
        return found

    def _count(self, window: int) -> Ints:
        made = self.plan.window(window)
        batch = np.repeat(np.arange(len(made)), np.diff(made.ends, prepend=0))
        counts = np.zeros((len(made), len(self.plan.sources)), dtype=np.int64)
        np.add.at(counts, (batch, made.samples[:, 0]), 1)
        return np.cumsum(counts, axis=0)
