"""Worker processes of a DataLoader: what they need of the system, and a helpful report of what ended them."""

from __future__ import annotations

import contextlib
import re
import resource
import traceback
from collections.abc import Iterator

from torch import Tensor

from qa_train.utils.process import end_with_parent, keep_freed_memory

# Open files of a process that trains, and those more for each batch that waits: one or two a tensor.
_FILES, _FILES_PER_BATCH, _FILES_MOST = 128, 32, 65536

_SHARED_MEMORY = (
    "enlarge /dev/shm (docker --shm-size), or set a lower trainer.dataloader_prefetch_factor or data.num_workers "
    "(0 needs none)"
)
# Signal in torch's message -> the usual cause, and what to do.
_CAUSES = {
    "Killed": "the kernel's out-of-memory killer, or somebody's kill -9: give the job more memory, "
    "or set a lower data.num_workers",
    "Bus error": f"no room in shared memory: {_SHARED_MEMORY}",
    "Segmentation fault": "a native decoder crashed: set data.decode_timeout_s=30 to decode in a process that may die, "
    "and find the file with qa-train data validate",
    "Aborted": "a native library stopped itself: set data.decode_timeout_s=30, and look above for its message",
    "Terminated": "somebody ended the process",
    "Alarm clock": "its time limit",
}


class WorkerDied(RuntimeError):
    """A worker process of the data loader died or does not respond; the message has the cause and the remedy."""


def raise_file_limit(num_workers: int, prefetch_factor: int | None = None) -> None:
    """Let this process open as many files as the system allows it.

    Raises:
        ValueError: that is too few for training with so many workers, each ``prefetch_factor`` batches ahead.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES_MOST if hard == resource.RLIM_INFINITY else min(hard, _FILES_MOST)
    if 0 <= soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    waiting = num_workers * (prefetch_factor or 0)
    needed = _FILES + _FILES_PER_BATCH * waiting
    if most < needed:
        fewer = " and set a lower trainer.dataloader_prefetch_factor or data.num_workers" if waiting else ""
        raise ValueError(
            f"this process may open {most} files, and training with data.num_workers={num_workers} and {waiting} "
            f"batches ahead needs {needed}: raise the limit (ulimit -Hn; LimitNOFILE of a service; --ulimit nofile of "
            f"a container){fewer}"
        )


def begin_worker() -> None:
    """Called in a loader's worker for every batch; the first time does the work."""
    # A worker that reads or decodes would outlive a killed trainer.
    end_with_parent()
    # Waves, frames and mels are large blocks: taken from the kernel and given back for every clip, their pages take
    # longer than the mel itself.
    keep_freed_memory()


def share(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put a worker's batch into shared memory.

    torch would do so in a separate thread, which prints an error and drops the batch, and the trainer would wait for
    it. Here an error reaches the trainer.
    """
    for tensor in batch.values():
        if tensor.numel():
            tensor.share_memory_()
    return batch


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
            "no batch came from the data loader within its timeout: storage stalls, or a decoder hangs. "
            "Check the storage, lower data.storage.timeout_s, or set data.decode_timeout_s=30"
        )
    if re.search(r"</torch_\d.*(?:No space left|Cannot allocate|File too large)", message):
        return f"a batch does not fit into shared memory: {_SHARED_MEMORY}. Training resumes from the last checkpoint"
    if re.search(r"Too many open files|items of ancdata", message):
        return "too many open files: raise the limit (ulimit -n), or set a lower data.num_workers"
    match = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", message)
    if match is None:
        return None
    signal = re.search(r"killed by signal: ([^.]+)\.", message)
    return _account(f" {match[1]}", signal[1].strip() if signal else None)


def _account(which: str, name: str | None) -> str:
    # Without a signal, the parent only knows that the process is gone.
    cause = _CAUSES.get(name or "", "unknown: see the lines above, or run with data.num_workers=0")
    ended = f"was killed by signal {name}" if name else "ended"
    return f"data loader worker{which} {ended}; usual cause: {cause}. Training resumes from the last checkpoint"
