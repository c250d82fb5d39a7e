"""What a process keeps in memory of its shards: one budget for all sources, however many there are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

# For the handling of each thing, whatever its size: a mapped table has no bytes of its own.
_HANDLING = 64 << 10


class ProcessCache:
    """The things used last, of at most ``most_bytes`` together."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> Any:
        """The thing of that key, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Hashable, thing: Any, own: int) -> None:
        """Keep a thing that takes ``own`` bytes of this process alone."""
        self.bytes += own + _HANDLING - self._kept.pop(key, (None, 0))[1]
        self._kept[key] = thing, own + _HANDLING
        while self.bytes > self.most_bytes and len(self._kept) > 1:
            self.bytes -= self._kept.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.bytes = 0


KEPT = ProcessCache(192 << 20)
