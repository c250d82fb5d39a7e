"""Stand-ins for those who answer, and for processes that share the work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qa_train.infer.generate import Answer, Decoding, Item


def gathering(world: int) -> Callable[[int, Any], list[Any]]:
    """``gather(rank, value)`` for so many threads of this process: each gets the values of all."""
    barrier = threading.Barrier(world)
    values: list[Any] = [None] * world

    def gather(rank: int, value: Any) -> list[Any]:
        values[rank] = value
        barrier.wait(60)
        found = list(values)
        barrier.wait(60)
        return found

    return gather


@dataclass
class Counting:
    """Answers with the key, the draw and the seed; remembers what was asked, and dies before call ``dies``."""

    refuses: tuple[str, ...] = ()
    alone: bool = False
    dies: int | None = None
    asked: list[list[str]] = field(default_factory=list)

    def sample(self, items: Sequence[Item], count: int, decoding: Decoding) -> list[list[Answer]]:
        if len(self.asked) == self.dies:
            raise KeyboardInterrupt
        self.asked.append([item.sample.key for item in items])
        return [[self._answer(item.sample.key, draw, decoding.seed) for draw in range(count)] for item in items]

    def generate(self, items: Sequence[Item], decoding: Decoding | None = None) -> list[Answer]:
        return [draws[0] for draws in self.sample(items, 1, decoding or Decoding())]

    def _answer(self, key: str, draw: int, seed: int) -> Answer:
        if key in self.refuses:
            return Answer("", False, 0.0, "refused")
        return Answer(f"{key} {draw} seed {seed}", False, 0.0)
