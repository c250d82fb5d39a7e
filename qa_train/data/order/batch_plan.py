"""Which samples make up batch k: a pure function of the index, the mixture, the seed and the budget.

1. A window takes from each source its share of ``shuffle_window`` samples. The number taken up to
   the end of a window is rounded, not that of the window, so shares are exact over time.
2. A source is read in the order of ``EpochOrder``; records that do not qualify are skipped when they are reached. Its
cursor (epoch, position among all records) is where the next window goes on. 3. Inside a window the sources are spread
evenly. Epochs of a small source do not mix. 4. Samples are packed in that order into batches of at most
``tokens_per_batch`` tokens and of equal
   cost (``packing``).

World size, worker count, batches per step and interruptions have no influence. The state at any batch
is a few integers: the window, its first batch and the cursors at its start.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qa_train.data.order import mixture
from qa_train.data.order.epoch import EpochOrder, Ints, hashes
from qa_train.data.order.packing import Cost, pack
from qa_train.data.order.seek import Board, Start, decode_state, encode_state
from qa_train.data.order.shuffle_window import PlanSource, SampleRef, Window

_WINDOWS_KEPT = 2
_STARTS_KEPT = 4096
_EPOCHS_KEPT = 2
# Records looked at beyond those that will probably qualify, so that few remain for another look; and at most together.
_SPARE, _MOST = 8, 16_384
# Raised when other samples make up batch k of the same data: a run of an older version is then not continued unnoticed.
_VERSION = 4


@dataclass
class _Part:
    """The samples that a window takes from one source."""

    rows: Ints
    epochs: Ints
    tokens: Ints
    costs: Ints
    skipped: Counter[str]
    cursor: tuple[int, int]


class Plan:
    """The order of the training data; ``batch(k)`` for any k, in constant memory.

    Finding batch k walks the windows before it once; ``seek_hint`` and ``seek`` let a resumed run
    start at its window.
    """

    def __init__(
        self,
        sources: Sequence[PlanSource],
        *,
        seed: int,
        tokens_per_batch: int,
        batches_per_step: int,
        shuffle_window: int,
        cost: Cost | None = None,
    ) -> None:
        used = [i for i, s in enumerate(sources) if s.weight > 0]
        if not used:
            raise ValueError("no source has a weight above 0: nothing to plan")
        for i in used:
            if not np.sum(sources[i].shard_lengths):
                raise ValueError(f"source {sources[i].name!r} has no usable record")
        if all(sources[i].max_epochs is not None for i in used):
            raise ValueError(
                "every source has max_epochs, so the data would end: remove it from at least one source "
                "(trainer.max_steps ends the run)"
            )
        if min(tokens_per_batch, batches_per_step, shuffle_window) < 1:
            raise ValueError("tokens_per_batch, batches_per_step and shuffle_window must be 1 or more")
        self.sources = sources
        self.seed = seed
        self.tokens_per_batch = tokens_per_batch
        self.batches_per_step = batches_per_step
        self.shuffle_window = shuffle_window
        self.cost = cost or Cost()
        self._used = used
        self._windows: OrderedDict[int, Window] = OrderedDict()
        self._epochs: OrderedDict[tuple[int, int], EpochOrder] = OrderedDict()
        # Starts of windows, by number; not all of them.
        self._starts = [Start(0, 0, 0, tuple((0, 0) for _ in used))]
        self._board = Board(len(used))

    @property
    def fingerprint(self) -> str:
        """Changes when anything that the order depends on changes."""
        parts: list[Any] = [self._settings()]
        parts += [[s.name, s.fingerprint] for s in self.sources]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def batch(self, k: int) -> list[SampleRef]:
        """The samples of batch k."""
        window, first = self.locate(k)
        return self.window(window).batches[k - first]

    def locate(self, k: int) -> tuple[int, int]:
        """The window that holds batch k, and the number of that window's first batch."""
        start = self._start_of(k)
        return start.window, start.first_batch

    def bounds(self, k: int) -> tuple[Start, Start]:
        """The start of the window that holds batch k, and the start of the one after it."""
        start = self._start_of(k)
        return start, self._starts[bisect_right(self._starts, k, key=lambda s: s.first_batch)]

    @property
    def used(self) -> list[int]:
        """The numbers of the sources with a weight above 0; cursors of a start are in this order."""
        return self._used

    def window(self, number: int) -> Window:
        """All batches of a window; the last two are kept in memory."""
        while number not in self._windows:
            place = bisect_right(self._starts, number, key=lambda s: s.window) - 1
            if place < 0:
                raise ValueError(f"shuffle window {number} is before the one that this run resumed at")
            self._make(self._starts[place])
        self._windows.move_to_end(number)
        return self._windows[number]

    def seek_hint(self, k: int) -> tuple[int, ...]:
        """The state at batch k as integers, for ``seek`` in another process."""
        ids = [(s.name, s.fingerprint) for s in (self.sources[i] for i in self._used)]
        return encode_state(self._start_of(k), k, self.batches_per_step, self._settings(), ids)

    def seek(self, *state: int) -> None:
        """Continue from a saved ``seek_hint`` instead of walking the windows before it.

        Batches per step may have changed: the next step stays the next one, under its new batch number. When the data
        or their settings changed, unchanged sources continue where they were, changed ones start their next epoch
        (skipping the rest of the current one), and the window starts again: at most one is seen twice.
        """
        ids = [(s.name, s.fingerprint) for s in (self.sources[i] for i in self._used)]
        start, exact = decode_state(state, self.batches_per_step, self._settings(), ids)
        if not exact:
            self._starts = [start]
            self._board.clear()
            self._windows.clear()
            return
        for known in self._starts:
            if known.window == start.window and known != start:
                raise ValueError(
                    f"shuffle window {known.window} starts at batch {known.first_batch}, the saved state has "
                    f"{start.first_batch}: it is of another run"
                )
        self._learn(start)

    def _settings(self) -> str:
        """Everything that the order depends on except the sources' data."""
        parts: list[Any] = [_VERSION, self.seed, self.tokens_per_batch, self.shuffle_window, self.cost.key()]
        parts += [[s.name, s.weight, s.max_epochs] for s in self.sources]
        return json.dumps(parts)

    def _start_of(self, k: int) -> Start:
        """The start of the window that holds batch k: known, learnt from another process, or walked to."""
        asked = False
        while True:
            place = bisect_right(self._starts, k, key=lambda s: s.first_batch) - 1
            if place < 0:
                raise ValueError(f"batch {k} is before batch {self._starts[0].first_batch}, at which this run resumed")
            start = self._starts[place]
            if place + 1 < len(self._starts) and self._starts[place + 1].window == start.window + 1:
                return start
            if asked:
                self._make(start)
                continue
            asked = True
            for other in self._board.read():
                self._learn(other, share=False)

    def _learn(self, start: Start, *, share: bool = True) -> None:
        place = bisect_right(self._starts, start.window, key=lambda s: s.window)
        if place and self._starts[place - 1].window == start.window:
            return
        self._starts.insert(place, start)
        if len(self._starts) > _STARTS_KEPT:
            del self._starts[1 : _STARTS_KEPT // 2]
        if share:
            self._board.write(start)

    def _make(self, start: Start) -> None:
        """Plan a window, and learn where the next one starts."""
        number = start.window
        active = [
            u
            for u, i in enumerate(self._used)
            if start.cursors[u][0] < (self.sources[i].max_epochs or start.cursors[u][0] + 1)
        ]
        weights = [self.sources[self._used[u]].weight for u in active]
        counts = mixture.take(weights, self.shuffle_window, number - start.base)
        parts = {u: self._take(self._used[u], *start.cursors[u], n) for u, n in zip(active, counts, strict=True)}
        window = self._packed(number, {self._used[u]: part for u, part in parts.items()})
        cursors = tuple(parts[u].cursor if u in parts else cursor for u, cursor in enumerate(start.cursors))
        ran_dry = any(
            cursors[u][0] >= limit for u in active if (limit := self.sources[self._used[u]].max_epochs) is not None
        )
        following = Start(
            number + 1, start.first_batch + len(window.batches), number + 1 if ran_dry else start.base, cursors
        )
        self._windows[number] = window
        if len(self._windows) > _WINDOWS_KEPT:
            self._windows.popitem(last=False)
        self._learn(following)

    def _take(self, i: int, epoch: int, position: int, count: int) -> _Part:
        """The next ``count`` rows of source i that qualify; fewer when it runs dry."""
        source = self.sources[i]
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
            costs = self.cost.of(lengths)[good]
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
            jitter = hashes(count, self.seed, "place", number, self.sources[i].name) / 2.0**64
            places.append((np.arange(count) + jitter) / max(1, count))
        order = np.argsort(np.concatenate(places), kind="stable")
        source = np.concatenate([np.full(len(part.rows), i) for i, part in parts.items()])[order]
        row, epoch, tokens, costs = (
            np.concatenate([getattr(part, name) for part in parts.values()])[order]
            for name in ("rows", "epochs", "tokens", "costs")
        )
        refs = [SampleRef(*values) for values in zip(source.tolist(), row.tolist(), epoch.tolist(), strict=True)]
        fits = tokens <= self.tokens_per_batch
        kept = np.flatnonzero(fits)
        if len(refs) and not len(kept):
            raise ValueError(
                f"no sample of shuffle window {number} fits into data.tokens_per_batch={self.tokens_per_batch} "
                f"(the shortest has {tokens.min()} tokens): raise it"
            )
        packed = pack(tokens[kept], costs[kept], self.tokens_per_batch)
        return Window(
            [[refs[kept[i]] for i in batch] for batch in packed],
            np.asarray([tokens[kept[batch]].sum() for batch in packed], dtype=np.int64),
            np.asarray([costs[kept[batch]].sum() for batch in packed], dtype=np.int64),
            [refs[i] for i in np.flatnonzero(~fits)],
            {i: part.skipped for i, part in parts.items()},
        )

    def _order(self, i: int, epoch: int) -> EpochOrder:
        if (i, epoch) not in self._epochs:
            source = self.sources[i]
            self._epochs[i, epoch] = EpochOrder(np.asarray(source.shard_lengths), self.seed, source.name, epoch)
            if len(self._epochs) > _EPOCHS_KEPT * len(self._used):
                self._epochs.popitem(last=False)
        self._epochs.move_to_end((i, epoch))
        return self._epochs[i, epoch]
