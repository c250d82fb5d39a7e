"""Which samples make up batch k: a pure function of the index, the mixture, the seed and the budget.

The order is cut into windows, each of which is planned as a whole (``window_maker``). This file finds the window of a
batch, shares what is planned among the processes of a node, and goes on from a saved state, also when the data have
grown.

World size, worker count, batches per step and interruptions have no influence. The state at any batch
is a few integers: the window, its first batch and the cursors at its start.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from qa_train.data.order import growth
from qa_train.data.order.epoch import Ints
from qa_train.data.order.growth import PlanRecord, Records
from qa_train.data.order.packing import Cost
from qa_train.data.order.seek import Board, Read, Saved, Start, decode_state, encode_state, number_of
from qa_train.data.order.shuffle_window import PlanSource, SampleRef, Window
from qa_train.data.order.window_file import read_window, write_window
from qa_train.data.order.window_maker import WindowMaker
from qa_train.data.stores.node_files import NodeFiles

_WINDOWS_KEPT = 2
_STARTS_KEPT = 4096
# Windows that are planned before they are needed, and the files of all that processes of this node have planned.
_AHEAD = 2
_FILES = NodeFiles("window", 256 << 20)
# Raised when other samples make up batch k of the same data: a run of an older version is then not continued unnoticed.
_VERSION = 4


class Plan:
    """The order of the training data; ``batch(k)`` for any k, in constant memory.

    Finding batch k walks the windows before it once; ``seek_hint`` and ``seek`` let a resumed run
    start at its window. After a change of the data, an earlier plan holds the batches up to the end of its window.
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
        settings: str | None = None,
        shards: Mapping[int, Ints] | None = None,
        share: str = "",
    ) -> None:
        """``settings`` and ``shards`` (by place of the source, in order): of an earlier version of the data.

        ``share``: what one process of a node plans, the others read that give the same text: a digest of all that
        lengths depend on besides the fingerprint. Empty: every process plans for itself.
        """
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
        self._settings_then = settings
        self._maker = WindowMaker(
            sources,
            used,
            shards or {},
            seed=seed,
            tokens_per_batch=tokens_per_batch,
            shuffle_window=shuffle_window,
            cost=self.cost,
        )
        self._earlier: Plan | None = None
        # The window whose followers are planned.
        self._share, self._ahead_of = share, -1
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
        return self.window(window).batch(k - first)

    def locate(self, k: int) -> tuple[int, int]:
        """The window that holds batch k, and the number of that window's first batch."""
        start = self._start_of(k)
        return start.window, start.first_batch

    def bounds(self, k: int) -> tuple[Start, Start]:
        """The start of the window that holds batch k, and the start of the one after it."""
        if self._earlier is not None and k < self._starts[0].first_batch:
            start, following = (self._translated(each) for each in self._earlier.bounds(k))
            return start, self._starts[0] if following.window == self._starts[0].window else following
        start = self._start_of(k)
        return start, self._starts[bisect_right(self._starts, k, key=lambda s: s.first_batch)]

    @property
    def used(self) -> list[int]:
        """The numbers of the sources with a weight above 0; cursors of a start are in this order."""
        return self._used

    @property
    def rate(self) -> float | None:
        """Samples per second that one process plans; None if others have planned all that it asked for."""
        return self._maker.rate

    def window(self, number: int) -> Window:
        """All batches of a window; the last two are kept in memory."""
        if self._earlier is not None and number < self._starts[0].window:
            return self._earlier.window(number)
        while number not in self._windows:
            place = bisect_right(self._starts, number, key=lambda s: s.window) - 1
            if place < 0:
                raise ValueError(f"shuffle window {number} is before the one that this run resumed at")
            self._make(self._starts[place])
        self._windows.move_to_end(number)
        return self._windows[number]

    def seek_hint(self, k: int) -> tuple[int, ...]:
        """The state at batch k as integers, for ``seek`` in another process."""
        if self._earlier is not None and k < self._starts[0].first_batch:
            return self._earlier.seek_hint(k)
        start = self._start_of(k)
        now, before = [], []
        for i, (epoch, position) in zip(self._used, start.cursors, strict=True):
            source = self.sources[i]
            now.append(Read(number_of(source.name), number_of(source.fingerprint), epoch, position))
            before += [each.read for each in self._maker.grown.get((i, epoch), [])]
        return encode_state(start, k, self.batches_per_step, self._settings(), now, before)

    def record(self) -> PlanRecord:
        """What ``seek`` needs to know of this version of the data when they have changed."""
        return growth.record(self._settings(), self.sources)

    def seek(self, *state: int, records: Records | None = None) -> list[str]:
        """Continue from a saved ``seek_hint`` instead of walking the windows before it.

        Batches per step may have changed: the next step stays the next one, under its new batch number.

        When the data or their settings have changed, ``records`` of the versions that the run has seen let it finish
        the window that it is in as it was planned. From the next window on, new sources are part of the mixture, and
        new shards join the epoch that their source is in. A source with other settings, or without some of its records,
        starts its next epoch. Where the window cannot be had back, it starts again: at most one is seen twice.

        Returns what became of the sources that have changed, one line each.
        """
        saved, records = decode_state(state), records or Records()
        moved = saved.moved(self.batches_per_step)
        ids = {number_of(s.name): number_of(s.fingerprint) for s in (self.sources[i] for i in self._used)}
        same = saved.settings == number_of(self._settings())
        same &= ids == {name: versions[0].data for name, versions in saved.sources.items()}
        cursors = saved.cursors()
        batch, first = saved.batch + moved, saved.first_batch + moved
        if same:
            now, told = self._continued(cursors, saved, records)
            start = Start(saved.window, first, saved.base, now)
            # A run that was continued on other data, or with other batches per step, counts from another start.
            if not moved and not told and self._fits(start):
                self._learn(start)
                return []
        if same and not told:
            self._restart(start, None)
            return []
        earlier = self._back(saved, records, first) if batch > first else None
        if earlier is None:
            now, told = self._continued(cursors, saved, records)
            self._restart(Start(saved.window, batch, saved.window, now), None)
            return told
        following = earlier.bounds(batch)[1]
        for u, i in enumerate(earlier.used):
            cursors[number_of(self.sources[i].name)] = following.cursors[u]
        now, told = self._continued(cursors, saved, records)
        self._restart(Start(following.window, following.first_batch, following.window, now), earlier)
        return told

    def _restart(self, start: Start, earlier: Plan | None) -> None:
        """Count windows and batches from here on; batches before it are those of an earlier plan."""
        self._starts, self._earlier = [start], earlier
        self._board.clear()
        self._windows.clear()

    def forget(self) -> None:
        """As if nothing had been planned: the plan of a fresh start, from which `seek` goes on."""
        self._restart(Start(0, 0, 0, tuple((0, 0) for _ in self._used)), None)
        self._maker.restart({})

    def _fits(self, start: Start) -> bool:
        """Whether a start is one of the same numbering as those that are known."""
        for known in self._starts:
            order = known.window - start.window, known.first_batch - start.first_batch
            if (order[0] == 0 and known != start) or order[0] * order[1] < 0:
                return False
        return True

    def _back(self, saved: Saved, records: Records, first: int) -> Plan | None:
        """The plan that a state is of, at its window; None if it cannot be had back from the data of now."""
        made = records.of(saved)
        if made is None or json.loads(made.settings)[: growth.GLOBAL] != json.loads(self._settings())[: growth.GLOBAL]:
            return None
        found = growth.earlier_sources(made, self.sources)
        if found is None:
            return None
        plan = Plan(
            found[0],
            seed=self.seed,
            tokens_per_batch=self.tokens_per_batch,
            batches_per_step=self.batches_per_step,
            shuffle_window=self.shuffle_window,
            cost=self.cost,
            settings=made.settings,
            shards=found[1],
        )
        now, told = plan._continued(saved.cursors(), saved, records)
        plan._restart(Start(saved.window, first, saved.base, now), None)
        return None if told else plan

    def _continued(
        self, cursors: Mapping[int, tuple[int, int]], saved: Saved, records: Records
    ) -> tuple[tuple[tuple[int, int], ...], list[str]]:
        """Where each source goes on that was read up to ``cursors`` (by number of the name), and what has changed."""
        found, grown = [], {}
        for i in self._used:
            source, cursor = self.sources[i], cursors.get(number_of(self.sources[i].name))
            found.append(growth.continued(source, len(self._maker.shards(i)), cursor, saved, records))
            if found[-1].generations:
                grown[i, found[-1].cursor[0]] = found[-1].generations
        self._maker.restart(grown)
        return tuple(each.cursor for each in found), [each.told for each in found if each.told]

    def _translated(self, start: Start) -> Start:
        """A start of the earlier plan with a cursor for every source of this one."""
        assert self._earlier is not None
        cursors = dict(zip(self._earlier.used, start.cursors, strict=True))
        return Start(start.window, start.first_batch, start.base, tuple(cursors.get(i, (0, 0)) for i in self._used))

    def _settings(self) -> str:
        """Everything that the order depends on except the sources' data."""
        if self._settings_then is not None:
            return self._settings_then
        parts: list[Any] = [_VERSION, self.seed, self.tokens_per_batch, self.shuffle_window, self.cost.key()]
        parts += [[s.name, s.weight, s.max_epochs] for s in self.sources]
        return json.dumps(parts)

    def _start_of(self, k: int) -> Start:
        """The start of the window that holds batch k: known, learnt from another process, or walked to."""
        if self._earlier is not None and k < self._starts[0].first_batch:
            return self._translated(self._earlier._start_of(k))
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

    def ahead(self, k: int) -> None:
        """Plan the windows that follow that of batch k for all processes of this node, unless one of them is at it."""
        if not self._share or k < self._starts[0].first_batch or self._start_of(k).window == self._ahead_of:
            return
        start, following = self.bounds(k)
        for _ in range(_AHEAD):
            made = _FILES.prepare(
                self._name(following), partial(self._maker.make, following), write_window, read_window
            )
            if made is None:
                return
            following = made[1]
        self._ahead_of = start.window

    def _make(self, start: Start) -> None:
        """Plan a window, or read it if a process of this node has, and learn where the next one starts."""
        plan = partial(self._maker.make, start)
        window, following = _FILES.get(self._name(start), plan, write_window, read_window) if self._share else plan()
        self._windows[start.window] = window
        if len(self._windows) > _WINDOWS_KEPT:
            self._windows.popitem(last=False)
        self._learn(following)

    def _name(self, start: Start) -> str:
        """The name of a window's file: of all that the window depends on."""
        grown = [[*key, g.read.position, g.shards.tolist()] for key, each in self._maker.grown.items() for g in each]
        parts = [self.fingerprint, self._share, start.window, start.first_batch, start.base, start.cursors, grown]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
