"""Range requests over kept connections, by libcurl (pycurl): redirects, proxies, TLS and time limits are its own.

A clip of 0.2 MB takes three quarters of the CPU time of http.client (docs/lab/data.md). A handle of libcurl is used by
one thread at a time and keeps its connections; those of a process belong to it alone.
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
# A body that is not for the caller is read up to this size, for then the connection can be used again.
_SMALL = 64 << 10
_UNTRUSTED = (pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE)


class Unreachable(ValueError):
    """An address that cannot be asked, or where a server leads to one, or from one to another without end."""


@dataclass(frozen=True)
class Answer:
    """Status, reason, headers by their names in lower case, the body (of status 206 only), and of a whole answer the
    URL that it came from, after redirects.
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
        place = urlsplit(url)
        if not place.hostname:
            raise ValueError("it names no host")
        headers = [_header(*each) for each in ({"Accept-Encoding": "identity"} | dict(more or {})).items()]
        proxy = _proxy(place.scheme, place.hostname)
    except ValueError as error:
        raise Unreachable(f"the address cannot be asked ({error})") from None
    try:
        curl = _free.pop()
    except IndexError:
        curl = _handle()
    lines, parts = list[bytes](), list[bytes]()
    try:
        curl.setopt(pycurl.URL, quote(url, safe=_URL_MARKS, errors="surrogateescape"))
        curl.setopt(pycurl.PROXY, proxy)
        curl.setopt(pycurl.RANGE, f"{offset}-{offset + size - 1}")
        # Never empty: pycurl would keep the earlier ones.
        curl.setopt(pycurl.HTTPHEADER, headers)
        curl.setopt(pycurl.TIMEOUT_MS, max(1, round(1000 * timeout_s)))
        curl.setopt(pycurl.MAXFILESIZE_LARGE, max(size, _SMALL))
        curl.setopt(pycurl.HEADERFUNCTION, lines.append)
        curl.setopt(pycurl.WRITEFUNCTION, parts.append)
        try:
            curl.perform()
        except pycurl.error as error:
            code, said = error.args
            answer = _answer(lines, b"", "")
            # A refusal tells more than what became of its body. Of a body that is too long nothing is read.
            if answer.status < 400 and code != pycurl.E_FILESIZE_EXCEEDED:
                raise _meaning(code, said) from None
            return answer
        return _answer(lines, b"".join(parts), curl.getinfo(pycurl.EFFECTIVE_URL))
    finally:
        # The handle knows the lists until its next request.
        parts.clear()
        _free.append(curl)


def _handle() -> pycurl.Curl:
    curl = pycurl.Curl()
    web = pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS
    for option, value in (
        (pycurl.FOLLOWLOCATION, True),
        (pycurl.MAXREDIRS, 10),
        (pycurl.PROTOCOLS, web),
        (pycurl.REDIR_PROTOCOLS, web),
        (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
        (pycurl.PATH_AS_IS, True),
        # Threads have no signals of their own.
        (pycurl.NOSIGNAL, True),
        (pycurl.BUFFERSIZE, 256 << 10),
        (pycurl.USERAGENT, "qa-train"),
        # Python runs at least once a second, so that Ctrl+C need not wait for the time-out.
        (pycurl.NOPROGRESS, False),
        (pycurl.XFERINFOFUNCTION, lambda *_: None),
        *_trusted(),
    ):
        curl.setopt(option, value)
    return curl


def _answer(lines: list[bytes], body: bytes, url: str) -> Answer:
    """From the lines of all answers' heads: a redirect and a proxy's CONNECT have some before the last."""
    status, reason, headers, ended = 0, "", dict[str, str](), False
    for line in lines:
        text = line.decode("latin-1").strip()
        if text.startswith("HTTP/"):
            _, number, *rest = text.split(" ", 2)
            status, reason, headers, ended = int(number), "".join(rest), {}, False
        elif not ended:
            name, _, value = text.partition(":")
            headers[name.strip().lower()] = value.strip()
        # What follows a chunked body is no header.
        ended = ended or not text
    return Answer(status, reason, headers, body if status == 206 else b"", url)


def _header(name: str, value: str) -> str:
    if "\r" in value or "\n" in value:
        raise ValueError(f"the value of its header {name} has a line break")
    return f"{name}: {value}"


def _meaning(code: int, said: str) -> Exception:
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return TimeoutError("the answer was not complete before the time-out")
    if code == pycurl.E_TOO_MANY_REDIRECTS:
        return Unreachable("the server leads from address to address, without end")
    if code == pycurl.E_URL_MALFORMAT or (code == pycurl.E_UNSUPPORTED_PROTOCOL and said.startswith("Protocol ")):
        return Unreachable(f"the address, or the one that the server leads to, cannot be asked ({said})")
    if said.startswith("Unsupported proxy"):  # and it is said, with its password
        return Unreachable("the proxy that the environment names is no address of one")
    return ssl.SSLError(1, said) if code in _UNTRUSTED else ConnectionError(said)


def _trusted() -> list[tuple[int, str]]:
    """Certificates are checked against those of the system (or SSL_CERT_FILE and SSL_CERT_DIR), as Python does."""
    found = ssl.get_default_verify_paths()
    file = found.cafile or (None if found.capath else certifi.where())
    options = (
        (pycurl.CAINFO, file),
        (pycurl.PROXY_CAINFO, file),
        (pycurl.CAPATH, found.capath),
        (pycurl.PROXY_CAPATH, found.capath),
    )
    return [(option, place) for option, place in options if place]


@lru_cache(maxsize=64)
def _proxy(scheme: str, host: str) -> str:
    """The proxy that the environment names for a host, or ""."""
    return "" if proxy_bypass(host) else getproxies().get(scheme, "")


def _renew() -> None:
    """A forked process has handles of its own. Those of its parent are kept, for to end them says so to the servers."""
    global _free
    _of_parent.append(_free)
    _free = deque()


# Handles that nobody uses, the last used at the end.
_free: deque[pycurl.Curl] = deque()
_of_parent: list[deque[pycurl.Curl]] = []
os.register_at_fork(after_in_child=_renew)
