"""What a plan is made of: sources as it sees them, samples, and windows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qa_train.data.order.epoch import Ints


@dataclass(frozen=True)
class Lengths:
    """Of each row: its tokens, audio tokens and scored rows, sums of squares, and why it is left out.

    ``reason`` is empty for rows that qualify; the other fields of a row left out are 0. ``tokens_squared`` is over
    the documents (a pair has two), ``audio_squared`` over segments of at most 30 s: attention stays inside them.
    """

    tokens: Ints
    tokens_squared: Ints
    audio: Ints
    audio_squared: Ints
    scored: Ints
    reason: NDArray[np.object_]


class PlanSource(Protocol):
    """What the plan needs to know of a source: its rows in shard order, and exact lengths when asked."""

    name: str
    weight: float
    fingerprint: str
    shard_lengths: Ints
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
    how many records were passed over and why."""

    batches: list[list[SampleRef]]
    batch_tokens: Ints
    batch_costs: Ints
    too_long: list[SampleRef]
    left_out: dict[int, Counter[str]]

    @property
    def tokens(self) -> int:
        """Tokens of all batches."""
        return int(self.batch_tokens.sum())
