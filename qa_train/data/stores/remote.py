"""Byte ranges of remote files: time-outs, retries with back-off, and errors that name the URL and the attempts.

http, https and hf are read with range requests (`web_ranges`), s3 and gs too where that is possible (`store_ranges`);
memory, sizes and every listing, through fsspec.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import fsspec

from qa_train.config import StorageConfig
from qa_train.data.stores import web_ranges
from qa_train.data.stores.store_ranges import read_plainly
from qa_train.data.stores.web_ranges import Permanent
from qa_train.utils.masking import masked
from qa_train.utils.retry import Result, retried, within

log = logging.getLogger(__name__)
# One request never asks for more, so that its time-out means a least speed too.
MAX_REQUEST_BYTES = 8 << 20
_LONGEST_WAIT_S = 30.0


# botocore signs addresses by version 2 unless told otherwise, which Amazon's buckets since 2020 and many other stores
# refuse.
_DEFAULTS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"signature_version": "s3v4"}}}


class RemoteError(OSError):
    """A remote file that could not be read; the message names the URL, the bytes and the attempts."""


class RemoteRefused(RemoteError):
    """An answer that trying again would not change, such as 403."""


# A TypeError: a library was given an option that it does not have.
_LASTING = (FileNotFoundError, PermissionError, Permanent, TypeError)


def remote_size(url: str, cfg: StorageConfig) -> int:
    """Size of a remote file in bytes; FileNotFoundError if it does not exist."""
    once = _web_size if _on_the_web(url) else _fsspec_size
    return _retried(url, "size", partial(once, url, cfg), cfg)


def remote_version(url: str, cfg: StorageConfig) -> str:
    """What a file that takes the place of this one differs in: its size, and a mark of its content or the time of its
    change where there is one. FileNotFoundError if it does not exist.
    """
    once = web_ranges.version if _on_the_web(url) else _fsspec_version
    return _retried(url, "version", partial(once, url, cfg), cfg)


def read_range(url: str, offset: int, size: int, cfg: StorageConfig) -> bytes:
    """``size`` bytes at ``offset``; fewer where the file ends before.

    Raises:
        FileNotFoundError: the file does not exist.
        RemoteError: every attempt failed.
    """
    once = _web_range if _on_the_web(url) else _fsspec_range
    parts = []
    for start in range(offset, offset + size, MAX_REQUEST_BYTES):
        length = min(MAX_REQUEST_BYTES, offset + size - start)
        what = f"bytes {start} to {start + length - 1}"
        parts.append(_retried(url, what, partial(once, url, start, length, cfg), cfg))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def remote_names(url: str, cfg: StorageConfig, suffix: str = ".tar") -> list[str]:
    """The files with that suffix that a glob of an object store or the hub matches, or that are below a folder of it;
    sorted URLs.
    """
    return _retried(url, "list of files", partial(_fsspec_names, url, cfg, suffix), cfg)


class RemoteFile(io.RawIOBase):
    """A remote file as a seekable stream; wrap it in io.BufferedReader."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size, self._read, self._at = size, read, 0

    def readable(self) -> bool:
        """True: a file for reading."""
        return True

    def seekable(self) -> bool:
        """True: every read names its range."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to ``offset`` and return the new position, as ``io`` defines it; nothing is read."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``, or its beginning, from the position on; returns the number of bytes, 0 at the end."""
        size = max(0, min(len(buffer), self._size - self._at))
        part = self._read(self._at, size) if size else b""
        if size and not part:
            raise OSError(f"it ends after {self._at} of {self._size} bytes: it was changed while it was read")
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def _retried(url: str, what: str, once: Callable[[], Result], cfg: StorageConfig) -> Result:
    started = time.monotonic()
    what = f"{url}, {what}"
    try:
        return retried(
            once,
            may_pass=lambda error: not isinstance(error, _LASTING),
            attempts=cfg.retries + 1,
            first_wait_s=cfg.first_wait_s,
            longest_wait_s=_LONGEST_WAIT_S,
            what=what,
            tell=log.warning,
        )
    except FileNotFoundError:
        raise
    except _LASTING as error:
        keys = isinstance(error, PermissionError | TypeError)
        hint = " (check the keys, in the environment or data.storage.options)" if keys else ""
        raise RemoteRefused(masked(f"{what}: {error}{hint}")) from error
    except Exception as error:  # every cloud library has its own errors
        spent = f"not read in {cfg.retries + 1} attempts over {time.monotonic() - started:.1f} s"
        hint = "Check the server, or raise data.storage.retries or timeout_s"
        raise RemoteError(masked(f"{what}: {spent}; the last: {type(error).__name__}: {error}. {hint}")) from error


def _on_the_web(url: str) -> bool:
    return url.partition("://")[0] in web_ranges.SCHEMES


def _web_size(url: str, cfg: StorageConfig) -> int:
    return web_ranges.read(url, 0, 1, cfg)[1]


def _web_range(url: str, offset: int, size: int, cfg: StorageConfig) -> bytes:
    return web_ranges.read(url, offset, size, cfg)[0]


def _fsspec_size(url: str, cfg: StorageConfig) -> int:
    fs, path = _filesystem(url, cfg)
    return int(within(cfg.timeout_s, lambda: fs.info(path))["size"])


def _fsspec_version(url: str, cfg: StorageConfig) -> str:
    fs, path = _filesystem(url, cfg)
    info = within(cfg.timeout_s, lambda: fs.info(path))
    # Of s3fs, gcsfs, and fsspec's memory.
    return f"{info['size']} {next((info[name] for name in ('ETag', 'etag', 'created') if name in info), '')}"


def _fsspec_range(url: str, offset: int, size: int, cfg: StorageConfig) -> bytes:
    body = read_plainly(url, offset, size, cfg, partial(_filesystem, url, cfg))
    if body is None:
        fs, path = _filesystem(url, cfg)
        try:
            body = within(cfg.timeout_s, lambda: fs.cat_file(path, start=offset, end=offset + size))
        except Exception as error:
            # How s3fs and gcsfs tell that no byte of the range is in the object.
            if getattr(error, "errno", None) != errno.EINVAL and getattr(error, "code", None) != 416:
                raise
            body = b""
        if len(body) != size and offset + len(body) < _fsspec_size(url, cfg):
            raise OSError(f"the answer has {len(body)} of {size} bytes")
    return bytes(body)


def _fsspec_names(url: str, cfg: StorageConfig, suffix: str) -> list[str]:
    fs, path = _filesystem(url, cfg)
    # Files that came since the last listing of this process count.
    fs.invalidate_cache()
    pattern = any(mark in path for mark in "*[")
    try:
        found = within(cfg.timeout_s, lambda: fs.glob(path) if pattern else fs.find(path))
        if pattern and not found:
            # A glob is silent about a bucket that is not there; the folder was just listed for it.
            folder = re.split(r"[*\[]", path)[0].rpartition("/")[0]
            within(cfg.timeout_s, lambda: fs.ls(folder))
    except FileNotFoundError as error:
        if "bucket does not exist" in str(error):
            raise Permanent(str(error)) from error
        found = []
    names = sorted(str(name).lstrip("/") for name in found if str(name).endswith(suffix))
    return [f"{url.partition('://')[0]}://{name}" for name in names]


def _filesystem(url: str, cfg: StorageConfig) -> tuple[Any, str]:
    scheme, _, path = url.partition("://")
    try:
        options = _DEFAULTS.get(scheme, {}) | cfg.options.get(scheme, {})
        if scheme == "s3" and not _has_endpoint(options.get("profile")):
            # Amazon is asked once for a bucket's own region, for which addresses are signed. Other stores have none to
            # tell, and would be asked again for each address. Options with an endpoint turn it off in s3fs.
            options = {"cache_regions": True} | options
        # fsspec keeps one filesystem per process and options.
        return fsspec.filesystem(scheme, **options), path
    except ImportError as error:
        raise Permanent(f"{error}; install qa-train[cloud] to read {scheme}:// data") from error


def _has_endpoint(profile: str | None) -> bool:
    """Whether the environment or the profile names another store than Amazon's."""
    if any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")):
        return True
    return _profile_has_endpoint(profile or os.environ.get("AWS_PROFILE"))


@lru_cache
def _profile_has_endpoint(profile: str | None) -> bool:
    from botocore.session import Session

    session = Session(profile=profile)
    found = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(found.get("services"), {})
    return bool(found.get("endpoint_url") or services.get("s3", {}).get("endpoint_url"))
