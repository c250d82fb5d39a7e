"""Ranges of S3 objects by signed addresses: plain requests (`web_ranges`), a seventh of the CPU time of s3fs's own.

An address is signed on this machine, without a request, and used for many ranges. Where that is not how a bucket is
read (another region, payment by the requester, keys of the customer ...), its answer says so, and s3fs reads it.
"""

from __future__ import annotations

import ssl
import time
from typing import Any

from qa_train.config import StorageConfig
from qa_train.data.stores import web_ranges
from qa_train.data.stores.web_ranges import Permanent

# Half of this time an address is used; keys that expire earlier are refused, and it is signed anew.
_VALID_S = 3600
# Options that an address has in it; others (proxies, certificates, headers) only s3fs follows.
_OPTIONS = {"key", "secret", "token", "anon", "profile", "endpoint_url", "client_kwargs"}
_CLIENT_OPTIONS = {"endpoint_url", "region_name"}


def read_signed(fs: Any, path: str, offset: int, size: int, cfg: StorageConfig) -> bytes | None:
    """``size`` bytes at ``offset`` of an object of ``fs`` (s3fs); None: it has to be read in another way.

    Raises:
        OSError: a failure that may pass.
    """
    options, bucket = cfg.options.get("s3", {}), path.partition("/")[0]
    known = {*options} <= _OPTIONS and {*options.get("client_kwargs", {})} <= _CLIENT_OPTIONS
    if not known or (fs, bucket) in _refused:
        return None
    address, until = _signed.get((fs, path), ("", 0.0))
    new = time.monotonic() > until
    if new:
        address = fs.sign(path, expiration=_VALID_S)
        _signed[fs, path] = address, time.monotonic() + _VALID_S / 2
    try:
        return web_ranges.read(address, offset, size, cfg)[0]
    except FileNotFoundError:
        return None
    except (Permanent, ssl.SSLError):
        _signed.pop((fs, path), None)
        if new:
            _refused.add((fs, bucket))
        return None


# By file system and path: address, and until when it is used.
_signed: dict[tuple[Any, str], tuple[str, float]] = {}
# Buckets that are not read so.
_refused: set[tuple[Any, str]] = set()
