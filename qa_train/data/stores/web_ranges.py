"""Range requests over http and https with kept connections, and hf:// as what it is: https and a token.

`kept_connections` has the usual answer quickly, urllib3 follows redirects, goes through proxies and knows all of HTTP.
Connections belong to a process: a forked loader worker opens its own. Threads share them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import closing
from functools import lru_cache, partial
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from huggingface_hub import constants, get_token

from qa_train.config import StorageConfig
from qa_train.data.stores import kept_connections
from qa_train.data.stores.kept_connections import Answer, TimedResponse, body, stated_length
from qa_train.utils.masking import masked

SCHEMES = ("http", "https", "hf")
# Connections that are kept to a host.
MAX_CONNECTIONS = 16
_RETRIED_STATUS = (408, 425, 429)
# No byte of the range is in the file.
_PAST_THE_END = 416
_WHOLE = re.compile(r"bytes \*/(\d{1,18})")
# A kilobyte or two each.
_MOST_MOVED = 10_000
# Redirects are followed here; everything else that fails is tried again by the caller.
_REDIRECTS = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=10)
# A file or a folder of the hub, as Hugging Face's own file system writes it.
HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?")


class Permanent(Exception):
    """Trying again would give the same answer."""


class Refused(OSError):
    """A status that may pass; ``headers`` are those of the answer (Retry-After)."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"the server answers {status} {reason}")
        self.headers = headers


# urllib3's own classes, but for the time limit of an answer.
class _Connection(urllib3.connection.HTTPConnection):
    response_class = TimedResponse


class _TlsConnection(urllib3.connection.HTTPSConnection):
    response_class = TimedResponse


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def read(
    url: str, offset: int, size: int, cfg: StorageConfig, more: Mapping[str, str] | None = None
) -> tuple[bytes, int]:
    """One range request: its bytes, fewer where the file ends before, and the size of the whole file (of one that ends
    before the range: at most).

    ``more``: further headers; no other server than that of ``url`` sees an ``Authorization``.

    Raises:
        FileNotFoundError: the server has no such file.
        Permanent: an answer that trying again would not change.
        OSError: any other status, an answer for other bytes, or an incomplete one.
    """
    answer = _answer(url, offset, size, cfg, more or {})
    if answer.status == _PAST_THE_END:
        total = _WHOLE.fullmatch(answer.headers.get("content-range", ""))
        if total and int(total[1]) <= offset:
            return b"", int(total[1])
    if answer.status >= 400:
        _raise(url, answer)
    return answer.body, _checked_range(answer, offset, size)


def _answer(url: str, offset: int, size: int, cfg: StorageConfig, more: Mapping[str, str]) -> Answer:
    """The answer to a range request, after redirects. The hub's lead to a store, for minutes: they are remembered."""
    if not url.startswith("hf://"):
        return _request(url, offset, size, cfg, more)[0]
    options = cfg.options.get("hf", {})
    if url in _moved:
        answer, _ = _request(_moved[url], offset, size, cfg, {})
        if answer.status == 206:
            return answer
        # The store's signature has expired: the hub gives another.
        _moved.pop(url, None)
    token = options.get("token") or get_token()
    address = _hub_address(url, options.get("endpoint") or constants.ENDPOINT)
    _leading_on.add(urlsplit(address).netloc)
    answer, place = _request(address, offset, size, cfg, {"Authorization": f"Bearer {token}"} if token else {})
    if answer.status == 206 and urlsplit(place).netloc not in ("", urlsplit(address).netloc):
        if len(_moved) >= _MOST_MOVED:
            _moved.clear()
        _moved[url] = place
    return answer


def _request(url: str, offset: int, size: int, cfg: StorageConfig, more: Mapping[str, str]) -> tuple[Answer, str]:
    """The answer, and where it came from in the end. ``more``: further headers."""
    place = urlsplit(url)
    scheme, host = place.scheme, place.hostname or ""
    if not _proxy(scheme, host) and place.netloc not in _leading_on:
        answer = kept_connections.ask(url, offset, size, cfg.timeout_s, more)
        if answer is not None:
            return answer, url
        _leading_on.add(place.netloc)
    headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity", **more}
    try:
        response = _connections(os.getpid(), scheme, host).request(
            "GET", url, headers=headers, preload_content=False, timeout=cfg.timeout_s, retries=_REDIRECTS
        )
    except urllib3.exceptions.MaxRetryError as error:
        if isinstance(error.reason, urllib3.exceptions.ResponseError):
            raise Permanent("the server leads from address to address, without end") from None
        # Its own text has the query without a scheme before it, which masking does not recognize.
        raise error.reason or error from None
    except ValueError as error:
        why = f"{type(error).__name__}; expected one of http or https"
        raise Permanent(f"the address, or the one that the server leads to, cannot be asked ({why})") from None
    with closing(response):
        names = {name.lower(): value for name, value in response.headers.items()}
        read = partial(response.read1, decode_content=False)
        found = body(read, stated_length(names, size)) if response.status == 206 else b""
        return Answer(response.status, response.reason or "", names, found), response.geturl() or ""


def _hub_address(url: str, endpoint: str) -> str:
    match = HUB.fullmatch(url)
    assert match is not None, url
    name, revision, path = match.groups()
    return f"{endpoint}/datasets/{name}/resolve/{quote(revision or 'main', safe='')}/{quote(path or '')}"


def _raise(url: str, answer: Answer) -> None:
    status, reason = answer.status, answer.reason
    if status in (404, 410):
        raise FileNotFoundError(f"{masked(url)}: the server answers {status}, no such file")
    if status >= 500 or status in _RETRIED_STATUS:
        raise Refused(status, reason, urllib3.HTTPHeaderDict(answer.headers))
    hint = "; stores return this for unreadable and for missing files" if status == 403 else ""
    if status in (401, 403) and url.startswith("hf://"):
        hint = "; the hub returns this for private and for missing repositories: hf auth login, or set HF_TOKEN"
    elif status in (401, 403) and "?" in url:
        hint += (
            ". The signature has expired, or opens a single file and not the index next to it: sign the "
            "folder, or read s3:// or gs:// with keys in data.storage.options"
        )
    raise Permanent(f"the server answers {status} {reason}{hint}")


def _checked_range(answer: Answer, offset: int, size: int) -> int:
    """Size of the whole file; OSError when the answer is for other bytes than asked."""
    if answer.status != 206:
        raise Permanent(
            f"the server ignores byte ranges (status {answer.status}), as python -m http.server does: use one that "
            "answers them, such as nginx, or copy the shards to a local disk"
        )
    stated = answer.headers.get("content-range", "")
    span, _, total = stated.removeprefix("bytes ").partition("/")
    left = min(size, int(total) - offset) if total.isdecimal() else 0
    if left < 1 or span != f"{offset}-{offset + left - 1}":
        raise OSError(f"asked for bytes {offset}-{offset + size - 1}, the answer is for {stated!r}")
    if len(answer.body) != left:
        raise OSError(f"asked for {size} bytes, the answer has {answer.headers.get('content-length')!r}")
    return int(total)


@lru_cache(maxsize=64)
def _proxy(scheme: str, host: str) -> str:
    """The proxy that the environment names for a host, or ""."""
    return "" if proxy_bypass(host) else getproxies().get(scheme, "")


@lru_cache(maxsize=64)
def _connections(process: int, scheme: str, host: str) -> urllib3.PoolManager:
    """A process's kept connections to a host, through its proxy.

    A forked process must not write into those of its parent. It does not close them either: a thread that did not
    follow may hold their locks.
    """
    if proxy := _proxy(scheme, host):
        # As other tools read "proxy.host:3128".
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        auth = urllib3.util.parse_url(proxy).auth
        headers = urllib3.make_headers(proxy_basic_auth=auth) if auth else None
        found: urllib3.PoolManager = urllib3.ProxyManager(proxy, maxsize=MAX_CONNECTIONS, proxy_headers=headers)
    else:
        found = urllib3.PoolManager(maxsize=MAX_CONNECTIONS)
    found.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return found


# Where the hub's files are for now.
_moved: dict[str, str] = {}
# Servers whose answers `kept_connections` does not know: urllib3 asks them.
_leading_on: set[str] = set()
