"""How much of each source: by weight, by temperature over hours, or by epochs.

``weight`` is the source's share of the training samples. ``temperature`` makes the share grow as
weight * hours ** (1 / temperature): 1 keeps the proportions of the corpora, large values level them.
``epochs`` makes it weight * records, so that a source of weight 2 is seen twice while one of weight
1 is seen once. Records and hours are those that pass the source's ``where``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qa_train.data.order.epoch import Ints

BY = ("weight", "temperature", "epochs")


@dataclass(frozen=True)
class Line:
    """The properties of a source that the mixture needs."""

    name: str
    weight: float
    records: float
    hours: float


def effective_weights(lines: Sequence[Line], by: str, temperature: float) -> list[float]:
    """Relative shares of the training samples, in the order of ``lines``; 0 where the weight is 0.

    Raises ValueError when ``by`` is unknown, the temperature is not above 0, or, by temperature, a source has no audio.
    """
    if by not in BY:
        raise ValueError(f"data.mixture.by is {by!r}: use one of {', '.join(BY)}")
    if by == "weight":
        return [line.weight for line in lines]
    if by == "epochs":
        return [line.weight * line.records for line in lines]
    if not temperature > 0:
        raise ValueError(f"data.mixture.temperature is {temperature}: use a number above 0, e.g. 1 or 5")
    for line in lines:
        if line.weight > 0 and not line.hours > 0:
            raise ValueError(
                f"source {line.name!r} has no hours of audio, so data.mixture.by=temperature gives it no share: "
                "use data.mixture.by=weight"
            )
    # Relative to the largest, so that small temperatures do not overflow.
    most = max((line.hours for line in lines), default=1.0)
    return [line.weight * (line.hours / most) ** (1 / temperature) if line.weight else 0.0 for line in lines]


def take(shares: Sequence[float], samples: int, window: int) -> list[int]:
    """Samples of each share in a window: the total up to its end is rounded, so shares are exact over time."""
    total = sum(shares)

    def until(share: float, windows: int) -> int:
        return int(np.floor(share / total * samples * windows + 0.5))

    return [until(share, window + 1) - until(share, window) for share in shares]


def quotas(counts: Ints, limit: int | None) -> Ints | None:
    """At most ``limit`` samples, allotted in proportion to ``counts``; None when all fit."""
    total = int(counts.sum())
    if limit is None or total <= limit:
        return None
    exact = counts * (limit / total)
    out = np.floor(exact).astype(np.int64)
    # The largest remainders get one more; the earlier shard at a tie.
    order = np.argsort(-(exact - out), kind="stable")
    out[order[: limit - int(out.sum())]] += 1
    return out
