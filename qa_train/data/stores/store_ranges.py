"""Ranges of S3's and Google's objects by plain requests (`web_ranges`), a fraction of the CPU time of their libraries.

An S3 address is signed on this machine, without a request, and used for many ranges; Google's takes the token of gcsfs,
which renews it. Where that is not how a bucket is read (payment by the requester, keys of the customer ...), its answer
says so, and s3fs or gcsfs reads it.
"""

from __future__ import annotations

import logging
import ssl
import time
from typing import Any

from qa_train.config import StorageConfig
from qa_train.data.stores import web_ranges
from qa_train.data.stores.web_ranges import Permanent

log = logging.getLogger(__name__)
# Half of this time an address is used; keys that expire earlier are refused, and it is signed anew.
_VALID_S = 3600
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
    headers: dict[str, str] = {}
    if scheme == "s3":
        address, new = _signed_address(fs, path)
    else:
        address, new = fs.url(path), True
        fs.credentials.apply(headers)
    try:
        return web_ranges.read(address, offset, size, cfg, headers)[0]
    except FileNotFoundError:
        return None
    except (Permanent, ssl.SSLError) as error:
        _signed.pop((fs, path), None)
        if new:
            _refused.add((fs, bucket))
            log.info("%s://%s is read by its own library, with more CPU time: %s", scheme, bucket, error)
        return None


def _signed_address(fs: Any, path: str) -> tuple[str, bool]:
    """The address of an object, and whether it is new."""
    address, until = _signed.get((fs, path), ("", 0.0))
    if time.monotonic() <= until:
        return address, False
    address = fs.sign(path, expiration=_VALID_S)
    _signed[fs, path] = address, time.monotonic() + _VALID_S / 2
    return address, True


# By file system and path: address, and until when it is used.
_signed: dict[tuple[Any, str], tuple[str, float]] = {}
# Buckets that are not read so.
_refused: set[tuple[Any, str]] = set()
