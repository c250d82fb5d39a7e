"""Which samples make up batch k: a pure function of the index, the mixture, the seed and the budget.

1. A chapter takes from each source its share of ``chapter_samples`` positions. The number taken up
   to the end of chapter c is floor(share * chapter_samples * c + 1/2), so shares are exact over time.
2. Position p of a source with n rows is row number p % n of epoch p // n. An epoch visits the
   shards in a shuffled order; a chapter therefore reads from few shards.
3. Inside a chapter, the rows of each source and epoch are shuffled among themselves, and the
   sources are spread evenly over the chapter. Epochs of a small source do not mix.
4. Samples are packed in that order into batches of at most ``tokens_per_batch`` tokens.

World size, worker count and interruptions appear nowhere. Orders are sorted hashes, not draws of
a random generator, so that they are the same in every version of numpy.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# More open batches fill better and mix the order a little more.
OPEN_BATCHES = 32
_CHAPTERS_KEPT = 2
Ints = NDArray[np.int64]


class PlanSource(Protocol):
    """What the plan needs to know of a source: rows in shard order, and exact token counts."""

    name: str
    weight: float
    fingerprint: str
    shard_lengths: Sequence[int]

    def token_counts(self, rows: Ints, epochs: Ints) -> Ints:
        """Tokens of each row with the wording drawn for that epoch."""
        ...


@dataclass(frozen=True)
class SampleRef:
    """A sample of the plan: number of the source, row in it, and how often it was seen before."""

    source: int
    row: int
    epoch: int


@dataclass(frozen=True)
class Chapter:
    """The batches of one chapter, its tokens, and the samples that fit in no batch."""

    batches: list[list[SampleRef]]
    tokens: int
    too_long: list[SampleRef]


class Plan:
    """The order of the training data; ``batch(k)`` for any k, in constant memory.

    Finding batch k walks the chapters before it once; ``seek_hint`` and ``seek`` let a resumed run
    start at its chapter.
    """

    def __init__(
        self,
        sources: Sequence[PlanSource],
        *,
        seed: int,
        tokens_per_batch: int,
        batches_per_step: int,
        chapter_samples: int,
    ) -> None:
        used = [i for i, s in enumerate(sources) if s.weight > 0]
        if not used:
            raise ValueError("no source has a weight above 0: nothing to plan")
        for i in used:
            if not sum(sources[i].shard_lengths):
                raise ValueError(f"source {sources[i].name!r} has no usable record")
        if min(tokens_per_batch, batches_per_step, chapter_samples) < 1:
            raise ValueError("tokens_per_batch, batches_per_step and chapter_samples must be 1 or more")
        self.sources = sources
        self.seed = seed
        self.tokens_per_batch = tokens_per_batch
        self.batches_per_step = batches_per_step
        self.chapter_samples = chapter_samples
        total = sum(sources[i].weight for i in used)
        self._shares = {i: sources[i].weight / total for i in used}
        self._chapters: OrderedDict[int, Chapter] = OrderedDict()
        self._orders: OrderedDict[tuple[int, int], Ints] = OrderedDict()
        # Chapter number -> number of its first batch.
        self._first = {0: 0}

    @property
    def fingerprint(self) -> str:
        """Changes when anything that the order depends on changes."""
        parts: list[Any] = [self.seed, self.tokens_per_batch, self.batches_per_step, self.chapter_samples]
        parts += [[s.name, s.weight, s.fingerprint] for s in self.sources]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def batch(self, k: int) -> list[SampleRef]:
        """The samples of batch k."""
        chapter = self._chapter_of(k)
        return self.chapter(chapter).batches[k - self._first[chapter]]

    def seek_hint(self, k: int) -> tuple[int, int]:
        """The chapter that holds batch k, and the number of that chapter's first batch."""
        chapter = self._chapter_of(k)
        return chapter, self._first[chapter]

    def seek(self, chapter: int, first_batch: int) -> None:
        """Continue from a saved ``seek_hint`` instead of walking the chapters before it."""
        known = self._first.setdefault(chapter, first_batch)
        if known != first_batch:
            raise ValueError(f"chapter {chapter} starts at batch {known}, the saved hint says {first_batch}")

    def chapter(self, number: int) -> Chapter:
        """All batches of a chapter; the last two are kept in memory."""
        if number not in self._chapters:
            self._chapters[number] = self._make(number)
            if len(self._chapters) > _CHAPTERS_KEPT:
                self._chapters.popitem(last=False)
        self._chapters.move_to_end(number)
        made = self._chapters[number]
        if number in self._first:
            self._first.setdefault(number + 1, self._first[number] + len(made.batches))
        return made

    def _chapter_of(self, k: int) -> int:
        chapter = max(c for c, first in self._first.items() if first <= k)
        while k >= self._first[chapter] + len(self.chapter(chapter).batches):
            chapter += 1
        return chapter

    def _make(self, number: int) -> Chapter:
        parts = [self._share(number, i) for i in self._shares]
        source, row, epoch, time = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(time, kind="stable")
        source, row, epoch = source[order], row[order], epoch[order]
        tokens = np.zeros(len(row), dtype=np.int64)
        for i in self._shares:
            mine = source == i
            tokens[mine] = self.sources[i].token_counts(row[mine], epoch[mine])
        refs = [SampleRef(*values) for values in zip(source.tolist(), row.tolist(), epoch.tolist(), strict=True)]
        fits = tokens <= self.tokens_per_batch
        kept = np.flatnonzero(fits)
        if not len(kept):
            raise ValueError(
                f"no sample of chapter {number} fits into data.tokens_per_batch={self.tokens_per_batch} "
                f"(the shortest has {tokens.min() if len(tokens) else 0} tokens): raise it"
            )
        packed = pack(tokens[kept].tolist(), self.tokens_per_batch)
        batches = [[refs[kept[i]] for i in batch] for batch in packed]
        return Chapter(batches, int(tokens[kept].sum()), [refs[i] for i in np.flatnonzero(~fits)])

    def _share(self, chapter: int, i: int) -> tuple[Ints, Ints, Ints, NDArray[np.float64]]:
        """Source, row, epoch and place in the chapter (0 to 1) of each position of source i."""
        start, stop = (int(np.floor(self._shares[i] * self.chapter_samples * c + 0.5)) for c in (chapter, chapter + 1))
        lengths = self.sources[i].shard_lengths
        rows_per_epoch = int(sum(lengths))
        rows = []
        position = start
        while position < stop:
            epoch, offset = divmod(position, rows_per_epoch)
            part = self._epoch_order(i, epoch)[offset : offset + stop - position]
            rows.append(part[np.argsort(_hashes(len(part), self.seed, "chapter", chapter, i, epoch), kind="stable")])
            position += len(part)
        count = stop - start
        row = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        jitter = _hashes(count, self.seed, "place", chapter, i) / 2.0**64
        place = (np.arange(count) + jitter) / max(count, 1)
        return np.full(count, i), row, np.arange(start, stop) // rows_per_epoch, place

    def _epoch_order(self, i: int, epoch: int) -> Ints:
        """Rows of source i in the order of this epoch: shards shuffled, rows shuffled within shards."""
        if (i, epoch) not in self._orders:
            lengths = np.asarray(self.sources[i].shard_lengths, dtype=np.int64)
            shard = np.repeat(_hashes(len(lengths), self.seed, "shards", i, epoch), lengths)
            within = _hashes(int(lengths.sum()), self.seed, "rows", i, epoch)
            self._orders[i, epoch] = np.lexsort((within, shard)).astype(np.int64)
            if len(self._orders) > 2 * len(self._shares):
                self._orders.popitem(last=False)
        return self._orders[i, epoch]


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """First fit: item numbers in batches whose lengths sum to at most ``budget``.

    An item goes into the oldest open batch with room. A batch closes when nothing fits any more,
    or, as the fullest one, when too many are open. Batches are listed in the order of opening.
    """
    shortest = min(lengths, default=0)
    batches: list[list[int]] = []
    room: OrderedDict[int, int] = OrderedDict()
    for item, length in enumerate(lengths):
        number = next((n for n, free in room.items() if free >= length), None)
        if number is None:
            if len(room) >= OPEN_BATCHES:
                del room[min(room, key=lambda n: room[n])]
            number = len(batches)
            batches.append([])
            room[number] = budget
        batches[number].append(item)
        room[number] -= length
        if room[number] < shortest:
            del room[number]
    return batches


def _hashes(count: int, *key: Any) -> NDArray[np.uint64]:
    """``count`` 64-bit hashes: splitmix64 (Steele et al. 2014) of a counter, keyed by BLAKE2b of ``key``."""
    seed = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(int.from_bytes(seed, "little"))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
