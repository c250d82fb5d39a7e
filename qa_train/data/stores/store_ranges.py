"""Ranges of S3's and Google's objects by plain requests (`web_ranges`), a fraction of the CPU time of their libraries.

An S3 address is signed on this machine, after one question for the bucket's region, and used for many ranges; Google's
takes the token of gcsfs, which renews it. Both may ask a server, within the time of a request. Where that is not how
a bucket is read (payment by the requester, keys of the customer ...), its answer says so, and s3fs or gcsfs reads it.
"""

from __future__ import annotations

import logging
import ssl
import time
from typing import Any

from qa_train.config import StorageConfig
from qa_train.data.stores import web_ranges
from qa_train.data.stores.web_ranges import Permanent
from qa_train.utils.retry import within

log = logging.getLogger(__name__)
# Half of this time an address is used; keys that expire earlier are refused, and it is signed anew.
_VALID_S = 3600
# So long a token is used; gcsfs renews it five minutes before it expires.
_TOKEN_S = 60
# Options that an address or a token has in it; others (proxies, certificates, headers) only the libraries follow.
_OPTIONS = {
    "s3": {"key", "secret", "token", "anon", "profile", "endpoint_url", "client_kwargs"},
    "gs": {"token", "project", "access", "endpoint_url"},
}
_CLIENT_OPTIONS = {"endpoint_url", "region_name"}


def read_plainly(scheme: str, fs: Any, path: str, offset: int, size: int, cfg: StorageConfig) -> bytes | None:
    """``size`` bytes at ``offset`` of an object of ``fs`` (s3fs, gcsfs); None: it has to be read in another way.

    Raises:
        OSError: a failure that may pass.
    """
    options, bucket = cfg.options.get(scheme, {}), path.partition("/")[0]
    known = scheme in _OPTIONS and {*options} <= _OPTIONS[scheme]
    if not known or not {*options.get("client_kwargs", {})} <= _CLIENT_OPTIONS or (fs, bucket) in _refused:
        return None
    signed = scheme == "s3"
    key = (fs, path if signed else "")
    access, new = _access(key, cfg.timeout_s, signed=signed)
    address, headers = (access, {}) if signed else (fs.url(path), access)
    try:
        return web_ranges.read(address, offset, size, cfg, headers)[0]
    except FileNotFoundError:
        return None
    except (Permanent, ssl.SSLError) as error:
        _known.pop(key, None)
        if new:
            _refused.add((fs, bucket))
            log.info("%s://%s is read by its own library, with more CPU time: %s", scheme, bucket, error)
        return None


def _access(key: tuple[Any, str], timeout_s: float, *, signed: bool) -> tuple[Any, bool]:
    """The signed address of an object, or the headers with the token of a file system; and whether it is new."""
    access, until = _known.get(key, (None, 0.0))
    if time.monotonic() <= until:
        return access, False
    fs, path = key
    access = within(timeout_s, lambda: fs.sign(path, expiration=_VALID_S) if signed else _token(fs))
    _known[key] = access, time.monotonic() + (_VALID_S / 2 if signed else _TOKEN_S)
    return access, True


def _token(fs: Any) -> dict[str, str]:
    headers: dict[str, str] = {}
    fs.credentials.apply(headers)
    return headers


# By file system and path (of a token: none): what opens it, and until when it is used.
_known: dict[tuple[Any, str], tuple[Any, float]] = {}
# Buckets that are not read so.
_refused: set[tuple[Any, str]] = set()
