"""The parts of a plan: its view of sources, samples, and windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qa_train.data.order.epoch import Ints


@dataclass(frozen=True)
class Lengths:
    """For each row: tokens, audio tokens, scored rows, sums of squares, and why it is skipped. ``reason`` is empty for
    rows that qualify; the other fields of a skipped row are 0. ``tokens_squared`` is over the documents (a pair has
    two), ``audio_squared`` over segments of at most 30 s: attention does not cross them.
    """

    tokens: Ints
    tokens_squared: Ints
    audio: Ints
    audio_squared: Ints
    scored: Ints
    reason: NDArray[np.object_]


class PlanSource(Protocol):
    """The plan's view of a source: rows in shard order, and exact lengths on request.

    ``fingerprint`` is of everything that its order depends on, ``settings`` of all but its shards. ``shard_ids`` tell
    its shards apart by content; None where a new shard would change which records of the others are used.
    """

    name: str
    weight: float
    fingerprint: str
    settings: str
    shard_lengths: Ints
    shard_ids: Sequence[str] | None
    max_epochs: int | None

    def lengths(self, rows: Ints, epoch: int) -> Lengths:
        """Lengths of the rows with the wording drawn for that epoch."""
        ...


@dataclass(frozen=True)
class SampleRef:
    """A sample of the plan: number of the source, row in it, and how often it was seen before."""

    source: int
    row: int
    epoch: int


@dataclass(frozen=True)
class Window:
    """The batches of one window with their tokens and costs, the samples that fit in none, and by source
    how many records were passed over and why. Integers only, so that processes can hand it on."""

    # Source, row and epoch of each sample, batch by batch [samples, 3], and where each batch ends [batches].
    samples: Ints
    ends: Ints
    batch_tokens: Ints
    batch_costs: Ints
    # Those that fit in no batch [N, 3].
    long: Ints
    skipped: dict[int, Counter[str]]

    def __len__(self) -> int:
        """The number of batches."""
        return len(self.ends)

    def batch(self, number: int) -> list[SampleRef]:
        """The samples of one batch, counted from the first of the window."""
        first = self.ends[number - 1] if number else 0
        return _refs(self.samples[first : self.ends[number]])

    @property
    def batches(self) -> list[list[SampleRef]]:
        """The samples of every batch."""
        return [self.batch(number) for number in range(len(self))]

    @property
    def too_long(self) -> list[SampleRef]:
        """Samples that fit in no batch."""
        return _refs(self.long)


def _refs(samples: Ints) -> list[SampleRef]:
    return [SampleRef(*values) for values in samples.tolist()]
