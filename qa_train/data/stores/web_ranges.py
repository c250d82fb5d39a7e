"""Range requests over http and https (`http_client`), and hf:// as what it is: https and a token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote, urlsplit

from huggingface_hub import constants, get_token

from qa_train.config import StorageConfig
from qa_train.data.stores import http_client
from qa_train.data.stores.http_client import Answer, Unreachable
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
# A file or a folder of the hub, as Hugging Face's own file system writes it.
HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?")


class Permanent(Exception):
    """Trying again would give the same answer."""


class Refused(OSError):
    """A status that may pass; ``headers`` has the wait that the server asks for, as `retried` looks for it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"the server answers {answer.status} {answer.reason}")
        self.headers = {"Retry-After": answer.headers.get("retry-after", "")}


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
    answer, total = _read(url, offset, size, cfg, more or {})
    return answer.body, total


def version(url: str, cfg: StorageConfig) -> str:
    """What a file that takes the place of this one differs in: its size, and ETag or time of change where the server
    tells one. Raises as `read`.
    """
    answer, total = _read(url, 0, 1, cfg, {})
    return f"{total} {answer.headers.get('etag') or answer.headers.get('last-modified', '')}"


def _read(url: str, offset: int, size: int, cfg: StorageConfig, more: Mapping[str, str]) -> tuple[Answer, int]:
    answer = _answer(url, offset, size, cfg, more)
    if answer.status == _PAST_THE_END:
        total = _WHOLE.fullmatch(answer.headers.get("content-range", ""))
        if total and int(total[1]) <= offset:
            return replace(answer, body=b""), int(total[1])
    if answer.status >= 400:
        _raise(url, answer)
    return answer, _checked_range(answer, offset, size)


def _answer(url: str, offset: int, size: int, cfg: StorageConfig, more: Mapping[str, str]) -> Answer:
    """The answer to a range request, after redirects. The hub's lead to a store, for minutes: they are remembered."""
    if not url.startswith("hf://"):
        return _request(url, offset, size, cfg, more)
    options = cfg.options.get("hf", {})
    if url in _moved:
        answer = _request(_moved[url], offset, size, cfg, {})
        if answer.status == 206:
            return answer
        # The store's signature has expired: the hub gives another.
        _moved.pop(url, None)
    token = options.get("token") or get_token()
    address = _hub_address(url, options.get("endpoint") or constants.ENDPOINT)
    answer = _request(address, offset, size, cfg, {"Authorization": f"Bearer {token}"} if token else {})
    if answer.status == 206 and urlsplit(answer.url).netloc != urlsplit(address).netloc:
        if len(_moved) >= _MOST_MOVED:
            _moved.clear()
        _moved[url] = answer.url
    return answer


def _request(url: str, offset: int, size: int, cfg: StorageConfig, more: Mapping[str, str]) -> Answer:
    try:
        return http_client.ask(url, offset, size, cfg.timeout_s, more)
    except Unreachable as error:
        raise Permanent(str(error)) from None


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
        raise Refused(answer)
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


# Where the hub's files are for now.
_moved: dict[str, str] = {}
