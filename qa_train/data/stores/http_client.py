"""Range requests over kept connections, by libcurl (pycurl): redirects, proxies, TLS and time limits are its own.

A clip of 0.2 MB takes 0.7 of the CPU time that http.client needs (docs/lab/data.md). A client is used by one thread at
a time and keeps its connections; those of a process belong to it alone.
"""

from __future__ import annotations

import os
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import pycurl

# What may stand in a URL; all else is sent in its percent form.
_URL_MARKS = "%/:=&?~#+!$,;'@()*[]"
# A body that is not for the caller is read to its end up to this size: the connection can be used again.
_SMALL = 64 << 10
_UNREACHABLE = (pycurl.E_UNSUPPORTED_PROTOCOL, pycurl.E_URL_MALFORMAT)
_UNTRUSTED = (pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CONNECT_ERROR, pycurl.E_SSL_CACERT_BADFILE)


class Unreachable(ValueError):
    """An address that cannot be asked, or where a server leads to one, or from one to another without end."""


@dataclass(frozen=True)
class Answer:
    """Status, reason, headers by their names in lower case, the body (of status 206 only; of one that is longer than
    asked the beginning), and the URL that it came from, after redirects.
    """

    status: int
    reason: str
    headers: dict[str, str]
    body: bytes = b""
    url: str = ""


def ask(url: str, offset: int, size: int, timeout_s: float, more: Mapping[str, str] | None = None) -> Answer:
    """The answer to a request for ``size`` bytes at ``offset`` of a file on an http or https server.

    Args:
        url: the file; up to ten redirects are followed.
        offset: the first byte.
        size: bytes, 1 or more.
        timeout_s: for everything from the connection to the last byte.
        more: further headers; an ``Authorization`` is not sent to another host that the first one leads to.

    Raises:
        Unreachable: trying again would be the same.
        ssl.SSLError: the server's certificate is not that of its host, or of nobody who is trusted.
        OSError: no connection, an answer that breaks off, or none before the time-out.
    """
    try:
        client = _free.pop()
    except IndexError:
        client = _Client()
    try:
        return client.ask(url, offset, size, timeout_s, more or {})
    finally:
        _free.append(client)


class _Client:
    """A handle of libcurl and the answer that it is receiving."""

    def __init__(self) -> None:
        self._begin(0)
        self._curl = curl = pycurl.Curl()
        for option, value in (
            (pycurl.FOLLOWLOCATION, True),
            (pycurl.MAXREDIRS, 10),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.REDIR_PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.PATH_AS_IS, True),
            # Threads have no signals of their own.
            (pycurl.NOSIGNAL, True),
            (pycurl.BUFFERSIZE, 512 << 10),
            (pycurl.HEADERFUNCTION, self._take_header),
            (pycurl.WRITEFUNCTION, self._take_body),
            # Called at least once a second, so that Ctrl+C need not wait for the time-out.
            (pycurl.NOPROGRESS, False),
            (pycurl.XFERINFOFUNCTION, self._go_on),
            *_trusted(),
        ):
            curl.setopt(option, value)

    def _begin(self, size: int) -> None:
        self._size, self._held = size, 0
        self._status, self._reason = 0, ""
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._failure: BaseException | None = None

    def ask(self, url: str, offset: int, size: int, timeout_s: float, more: Mapping[str, str]) -> Answer:
        """As the function of this name."""
        self._begin(size)
        curl = self._curl
        try:
            place = urlsplit(url)
        except ValueError as error:
            raise Unreachable(f"the address cannot be asked ({error})") from None
        try:
            curl.setopt(pycurl.URL, quote(url, safe=_URL_MARKS))
            curl.setopt(pycurl.PROXY, _proxy(place.scheme, place.hostname or ""))
            curl.setopt(pycurl.RANGE, f"{offset}-{offset + size - 1}")
            # Never empty: pycurl keeps the earlier headers then.
            headers = {"User-Agent": "qa-train"} | dict(more)
            curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in headers.items()])
            curl.setopt(pycurl.TIMEOUT_MS, max(1, round(1000 * timeout_s)))
            curl.perform()
        except pycurl.error as error:
            if self._failure is not None:
                raise self._failure from None
            code, said = error.args
            # Of an answer that is not wanted no more is read.
            if code != pycurl.E_WRITE_ERROR or not self._status:
                raise _meaning(code, said) from None
        body = b"".join(self._parts)
        self._parts = []
        return Answer(self._status, self._reason, self._headers, body, curl.getinfo(pycurl.EFFECTIVE_URL))

    def _take_header(self, line: bytes) -> int | None:
        try:
            name, colon, value = line.decode("latin-1").partition(":")
            if name.startswith("HTTP/") and " " in name:
                # Of this answer, of one that a redirect leads to, or of a proxy's CONNECT.
                _, status, *reason = line.decode("latin-1").strip().split(" ", 2)
                self._status, self._reason, self._headers = int(status), "".join(reason), {}
            elif colon:
                self._headers[name.strip().lower()] = value.strip()
        except BaseException as error:  # libcurl would print it and go on
            self._failure = error
            return -1
        return None

    def _take_body(self, part: bytes) -> int | None:
        try:
            self._held += len(part)
            if self._status == 206:
                self._parts.append(part)
            if self._held > (self._size if self._status == 206 else _SMALL):
                return -1
        except BaseException as error:
            self._failure = error
            return -1
        return None

    def _go_on(self, *_: int) -> int | None:
        return None


def _meaning(code: int, said: str) -> Exception:
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return TimeoutError("the answer was not complete before the time-out")
    if code == pycurl.E_TOO_MANY_REDIRECTS:
        return Unreachable("the server leads from address to address, without end")
    if code in _UNREACHABLE:
        return Unreachable(f"the address, or the one that the server leads to, cannot be asked ({said})")
    return ssl.SSLError(said) if code in _UNTRUSTED else ConnectionError(said)


def _trusted() -> list[tuple[int, str]]:
    """Certificates are checked against those of the system (or SSL_CERT_FILE), as Python does."""
    found = ssl.get_default_verify_paths()
    if found.cafile or not found.capath:
        return [(pycurl.CAINFO, found.cafile or certifi.where())]
    return [(pycurl.CAPATH, found.capath)]


@lru_cache(maxsize=64)
def _proxy(scheme: str, host: str) -> str:
    """The proxy that the environment names for a host, or ""."""
    return "" if proxy_bypass(host) else getproxies().get(scheme, "")


def _renew() -> None:
    """A forked process has clients of its own. Those of its parent are kept, for to end them says so to the servers."""
    global _free
    _of_parent.append(_free)
    _free = deque()


# Clients that nobody uses, the last used at the end.
_free: deque[_Client] = deque()
_of_parent: list[deque[_Client]] = []
os.register_at_fork(after_in_child=_renew)
