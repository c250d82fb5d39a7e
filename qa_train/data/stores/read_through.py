"""Reading a remote file from its beginning to its end: every block once, the next ones meanwhile, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from qa_train.data.stores.background import submit

# Kept for a reader that goes back within a record, and asked for before they are needed.
BLOCK_BYTES = 4 << 20
_BEHIND, _AHEAD = 1, 2


class ReadThrough:
    """The blocks of a file of ``size`` bytes around the place that is read; ``read``: a range request."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size, self._read, self._block = size, read, BLOCK_BYTES
        self._blocks: dict[int, Future[bytes]] = {}

    def __call__(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes at ``offset``, which is within the file: those of one block.

        Raises:
            RemoteError: the block could not be read.
        """
        number, start = divmod(offset, self._block)
        kept = range(number - _BEHIND, number + _AHEAD + _BEHIND + 1)
        for each in self._blocks.keys() - kept:
            self._blocks.pop(each).cancel()
        for each in range(number, number + 1 + _AHEAD):
            first = each * self._block
            if first < self._size and each not in self._blocks:
                self._blocks[each] = submit(partial(self._read, first, min(self._block, self._size - first)))
        return self._blocks[number].result()[start : start + size]
