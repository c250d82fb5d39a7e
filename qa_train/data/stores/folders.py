"""Folders that shards are written to: local ones, or of an object store (``s3://bucket/set``, ``gs://``).

A path of a store has the methods of pathlib.Path (universal_pathlib), but is none: that tells them from one another.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from qa_train.config import StorageConfig
from qa_train.utils import atomic
from qa_train.utils.masking import masked
from qa_train.utils.retry import retried

log = logging.getLogger(__name__)
# Schemes of stores, which list their files and can be written to.
STORES = ("s3", "gs", "memory")
_ATTEMPTS = 5


def open_folder(place: str, storage: StorageConfig | None = None) -> Path:
    """The folder at a path or URL; ``storage``: the options of its store, which is asked once whether it is there.

    Raises:
        ValueError: a URL that nothing can be written to, a store whose package is missing, or that refuses.
    """
    folder = _folder(place, storage)
    if not isinstance(folder, Path):
        try:
            folder.fs.ls(folder.path)
        except PermissionError:
            # Keys may be for writing alone.
            pass
        except FileNotFoundError as error:
            # A folder that is not there yet will be.
            if "bucket does not exist" in str(error):
                raise ValueError(f"{masked(place)}: {error}") from error
        except Exception as error:  # every cloud library has its own errors
            told = f"{place}: {type(error).__name__}: {error} (keys and options: the environment, or storage.options)"
            raise ValueError(masked(told)) from error
    return folder


def _folder(place: str, storage: StorageConfig | None) -> Path:
    if "://" not in place:
        return Path(place).expanduser()
    scheme = place.partition("://")[0]
    if not writable(place):
        raise ValueError(f"{masked(place)}: shards are written to a folder, s3:// or gs://, not to {scheme}://")
    # Loads a second's worth of modules, for stores alone.
    from upath import UPath

    options = (storage or StorageConfig()).options.get(scheme, {})
    try:
        # What other nodes wrote must be seen.
        folder: Any = UPath(place, **{"use_listings_cache": False, **options})
        folder.fs  # noqa: B018 (opens the store)
    except ImportError as error:
        raise ValueError(f"{error}; install qa-train[cloud] to write to {scheme}://") from error
    return cast(Path, folder)


def writable(place: str) -> bool:
    """Whether files can be written there, as far as the address tells."""
    return "://" not in place or place.partition("://")[0] in STORES


@contextmanager
def written(place: str, storage: StorageConfig | None = None) -> Iterator[Path]:
    """Yield a local path to write to; at the end it becomes the file at ``place``, a path or an address, whole.

    Raises:
        ValueError: an address that nothing can be written to (`open_folder`), before anything is written.
    """
    if "://" not in place:
        with atomic.whole(place) as part:
            yield part
        return
    parent, _, name = place.rpartition("/")
    folder = _folder(parent, storage)
    with tempfile.TemporaryDirectory() as scratch:
        yield (part := Path(scratch) / name)
        publish(part, folder)


def companion(path: Path, suffix: str) -> Path:
    """``path`` with more at the end of its name."""
    return path.with_name(path.name + suffix)


def publish(file: Path, folder: Path) -> None:
    """Move a local file into a folder, in place of one of the same name; there it appears whole.

    A local folder must be on the file system of ``file``.
    """
    if isinstance(folder, Path):
        file.replace(folder / file.name)
        return
    target: Any = folder / file.name
    retried(
        partial(target.fs.put_file, str(file), target.path),
        may_pass=lambda error: not isinstance(error, PermissionError | FileNotFoundError),
        attempts=_ATTEMPTS,
        first_wait_s=1.0,
        longest_wait_s=30.0,
        what=f"{target}, upload",
        tell=log.warning,
    )
    file.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace a file by ``text`` in UTF-8; it appears whole."""
    if isinstance(path, Path):
        atomic.write_text(path, text)
    else:
        path.write_text(text, encoding="utf-8")
