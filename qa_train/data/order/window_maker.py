"""Which samples a window holds, and in which batches.

1. A window takes from each source its share of ``shuffle_window`` samples. The number taken up to the end of a window
   is rounded, not that of the window, so shares are exact over time.
2. A source is read in the order of ``EpochOrder``; records that do not qualify are skipped when they are reached. Its
   cursor (epoch, position among all records) is where the next window goes on.
3. Inside a window the sources are spread evenly. Epochs of a small source do not mix.
4. Samples are packed in that order into batches of at most ``tokens_per_batch`` tokens and of equal cost (``packing``).
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qa_train.data.order import mixture
from qa_train.data.order.epoch import EpochOrder, Ints, hashes
from qa_train.data.order.growth import Generation, GrownOrder
from qa_train.data.order.packing import Cost, pack
from qa_train.data.order.seek import Start
from qa_train.data.order.shuffle_window import PlanSource, Window

_EPOCHS_KEPT = 2
# Records looked at beyond those that will probably qualify, so that few remain for another look; and at most together.
_SPARE, _MOST = 8, 16_384


@dataclass
class _Part:
    """The samples that a window takes from one source."""

    rows: Ints
    epochs: Ints
    tokens: Ints
    costs: Ints
    skipped: Counter[str]
    cursor: tuple[int, int]


class WindowMaker:
    """Makes the windows of a plan, one at a time and in any order."""

    def __init__(
        self,
        sources: Sequence[PlanSource],
        used: Sequence[int],
        shards: Mapping[int, Ints],
        *,
        seed: int,
        tokens_per_batch: int,
        shuffle_window: int,
        cost: Cost,
    ) -> None:
        """``used``: places of the sources with a weight above 0.

        ``shards``: those of an earlier version of the data, by place of the source.
        """
        self._sources, self._used, self._shards_then = sources, used, shards
        self._seed, self._cost = seed, cost
        self._tokens_per_batch, self._shuffle_window = tokens_per_batch, shuffle_window
        # Epochs that other shards joined, by source and epoch: what was read before each time.
        self.grown: Mapping[tuple[int, int], list[Generation]] = {}
        self._epochs: OrderedDict[tuple[int, int], EpochOrder | GrownOrder] = OrderedDict()
        # Samples that this process planned itself, and the CPU time that it took.
        self.planned_samples, self._planned_s = 0, 0.0

    @property
    def rate(self) -> float | None:
        """As `Plan.rate`."""
        return self.planned_samples / self._planned_s if self._planned_s else None

    def restart(self, grown: Mapping[tuple[int, int], list[Generation]]) -> None:
        """Go on with other epochs that shards have joined."""
        self.grown = grown
        self._epochs.clear()

    def shards(self, i: int) -> Ints:
        """The numbers of the shards of source i that are part of this plan."""
        if i in self._shards_then:
            return self._shards_then[i]
        return np.flatnonzero(np.asarray(self._sources[i].shard_lengths) > 0)

    def make(self, start: Start) -> tuple[Window, Start]:
        """The window of ``start``, and where the next one starts: a pure function."""
        began, number = time.process_time(), start.window
        active = [
            u
            for u, i in enumerate(self._used)
            if start.cursors[u][0] < (self._sources[i].max_epochs or start.cursors[u][0] + 1)
        ]
        weights = [self._sources[self._used[u]].weight for u in active]
        counts = mixture.take(weights, self._shuffle_window, number - start.base)
        parts = {u: self._take(self._used[u], *start.cursors[u], n) for u, n in zip(active, counts, strict=True)}
        window = self._packed(number, {self._used[u]: part for u, part in parts.items()})
        cursors = tuple(parts[u].cursor if u in parts else cursor for u, cursor in enumerate(start.cursors))
        ran_dry = any(
            cursors[u][0] >= limit for u in active if (limit := self._sources[self._used[u]].max_epochs) is not None
        )
        following = Start(number + 1, start.first_batch + len(window), number + 1 if ran_dry else start.base, cursors)
        self.planned_samples += sum(len(part.rows) for part in parts.values())
        self._planned_s += time.process_time() - began
        return window, following

    def _take(self, i: int, epoch: int, position: int, count: int) -> _Part:
        """The next ``count`` rows of source i that qualify; fewer when it runs dry."""
        source = self._sources[i]
        none = np.zeros(0, dtype=np.int64)
        found: list[tuple[Ints, Ints, Ints, Ints]] = [(none, none, none, none)]
        skipped: Counter[str] = Counter()
        missing, since, seen = count, 0, 0
        while missing and (source.max_epochs is None or epoch < source.max_epochs):
            order = self._order(i, epoch)
            # As many as qualified up to now let expect; with none, twice as many as before.
            expected = -(-missing * seen // (count - missing)) + _SPARE if missing < count else missing + seen
            rows = order.rows(position, min(expected, max(missing, _MOST)))
            lengths = source.lengths(rows, epoch)
            good = np.flatnonzero(lengths.reason == "")
            stop = len(rows) if len(good) < missing else int(good[missing - 1]) + 1
            good = good[:missing]
            skipped.update(reason for reason in lengths.reason[:stop] if reason)
            tokens = lengths.tokens[good]
            costs = self._cost.of(lengths)[good]
            found.append((rows[good], np.full(len(good), epoch), tokens, costs))
            missing, seen = missing - len(good), seen + stop
            since = 0 if len(good) else since + stop
            if since > 2 * order.total:
                raise ValueError(
                    f"source {source.name!r}: none of {order.total} records is usable; skipped: {dict(skipped)}. "
                    "Check its task and where"
                )
            position += stop
            if position >= order.total:
                epoch, position = epoch + 1, 0
        rows, epochs, tokens, costs = map(np.concatenate, zip(*found, strict=True))
        return _Part(rows, epochs, tokens, costs, skipped, (epoch, position))

    def _packed(self, number: int, parts: dict[int, _Part]) -> Window:
        """Spread the sources evenly, set aside samples that are too long, and pack the others."""
        places = []
        for i, part in parts.items():
            count = len(part.rows)
            jitter = hashes(count, self._seed, "place", number, self._sources[i].name) / 2.0**64
            places.append((np.arange(count) + jitter) / max(1, count))
        order = np.argsort(np.concatenate(places), kind="stable")
        source = np.concatenate([np.full(len(part.rows), i) for i, part in parts.items()])[order]
        row, epoch, tokens, costs = (
            np.concatenate([getattr(part, name) for part in parts.values()])[order]
            for name in ("rows", "epochs", "tokens", "costs")
        )
        samples = np.stack([source, row, epoch], axis=1).astype(np.int64)
        fits = tokens <= self._tokens_per_batch
        kept = np.flatnonzero(fits)
        if len(samples) and not len(kept):
            raise ValueError(
                f"no sample of shuffle window {number} fits into data.tokens_per_batch={self._tokens_per_batch} "
                f"(the shortest has {tokens.min()} tokens): raise it"
            )
        packed = pack(tokens[kept], costs[kept], self._tokens_per_batch)
        batches = [kept[batch] for batch in packed]
        return Window(
            samples[np.concatenate([kept[:0], *batches])],
            np.cumsum([len(batch) for batch in batches], dtype=np.int64),
            np.asarray([tokens[batch].sum() for batch in batches], dtype=np.int64),
            np.asarray([costs[batch].sum() for batch in batches], dtype=np.int64),
            samples[~fits],
            {i: part.skipped for i, part in parts.items()},
        )

    def _order(self, i: int, epoch: int) -> EpochOrder | GrownOrder:
        if (i, epoch) not in self._epochs:
            self._epochs[i, epoch] = self._make_order(i, epoch)
            if len(self._epochs) > _EPOCHS_KEPT * len(self._used):
                self._epochs.popitem(last=False)
        self._epochs.move_to_end((i, epoch))
        return self._epochs[i, epoch]

    def _make_order(self, i: int, epoch: int) -> EpochOrder | GrownOrder:
        lengths, key = np.asarray(self._sources[i].shard_lengths), (self._seed, self._sources[i].name, epoch)
        generations = self.grown.get((i, epoch), [])
        made: list[Ints] = [*(each.shards for each in generations), self.shards(i)]
        order: EpochOrder | GrownOrder = EpochOrder(lengths, *key, shards=made[0])
        for generation, shards in zip(generations, made[1:], strict=True):
            new = np.setdiff1d(shards, generation.shards)
            order = GrownOrder(order, generation.read.position, lengths, new, *key)
        return order
