"""Atomic files: written under another name in the same folder, then renamed; and what storage that fails says."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# The name of a file until it is complete.
PART = ".part"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_STORAGE = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EMFILE, errno.ENFILE}
# The libraries' messages for a failed write; they raise RuntimeError or their own error.
_FULL_WORDS = ("No space left", "Disk quota", "File too large", "PytorchStreamWriter failed", "file write failed",
               "unexpected pos")  # fmt: skip
_OTHER_WORDS = ("Read-only file system", "Input/output error", "Too many open files")
# Also as pathlib shortens it: "s3:/bucket".
_ADDRESS = re.compile(r"(?:s3|gs|gcs|hf|https?|file):/", re.IGNORECASE)
_WORDS = (*_FULL_WORDS, *_OTHER_WORDS)


def local(path: Path | str, key: str = "") -> Path:
    """``path``, which a setting ``key`` names, as a path of this machine.

    Raises:
        ValueError: it is the address of a store, of which pathlib would make a folder "s3:" here.
    """
    if _ADDRESS.match(str(path)):
        where = f"{key} is {path}, which" if key else str(path)
        raise ValueError(f"{where} is no path of this machine: name a folder on a file system, and copy it from there")
    return Path(path)


@contextmanager
def whole(path: Path | str, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path to write to; at the end it becomes ``path``, and after an error it is deleted.

    Args:
        path: the file; an existing one stays until the new one is complete.
        durable: have content and name on disk before returning, so that they survive a power failure.
    """
    path = local(path)
    part = path.with_name(path.name + PART)
    try:
        with named(path):
            yield part
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if durable:
        flush(part)
    part.replace(path)
    if durable:
        flush(path.parent)


@contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Within, an OSError without a file name, as that of a failed write, gets the name of ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path | str, text: str, *, durable: bool = False) -> None:
    """Replace ``path`` by ``text`` in UTF-8; see `whole`."""
    with whole(path, durable=durable) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any, *, durable: bool = False) -> None:
    """Replace ``path`` by the JSON of ``value``, indented; see `whole`."""
    write_text(path, json_text(value, indent=2) + "\n", durable=durable)


def write_json_lines(path: Path | str, rows: Iterable[Any]) -> None:
    """Replace ``path`` by the rows as JSON, one a line; see `whole`."""
    write_text(path, "".join(map(_json_line, rows)))


def append_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Add the rows as JSON, one a line, to the end of a file, and have them on disk before returning."""
    with path.open("ab+") as file:
        if file.tell() and not _ends_a_line(file):
            file.write(b"\n")
        file.writelines(_json_line(row).encode() for row in rows)
        file.flush()
        os.fsync(file.fileno())


def _ends_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_appended(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of such a file; None for a line that is none, such as the one that a killed process was writing."""
    # An answer may hold other line separators (U+2028), which JSON does not escape.
    for line in path.read_bytes().split(b"\n"):
        if line:
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def _json_line(row: Any) -> str:
    return json_text(row) + "\n"


def json_text(value: Any, **form: Any) -> str:
    """The JSON of ``value`` to be written in UTF-8; ``form``: as for `json.dumps`.

    Letters are written as they are, unless a text cannot be UTF-8: the name of a file from a system of another encoding
    holds half of surrogate pairs, which only escapes keep.
    """
    text = json.dumps(value, ensure_ascii=False, **form)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, **form)
    return text


def flush(path: Path) -> None:
    """Have a file, or a folder's list of names, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def complaint(error: BaseException) -> str | None:
    """What the storage complains about in this error, in one line; None if it is about something else."""
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return error.strerror or str(error)
    return next((line for line in str(error).splitlines() if any(word in line for word in _WORDS)), None)


def is_full(complaint: str) -> bool:
    """Whether it is about room, so that more of it helps."""
    return any(word in complaint for word in _FULL_WORDS) and not any(word in complaint for word in _OTHER_WORDS)
