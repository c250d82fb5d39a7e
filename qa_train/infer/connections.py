"""Connections of the server: every one has a time to send a request in, and there are never more than files allow."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# From the connection, or from the end of the answer before, to the last byte of a request's headers.
HEADERS_S = 10.0
MOST_CONNECTIONS = 1024
# File descriptors that are left for checkpoints, clips and a little more.
_SPARE_FILES = 32


def connection_limit() -> int:
    """How many connections this process can hold besides the files that it has open."""
    files = Path("/proc/self/fd")
    used = len(list(files.iterdir())) if files.is_dir() else 64
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(8, min(MOST_CONNECTIONS, allowed - used - _SPARE_FILES))


class Connection(H11Protocol):
    """uvicorn's connection, which waits for the headers of a request for ``HEADERS_S`` and no longer.

    uvicorn itself ends only connections that have been answered once. When there are as many as ``limit``, the one
    that has been idle for longest makes room; when none is idle, the new one is ended.
    """

    limit = MOST_CONNECTIONS
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client came."""
        super().connection_made(transport)
        if len(self.connections) > self.limit:
            idle = [each for each in self.connections if isinstance(each, Connection) and each._waiting is not None]
            oldest = min(idle, key=lambda each: each._waiting.when() if each._waiting else 0.0, default=self)
            oldest._drop()
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Bytes came; the time ends with the headers' last one."""
        super().data_received(data)
        if self._answering():
            self._rest()

    def on_response_complete(self) -> None:
        """An answer was sent; the next request has as much time as the first."""
        super().on_response_complete()
        if not self._answering():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went."""
        self._rest()
        super().connection_lost(exc)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._rest()
        if not self.transport.is_closing():
            self._waiting = self.loop.call_later(HEADERS_S, self._drop)

    def _rest(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _drop(self) -> None:
        """End it at once: the last bytes to a client that reads nothing would be waited for."""
        self._rest()
        self.transport.abort()
