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


def encode_state(
    start: Start, batch: int, batches_per_step: int, settings: str, sources: Sequence[tuple[str, str]]
) -> tuple[int, ...]:
    """The state at a batch of the window; ``sources`` are names and fingerprints.

    Six integers (window, its first batch, the batch, batches per step, base, digest of the
    settings), then four for each source (digests of name and data, epoch, position).
    """
    out = [start.window, start.first_batch, batch, batches_per_step, start.base, _digest(settings)]
    for (name, fingerprint), (epoch, position) in zip(sources, start.cursors, strict=True):
        out += [_digest(name), _digest(fingerprint), epoch, position]
    return tuple(out)


def decode_state(
    state: Sequence[int], batches_per_step: int, settings: str, sources: Sequence[tuple[str, str]]
) -> tuple[Start, bool]:
    """The window start to continue from, and whether it is one of the same run in the same numbering.

    Raises ValueError if it is not a state of a plan.
    """
    if len(state) < 10 or (len(state) - 6) % 4:
        raise ValueError(f"{list(state)} is not the state of a plan (6 integers, and 4 for each source)")
    window, first, batch, per_step, base, digest = state[:6]
    saved = {state[i]: tuple(state[i + 1 : i + 4]) for i in range(6, len(state), 4)}
    same = digest == _digest(settings) and len(saved) == len(sources)
    cursors = []
    for name, fingerprint in sources:
        source, epoch, position = saved.get(_digest(name), (0, -1, 0))
        if source == _digest(fingerprint):
            cursors.append((epoch, position))
            continue
        same = False
        # New sources begin with epoch 0; changed ones have another order, so they begin their next epoch.
        cursors.append((epoch + 1, 0))
    moved = 0
    if per_step != batches_per_step:
        if batch % per_step:
            raise ValueError(
                f"batch {batch} is inside a step of {per_step} batches: resume with trainer.batches_per_step={per_step}"
            )
        moved = batch // per_step * batches_per_step - batch
    if not same:
        return Start(window, batch + moved, window, tuple(cursors)), False
    return Start(window, first + moved, base, tuple(cursors)), not moved


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


def _digest(text: str) -> int:
    return int.from_bytes(draws.digest(text, 6))
