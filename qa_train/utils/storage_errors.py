"""Storage that fails, however a library says it."""

from __future__ import annotations

import errno

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_STORAGE = FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EMFILE, errno.ENFILE}
# The libraries' messages for a failed write; they raise RuntimeError or their own error.
_FULL_WORDS = ("No space left", "Disk quota", "File too large", "PytorchStreamWriter failed", "file write failed",
               "unexpected pos")  # fmt: skip
_WORDS = (*_FULL_WORDS, "Read-only file system", "Input/output error", "Too many open files")


def complaint(error: BaseException) -> str | None:
    """What the storage complains about in this error, in one line; None if it is about something else."""
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return error.strerror or str(error)
    return str(error).splitlines()[0] if any(word in str(error) for word in _WORDS) else None


def is_full(complaint: str) -> bool:
    """Whether it is about room, so that more of it helps."""
    return any(word in complaint for word in _FULL_WORDS)
