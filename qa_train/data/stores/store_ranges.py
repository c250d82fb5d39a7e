"""Ranges of S3's and Google's objects by plain requests (`web_ranges`), a fraction of the CPU time of their libraries.

An S3 address is signed on this machine, after one question for the bucket's region, and used for many ranges; Google's
takes the token of gcsfs, which renews it. Both may ask a server, within the time of a request. Where that is not how
a bucket is read (payment by the requester, keys of the customer ...), its answer says so, and s3fs or gcsfs reads it.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from typing import Any

from qa_train.config import StorageConfig
from qa_train.data.stores import web_ranges
from qa_train.data.stores.web_ranges import Permanent
from qa_train.utils.retry import within

log = logging.getLogger(__name__)
# Half of this time an address is used; keys that expire earlier are refused, and it is signed anew.
_VALID_S = 3600
# So long a token is used; gcsfs renews it five minutes before it expires.
_TOKEN_S = 60.0
# A kilobyte each.
_MOST_KNOWN = 10_000
# Options that an address or a token has in it; others (proxies, certificates, headers) only the libraries follow.
_OPTIONS = {
    "s3": {"key", "secret", "token", "anon", "profile", "endpoint_url", "client_kwargs"},
    "gs": {"token", "project", "access", "endpoint_url"},
}
_CLIENT_OPTIONS = {"endpoint_url", "region_name"}


def read_plainly(
    url: str, offset: int, size: int, cfg: StorageConfig, open_store: Callable[[], tuple[Any, str]]
) -> bytes | None:
    """``size`` bytes at ``offset`` of an object; None: it has to be read in another way.

    ``open_store`` gives the file system of its library (s3fs, gcsfs) and the object's path there.

    Raises:
        OSError: a failure that may pass.
    """
    scheme, _, path = url.partition("://")
    options = cfg.options.get(scheme, {})
    key, bucket = (url, str(options)), (scheme, path.partition("/")[0], str(options))
    if not _has_plain_options(scheme, options) or bucket in _refused:
        return None
    access, until = _known.get(key, (("", {}), 0.0))
    if new := time.monotonic() > until:
        access, valid_s = within(cfg.timeout_s, lambda: _access(scheme, *open_store()))
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = access, time.monotonic() + valid_s
    address, headers = access
    try:
        return web_ranges.read(address, offset, size, cfg, headers)[0]
    except FileNotFoundError:
        return None
    except (Permanent, ssl.SSLError) as error:
        _known.pop(key, None)
        if new:
            _refused.add(bucket)
            log.info("%s://%s is read by its own library, with more CPU time: %s", *bucket[:2], error)
        return None


def _has_plain_options(scheme: str, options: dict[str, Any]) -> bool:
    client = options.get("client_kwargs", {})
    return scheme in _OPTIONS and _OPTIONS[scheme].issuperset(options) and _CLIENT_OPTIONS.issuperset(client)


def _access(scheme: str, fs: Any, path: str) -> tuple[_Access, float]:
    """An object's address and the headers that open it, and for how many seconds they are used."""
    if scheme == "s3":
        return (fs.sign(path, expiration=_VALID_S), {}), _VALID_S / 2
    headers: dict[str, str] = {}
    fs.credentials.apply(headers)
    return (fs.url(path), headers), _TOKEN_S


_Access = tuple[str, dict[str, str]]
# By URL and options: what opens an object, and until when it is used.
_known: dict[tuple[str, str], tuple[_Access, float]] = {}
# Schemes, buckets and options that are not read so.
_refused: set[tuple[str, str, str]] = set()
