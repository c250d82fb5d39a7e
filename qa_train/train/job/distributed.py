"""Processes, devices and DeepSpeed: what has to be settled before a trainer is built."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

from qa_train.config import DeepspeedConfig, TrainerConfig

T = TypeVar("T")

# Of ranks for rank 0: hundreds of gigabytes are read, or written again, over a network.
_PATIENCE = timedelta(days=1)
# Every rank counts alike.
_works = itertools.count()


def world_size() -> int:
    """Number of training processes, as torchrun or SLURM announced it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process is rank 0."""
    return int(os.environ.get("RANK", 0)) == 0


def have_met() -> bool:
    """Whether this is one of several processes that can reach each other."""
    return world_size() > 1 and torch.distributed.is_available() and torch.distributed.is_initialized()


def from_main(value: Any) -> Any:
    """Rank 0's ``value`` on every rank; a collective call when several processes have met."""
    if not have_met():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def by_main(work: Callable[[], T]) -> T:
    """What ``work()`` gives on rank 0, on every rank, however long it takes there; a collective call.

    In a collective call of the run's own group the others would give up after trainer.ddp_timeout, so they wait for a
    note in the store by which the ranks have met.

    Raises:
        ValueError, OSError, RuntimeError: what ``work()`` raises on rank 0; on the others the same, or, where it cannot
            be sent, its words under the kind's name.
    """
    if not have_met():
        return work()
    store, done = torch.distributed.distributed_c10d._get_default_store(), f"qa_train/by_main/{next(_works)}"
    value: Any = None
    problem: ValueError | OSError | RuntimeError | None = None
    if is_main():
        try:
            value = work()
        except (ValueError, OSError, RuntimeError) as error:
            problem = error
        store.set(done, "")
    else:
        store.wait([done], _PATIENCE)
    found, sent = from_main((value, problem and _sendable(problem)))
    if sent is not None:
        raise problem or sent
    result: T = found
    return result


def _sendable(error: ValueError | OSError | RuntimeError) -> Exception:
    """The error, if another process can make the same of its arguments alone, else its words as its kind's."""
    kind = next(kind for kind in (ValueError, OSError, RuntimeError) if isinstance(error, kind))
    # A constructor of its own may refuse the arguments, or make another message of them.
    known = type(error).__init__ is kind.__init__ or type(error).__module__ == "builtins"
    plain = known and not vars(error) and all(isinstance(arg, str | int) for arg in error.args)
    return error if plain else kind(str(error))


def accumulation_steps(cfg: TrainerConfig) -> int:
    """Micro-batches each rank runs per optimizer step.

    Raises:
        ValueError: the step's batches cannot be shared equally among the ranks.
    """
    if cfg.batches_per_step % world_size():
        raise ValueError(
            f"trainer.batches_per_step is {cfg.batches_per_step} and cannot be shared by {world_size()} processes: "
            f"use a multiple of {world_size()} (the step then holds the same batches at any world size)"
        )
    return cfg.batches_per_step // world_size()


def whole(*weights: torch.Tensor) -> AbstractContextManager[Any]:
    """A context that gathers weights sharded by ZeRO-3: a collective call. No effect on other weights."""
    sharded = [weight for weight in weights if hasattr(weight, "ds_id")]
    if not sharded:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(sharded)
    return gathered


def name_accelerator() -> None:
    """Before anything imports DeepSpeed, as saving a model does: else it warns that it finds no GPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def optimizer_layout(cfg: DeepspeedConfig) -> str:
    """How a checkpoint holds the optimizer's state: whole, or cut so that only the same shape of run can read it."""
    if not cfg.config:
        return "whole"
    return f"cut by DeepSpeed ZeRO-{cfg.zero_stage} for {world_size()} process(es)"


def deepspeed_options(cfg: DeepspeedConfig) -> dict[str, Any] | None:
    """The dictionary for TrainingArguments(deepspeed=...), or None.

    Without a GPU it also prepares DeepSpeed and accelerate for CPU processes over gloo.

    Raises:
        ValueError: DeepSpeed is asked for and not installed.
    """
    if not cfg.config:
        return None
    if find_spec("deepspeed") is None:
        raise ValueError("deepspeed is not installed: pip install 'qa-train[deepspeed]', or set deepspeed=none")
    # It calls functions of torch by names that torch is about to drop.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\..*is deprecated", category=FutureWarning)
    _announce_a_single_process()
    if not torch.cuda.is_available():
        _prepare_deepspeed_on_cpu()
    _check_zero_keys(cfg.zero)
    return cfg.config


def join_zero_parts() -> None:
    """DeepSpeed's converter to the universal form, as a program: reads its options from sys.argv.

    Its own program would unpickle whatever the files hold.
    """
    from deepspeed.checkpoint import ds_to_universal

    from qa_train.train.job.states import plain_states_only

    # Its workers must inherit what may be unpickled.
    multiprocessing.set_start_method("fork")
    plain_states_only()
    ds_to_universal.main(ds_to_universal.parse_arguments())


def weights_in_zero_parts(folder: Path) -> dict[str, Any]:
    """The weights of a ZeRO-3 checkpoint, mapped from its parts; ``contiguous()`` joins one of them, in float32."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from qa_train.train.job.states import plain_states_only

    # It would unpickle whatever the files hold.
    plain_states_only()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        found: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(str(folder), lazy_mode=True)
    return found


def _announce_a_single_process() -> None:
    """Tell DeepSpeed about a run without torchrun; it would look for MPI otherwise."""
    if "RANK" in os.environ:
        return
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _check_zero_keys(zero: dict[str, Any]) -> None:
    """DeepSpeed's own class judges names and types of the ZeRO settings.

    Raises:
        ValueError: an unknown name or a wrong type, in DeepSpeed's words.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**zero)
    except ValueError as error:
        raise ValueError(f"deepspeed.config.zero_optimization is refused by DeepSpeed: {error}") from error


def _prepare_deepspeed_on_cpu() -> None:
    """Let DeepSpeed train over gloo, which accelerate 1.15 does not foresee.

    accelerate's PartialState finds no backend for CPU processes under DeepSpeed and falls back to a
    world of one; the wrapper answers gloo. DeepSpeed would compile a shared-memory op that only its
    inference all-reduce uses; it is declared unavailable. Neither has an effect with CUDA.
    """
    import deepspeed
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from transformers import training_args

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    training_args.is_torch_bf16_gpu_available = lambda: True
    original = PartialState._prepare_backend
    if getattr(original, "knows_gloo", False):
        return

    def prepare_backend(self: Any, cpu: bool, sagemaker_dp: bool, backend: str | None) -> tuple[Any, Any]:
        found, kind = original(self, cpu, sagemaker_dp, backend)
        if found is None and "LOCAL_RANK" in os.environ:
            return "gloo", DistributedType.MULTI_CPU
        return found, kind

    prepare_backend.knows_gloo = True  # type: ignore[attr-defined]
    PartialState._prepare_backend = prepare_backend
