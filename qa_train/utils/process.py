"""The process itself: who started it, what ends it, how it gets memory, and the compiler that kernels need on a GPU.

A launcher passes environment variables. Stale ones from an earlier session make a run wait for processes that were
never started, or train in another arithmetic than configured.
"""

from __future__ import annotations

import ctypes
import io
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Mapping, MutableMapping
from functools import cache
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# What torchrun (accelerate launch is torchrun) and DeepSpeed's launcher set for the ranks that they start.
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# As they were when the process began: accelerate and transformers set some of them themselves.
INHERITED = dict(os.environ)
# mallopt(3): parameters of glibc's malloc.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# The largest that glibc takes (HEAP_MAX_SIZE / 2 on 64 bits), and the largest int.
_LARGEST_KEPT, _NEVER = 32 * 2**20, 2**31 - 1
# Torch (2.10 to 2.13) reads the first; the others are its older names.
_TORCH_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
# What to do where `missing_compiler` finds something missing.
COMPILER_REMEDY = "apt-get install gcc libc6-dev python3-dev, or point CC to a C compiler"
_bound = 0


def end_with_parent() -> None:
    """From now on the kernel kills this process (SIGKILL) when the thread that started it ends.

    This works whatever the process is doing: a rank that waits in a collective would never act on a request. Call it
    soon after the start: a parent that has already died is not noticed. Linux only (prctl(2), PR_SET_PDEATHSIG); no
    effect elsewhere.
    """
    global _bound
    if sys.platform != "linux" or _bound == os.getpid():
        return
    parent = os.getppid()
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        return  # a sandbox that forbids it
    _bound = os.getpid()
    if os.getppid() != parent:
        os._exit(1)  # it died between the two calls, and no signal will come


def end_with_launcher(environ: Mapping[str, str] = os.environ) -> None:
    """`end_with_parent` for a rank that a launcher started; a run that a shell started may outlive it (nohup)."""
    if _launcher(environ):
        end_with_parent()


def without_local_rank(words: list[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """The command line without the ``--local_rank=N`` that DeepSpeed's launcher adds to it."""
    rank = environ.get("LOCAL_RANK")
    return [word for word in words if rank is None or word not in (f"--local_rank={rank}", f"--local-rank={rank}")]


def is_first_rank(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is rank 0, or alone, as far as its environment tells: before torch is loaded."""
    return environ.get("RANK") in (None, "", "0")


def check_ranks_announced(environ: Mapping[str, str] = os.environ, *, local: bool = True) -> None:
    """Check that the variables that make this process a rank are complete; warn when it may wait for others.

    Args:
        environ: the environment.
        local: whether LOCAL_RANK belongs to them; without it accelerate would train in every process alone.

    Raises:
        ValueError: some are missing or impossible: left over from another session, or set by hand.
    """
    there = {name: environ[name] for name in _RANKS if environ.get(name)}
    if not set(there) & {"RANK", "LOCAL_RANK", "WORLD_SIZE"}:
        return
    told = ", ".join(f"{name}={value}" for name, value in there.items())
    remedy = f"unset {' '.join(there)}, or start the processes with torchrun --nproc-per-node N -m qa_train ..."
    try:
        rank, world = int(there.get("RANK", "0")), int(there.get("WORLD_SIZE", "1"))
        local_rank = int(there.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise ValueError(f"the environment has {told}, which are not numbers: {remedy}") from error
    missing = [name for name in _RANKS if name not in there and (local or name != "LOCAL_RANK")]
    # One process needs no partner, whatever is missing, if it is the first.
    if (missing and (world, rank, local_rank) != (1, 0, 0)) or not 0 <= rank < world or local_rank < 0:
        fault = f"but not {', '.join(missing)}" if missing else f"and rank {rank} of {world} does not exist"
        raise ValueError(f"the environment has {told} {fault}: left over from another session? {remedy}")
    if world > 1 and not _launcher(environ):
        print(
            f"rank {rank} of {world}, according to the environment ({told}), waits for the other {world - 1}; "
            f"if they are not started: {remedy}",
            file=sys.stderr,
            flush=True,
        )


def _launcher(environ: Mapping[str, str]) -> bool:
    return any(name in environ for name in _LAUNCHERS)


def print_any_name() -> None:
    """Print names that are not UTF-8, as files of another system may have, with escapes, as Python does on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def no_bars_in_logs(environ: MutableMapping[str, str] = os.environ) -> None:
    """Progress bars of the Hugging Face libraries on a terminal only: half lines would fill a log file."""
    if not sys.stderr.isatty():
        environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def expand_segments(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let torch's allocator grow segments on a GPU, unless the user has set it up. Call it before torch is imported.

    Every batch has other lengths, and blocks of fixed size then keep pieces that no tensor fits into: replayed for
    four 7B recipes, the allocator reserved 11 to 23 % more than was used without this (and one ran out of memory), and
    1 to 9 % with it.
    """
    if not any(environ.get(name) for name in _TORCH_SETTINGS):
        environ[_TORCH_SETTINGS[0]] = "expandable_segments:True"


@cache
def keep_freed_memory() -> bool:
    """Let glibc reuse freed blocks of up to 32 MiB instead of returning each to the kernel. Whether it does.

    By default a large tensor is a separate mapping: each operation asks the kernel for zeroed pages and gives them
    back. A training step of the quickstart takes 10 % less CPU time without that. The process then keeps the peak
    memory of such blocks. Other C libraries have no ``mallopt``: no effect there.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST_KEPT), (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, 2 * _LARGEST_KEPT))
    taken = [mallopt(name, value) for name, value in wanted]
    return all(taken)


def missing_compiler(environ: Mapping[str, str] = os.environ) -> str | None:
    """What Triton would not find here, or None: ``CC``, gcc or clang, and the headers of this Python.

    On a GPU it compiles a small C file against Python.h for every kernel (triton/runtime/build.py).
    """
    asked = environ.get("CC")
    if shutil.which(asked or "gcc") is None and (asked or shutil.which("clang") is None):
        return f"there is no {asked} (CC)" if asked else "there is neither gcc nor clang"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.is_file() else f"there is no {header}"
