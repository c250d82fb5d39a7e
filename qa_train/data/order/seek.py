"""The state of a plan as integers: saved in checkpoints, and shared between the processes of a rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from qa_train.utils import draws

_BOARD_SLOTS = 64


@dataclass(frozen=True)
class Start:
    """Where a window begins: its first batch, and (epoch, position) of every source that is used.

    ``base`` is the window from which shares count: 0, or the one after a source ran dry.
    """

    window: int
    first_batch: int
    base: int
    cursors: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Read:
    """How far a version of a source's data was read: numbers of its name and data, epoch, position."""

    name: int
    data: int
    epoch: int
    position: int


@dataclass(frozen=True)
class Saved:
    """A state: the window that holds ``batch``, where it began, and by the number of each source's name its data with
    the cursor at the window's start, then the versions that made up earlier parts of that epoch with their ends.
    """

    window: int
    first_batch: int
    batch: int
    batches_per_step: int
    base: int
    settings: int
    sources: dict[int, list[Read]]

    def cursors(self) -> dict[int, tuple[int, int]]:
        """Epoch and position of each source at the window's start, by the number of its name."""
        return {name: (versions[0].epoch, versions[0].position) for name, versions in self.sources.items()}

    def moved(self, batches_per_step: int) -> int:
        """By how much the numbers of batches change when a step has so many; the next step stays the next one."""
        if batches_per_step == self.batches_per_step:
            return 0
        if self.batch % self.batches_per_step:
            raise ValueError(
                f"batch {self.batch} is inside a step of {self.batches_per_step} batches: resume with "
                f"trainer.batches_per_step={self.batches_per_step}"
            )
        return self.batch // self.batches_per_step * batches_per_step - self.batch


def encode_state(
    start: Start, batch: int, batches_per_step: int, settings: str, now: Sequence[Read], earlier: Sequence[Read]
) -> tuple[int, ...]:
    """The state at a batch of the window as integers.

    Six (window, its first batch, the batch, batches per step, base, number of the settings), then four for each source,
    then four for each earlier version of an epoch that is being read, the oldest first.
    """
    out = [start.window, start.first_batch, batch, batches_per_step, start.base, number_of(settings)]
    for read in (*now, *earlier):
        out += [read.name, read.data, read.epoch, read.position]
    return tuple(out)


def decode_state(state: Sequence[int]) -> Saved:
    """What ``encode_state`` wrote. Raises ValueError if it is not a state of a plan."""
    if len(state) < 10 or (len(state) - 6) % 4:
        raise ValueError(f"{list(state)} is not the state of a plan (6 integers, and 4 for each source)")
    sources: dict[int, list[Read]] = {}
    for i in range(6, len(state), 4):
        sources.setdefault(state[i], []).append(Read(*state[i : i + 4]))
    window, first, batch, per_step, base, settings = state[:6]
    return Saved(window, first, batch, per_step, base, settings, sources)


def number_of(text: str) -> int:
    """The number that stands for a name, a fingerprint or settings in a state (48 bits of a digest)."""
    return int.from_bytes(draws.digest(text, 6))


class Board:
    """Window starts in shared memory: windows planned by one process of a rank are not walked by the others.

    The main process asks for the state when it saves, though its workers did the planning. A row ends in a checksum, so
    that a partially written one is not used.
    """

    def __init__(self, sources: int) -> None:
        self._rows = torch.zeros(_BOARD_SLOTS, 4 + 2 * sources, dtype=torch.int64).share_memory_()

    def write(self, start: Start) -> None:
        """Publish the start of a window."""
        values = [start.window, start.first_batch, start.base, *(n for cursor in start.cursors for n in cursor)]
        self._rows[start.window % _BOARD_SLOTS] = torch.tensor([*values, _sum(values)])

    def read(self) -> Iterator[Start]:
        """The starts of recent windows."""
        for *values, check in self._rows[self._rows[:, -1] != 0].tolist():
            if check == _sum(values):
                window, first, base, *rest = values
                yield Start(window, first, base, tuple(zip(rest[::2], rest[1::2], strict=True)))

    def clear(self) -> None:
        """Forget what belongs to another numbering."""
        self._rows.zero_()


def _sum(values: Sequence[int]) -> int:
    return 1 + sum((i + 1) * value for i, value in enumerate(values)) % (2**61 - 1)
