"""How this process was started: by which launcher, as which rank, and what ends it.

A launcher passes environment variables. Stale ones from an earlier session make a run wait for processes that were
never started, or train in another arithmetic than configured.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, MutableMapping

_PR_SET_PDEATHSIG = 1
# What torchrun (accelerate launch is torchrun) and DeepSpeed's launcher set for the ranks that they start.
_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Read by accelerate for the arithmetic -> (values that change nothing, what to give instead).
_ARITHMETIC = {
    "ACCELERATE_MIXED_PRECISION": (("no",), "set trainer.bf16=true (or false)"),
    "ACCELERATE_DYNAMO_BACKEND": (("no",), "set trainer.compile_layers=true (or false)"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "set trainer.batches_per_step"),
    "ACCELERATE_GRADIENT_CLIPPING": (("none",), "set trainer.max_grad_norm"),
    "ACCELERATE_USE_DEEPSPEED": (("false", "0"), "choose deepspeed=zero1, zero2, zero3 or none"),
    "ACCELERATE_USE_FSDP": (("false", "0"), "choose deepspeed=zero3, which cuts the weights too"),
    "ACCELERATE_USE_MEGATRON_LM": (("false", "0"), "choose deepspeed=zero3, which cuts the weights too"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (("false", "0"), "leave the parallelism out"),
    "ACCELERATE_USE_SAGEMAKER": (("false", "0"), "start the processes with torchrun"),
    "ACCELERATE_DOWNCAST_BF16": (("no", "false", "0"), "set trainer.bf16=true (or false)"),
}
# What else they hand over with it; without effect alone.
_COMPANIONS = ("ACCELERATE_DYNAMO_", "ACCELERATE_FP8_", "ACCELERATE_DEEPSPEED_", "ACCELERATE_CONFIG_DS_FIELDS")
# As they were when the process began: accelerate and transformers set some of them themselves.
_INHERITED = dict(os.environ)
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
            f"if nobody starts them: {remedy}",
            file=sys.stderr,
            flush=True,
        )


def check_arithmetic(
    *, bf16: bool, gpu: bool, inherited: Mapping[str, str] = _INHERITED, environ: MutableMapping[str, str] = os.environ
) -> None:
    """Remove variables from ``environ`` that would override the configured arithmetic.

    Args:
        bf16: trainer.bf16.
        gpu: whether this machine has one.
        inherited: the variables as the process found them.
        environ: what the libraries will read.

    Raises:
        ValueError: a variable contradicts the configuration; the message names the key to set.
    """
    harmless = {name: values for name, (values, _) in _ARITHMETIC.items()}
    remedies = {name: remedy for name, (_, remedy) in _ARITHMETIC.items()}
    if bf16:
        harmless["ACCELERATE_MIXED_PRECISION"] = ("no", "bf16")
    if gpu:
        harmless["ACCELERATE_USE_CPU"] = ("false", "0")
        remedies["ACCELERATE_USE_CPU"] = "hide the GPUs: CUDA_VISIBLE_DEVICES="
    for name, values in harmless.items():
        value = inherited.get(name, "")
        if value and value.lower() not in values:
            raise ValueError(
                f"{name}={value} is in the environment (accelerate launch sets it), but not in this configuration: "
                f"{remedies[name]}, and unset it or start with torchrun --nproc-per-node N -m qa_train ..."
            )
    for name in list(environ):
        if name in harmless or name.startswith(_COMPANIONS):
            del environ[name]


def _launcher(environ: Mapping[str, str]) -> bool:
    return any(name in environ for name in _LAUNCHERS)
