"""What torch says when a worker of a DataLoader dies, in words that help."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator

# Signal in torch's message -> the usual cause, and what to do.
_CAUSES = {
    "Killed": "the kernel's out-of-memory killer, or somebody's kill -9: give the job more memory, "
    "or set a lower data.num_workers",
    "Bus error": "no room in shared memory (/dev/shm): enlarge it, or set a lower data.num_workers",
    "Segmentation fault": "a native decoder crashed: set data.decode_timeout_s=30 to decode in a process that may die, "
    "and find the file with qa-train data validate",
    "Aborted": "a native library stopped itself: set data.decode_timeout_s=30, and look above for its message",
    "Terminated": "somebody ended the process",
    "Alarm clock": "its time limit",
}


class WorkerDied(RuntimeError):
    """A worker process of the data loader died or no longer answers; the message says why, and what to do."""


@contextlib.contextmanager
def explained_worker_death() -> Iterator[None]:
    """Within, torch's errors about loader workers become WorkerDied. Errors *in* a worker pass unchanged."""
    try:
        yield
    except RuntimeError as error:
        # The signal is often named only by the error that torch's own error was raised from.
        message = explain(" ".join(str(e) for e in (error, error.__cause__, error.__context__) if e is not None))
        if message is None:
            raise
        raise WorkerDied(message) from error
    except (EOFError, ConnectionError) as error:
        # A worker that dies while it hands over a tensor is seen as a closed connection.
        if not any(
            "torch/utils/data/dataloader" in frame.filename for frame in traceback.extract_tb(error.__traceback__)
        ):
            raise
        raise WorkerDied(_account("", None)) from error


def explain(message: str) -> str | None:
    """A clear account of a torch error about a dead or silent worker; None for any other error."""
    if re.search(r"DataLoader timed out after", message):
        return (
            "no batch came from the data loader within its time-out: storage stalls, or a decoder hangs. "
            "Check the storage, lower data.storage.timeout_s, or set data.decode_timeout_s=30"
        )
    match = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", message)
    if match is None:
        return None
    signal = re.search(r"killed by signal: ([^.]+)\.", message)
    return _account(f" {match[1]}", signal[1].strip() if signal else None)


def _account(which: str, name: str | None) -> str:
    # Without a signal, the process is gone, and that is all the parent saw.
    cause = _CAUSES.get(name or "", "unknown: the lines above may say more, or run with data.num_workers=0")
    ended = f"was killed by signal {name}" if name else "ended"
    return f"data loader worker{which} {ended}; usual cause: {cause}. Training resumes from the last checkpoint"
