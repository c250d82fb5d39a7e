"""Draws that depend on names alone: keyed hashes, so that no clip more or less changes those of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qa_train.utils import draws


def draw(*names: object) -> float:
    """A number in [0, 1) that depends on ``names`` alone (blake2b)."""
    return draws.share("\x1f".join(map(str, names)))


def pick(items: Sequence[Any], *names: object) -> Any:
    """One of ``items``, by a `draw`."""
    return items[int(draw(*names) * len(items))]


def between(bounds: Sequence[float], *names: object) -> float:
    """A number from the lower bound to the upper one, by a `draw`."""
    low, high = bounds
    return low + draw(*names) * (high - low)
