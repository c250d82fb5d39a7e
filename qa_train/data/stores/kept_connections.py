"""Range requests over kept connections (http.client), for the usual answer: the bytes that were asked for.

A clip is 0.2 MB and decoded in 3 ms. urllib3 adds 0.2 ms for one answer, http.client alone 0.13 ms (docs/lab/data.md).
Redirects, proxies and other kinds of answers are left to urllib3 (`web_ranges`); the time limit of an answer is the
same there.
"""

from __future__ import annotations

import io
import os
import select
import socket
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """Status, reason, headers by their names in lower case, and the body: of status 206 only, no longer than asked."""

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes = b""


class TimedResponse(HTTPResponse):
    """A response whose socket's time-out is for all of it. http.client's own is for each piece that comes, so that a
    server which sends byte by byte would hold a reader for hours.
    """

    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        deadline = time.monotonic() + (sock.gettimeout() or 0.0)
        self.fp = io.BufferedReader(_Timed(self.fp.detach(), sock, deadline))


class _Timed(io.RawIOBase):
    """What comes over a socket until the deadline."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw, self._sock, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer was not complete before the time-out")
    return left


def ask(url: str, offset: int, size: int, timeout_s: float, more: Mapping[str, str] | None = None) -> Answer | None:
    """The answer to a request for ``size`` bytes at ``offset``; None: it has to be asked for in another way.

    ``more``: further headers. ``timeout_s`` is for everything from the connection to the last byte.

    Raises:
        OSError: no connection, an answer that breaks off, or none before the time-out.
    """
    deadline = time.monotonic() + timeout_s
    parts = urlsplit(url)
    place = parts.scheme, parts.netloc.rpartition("@")[2]
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"Range": f"bytes={offset}-{offset + size - 1}", "User-Agent": "qa-train"} | dict(more or {})
    while True:
        kept = _take(*place)
        connection = kept or _connection(*place)
        connection.timeout = timeout_s
        try:
            if connection.sock:
                connection.sock.settimeout(timeout_s)
            connection.request("GET", target, headers=headers)
            connection.sock.settimeout(_left(deadline))
            response = connection.getresponse()
        except ConnectionError:
            connection.close()
            # The server may close a connection just when it is used again.
            if not kept:
                raise
        except (HTTPException, UnicodeError):
            connection.close()
            return None
        except BaseException:
            connection.close()
            raise
        else:
            return _answer(place, connection, response, size)


def _answer(place: tuple[str, str], connection: HTTPConnection, response: HTTPResponse, size: int) -> Answer | None:
    """What a response holds; its connection is kept if it can be used again."""
    found, again = None, False
    try:
        headers = {name.lower(): value for name, value in response.headers.items()}
        lengths = {*response.headers.get_all("content-length", [])}
        if response.status // 100 == 3 or response.chunked:
            return None
        found = Answer(response.status, response.reason, headers)
        # Servers of HTTP/1.0 close instead of naming a length.
        expected = stated_length(headers, size)
        if response.status == 206 and lengths == (set() if response.length is None else {str(expected)}):
            found = Answer(206, response.reason, headers, body(response.read1, expected))
            again = not response.will_close
    finally:
        response.close()
        if again:
            _free[place].append(connection)
        else:
            connection.close()
    return found


def stated_length(headers: Mapping[str, str], size: int) -> int:
    """How long the body of an answer to a request for ``size`` bytes is: less where the file ends before."""
    stated = headers.get("content-length", "")
    return min(size, int(stated)) if stated.isdecimal() and len(stated) < 20 else size


def body(read: Callable[[int], bytes], size: int) -> bytes:
    """``size`` bytes, in parts as they come. Raises OSError where they end before."""
    parts, held = list[bytes](), 0
    while held < size:
        part = read(size - held)
        if not part:
            raise ConnectionError(f"the answer ends after {held} of {size} bytes")
        parts.append(part)
        held += len(part)
    return b"".join(parts)


def _connection(scheme: str, host: str) -> HTTPConnection:
    found = HTTPSConnection(host, context=_context()) if scheme == "https" else HTTPConnection(host)
    found.response_class = TimedResponse
    return found


@cache
def _context() -> ssl.SSLContext:
    """Certificates are checked against those of the system (or SSL_CERT_FILE)."""
    return ssl.create_default_context()


def _take(scheme: str, host: str) -> HTTPConnection | None:
    """The connection used last that the server has not closed: nothing can be read from one that waits."""
    free = _free[scheme, host]
    while free:
        try:
            connection = free.pop()
        except IndexError:  # another thread was first
            break
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        if not poll.poll(0):
            return connection
        connection.close()
    return None


def _renew() -> None:
    for connections in _free.values():
        for connection in connections:
            connection.close()
    _free.clear()


# Scheme and host -> connections that nobody uses.
_free: defaultdict[tuple[str, str], deque[HTTPConnection]] = defaultdict(deque)
# A forked process must not write into those of its parent; closing its copies leaves them open.
os.register_at_fork(after_in_child=_renew)
