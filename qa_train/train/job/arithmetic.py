"""The arithmetic of a run: chosen once by what the device computes fast, and kept by every resume."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch

from qa_train.config import StageConfig
from qa_train.model.precision import bfloat16_speed, native_bfloat16
from qa_train.train.job import checkpoints
from qa_train.train.job.distributed import is_main
from qa_train.train.job.run import read_run_file
from qa_train.utils.process import INHERITED

logger = logging.getLogger(__name__)

# Read by accelerate for the arithmetic -> (values that change nothing, what to give instead).
_ARITHMETIC = {
    "ACCELERATE_MIXED_PRECISION": (("no",), "set trainer.bf16=true (or false)"),
    "ACCELERATE_DYNAMO_BACKEND": (("no",), "set trainer.compile_layers=true (or false)"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "set trainer.batches_per_step"),
    "ACCELERATE_GRADIENT_CLIPPING": (("none",), "set trainer.max_grad_norm"),
    "ACCELERATE_USE_DEEPSPEED": (("false", "0"), "choose deepspeed=zero1, zero2, zero3 or none"),
    "ACCELERATE_USE_FSDP": (("false", "0"), "choose deepspeed=zero3, which cuts the weights too"),
    "ACCELERATE_USE_MEGATRON_LM": (("false", "0"), "choose deepspeed=zero3, which cuts the weights too"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (("false", "0"), "remove the parallelism"),
    "ACCELERATE_USE_SAGEMAKER": (("false", "0"), "start the processes with torchrun"),
    "ACCELERATE_DOWNCAST_BF16": (("no", "false", "0"), "set trainer.bf16=true (or false)"),
}
# What else they hand over with it; without effect alone.
_COMPANIONS = ("ACCELERATE_DYNAMO_", "ACCELERATE_FP8_", "ACCELERATE_DEEPSPEED_", "ACCELERATE_CONFIG_DS_FIELDS")


def settle(cfg: StageConfig) -> None:
    """Turn ``trainer.bf16: auto`` into true or false, and warn where bfloat16 is slow.

    A run that has a checkpoint goes on in its own arithmetic, wherever it is resumed.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    pinned = _pinned(Path(cfg.run.dir))
    resumed = cfg.trainer.bf16 == "auto" and pinned is not None
    if cfg.trainer.bf16 == "auto":
        cfg.trainer.bf16 = native_bfloat16(kind) if pinned is None else pinned
    half = cfg.trainer.bf16 or cfg.model.dtype == "bfloat16"
    if half and kind == "cpu" and is_main() and not native_bfloat16("cpu"):
        times = f"{1 / bfloat16_speed():.0f} times slower than in float32 (measured)"
        if resumed:
            run, remedy = f"{cfg.run.dir} was trained in bfloat16 and continues in it", "trainer.bf16=false for float32"
        else:
            remedy = "trainer.bf16=auto" + (" model.dtype=float32" if cfg.model.dtype == "bfloat16" else "")
            run = "this run computes in bfloat16"
        logger.warning("%s. This CPU multiplies it in software, %s: set %s", run, times, remedy)


def check_arithmetic(
    *, bf16: bool, gpu: bool, inherited: Mapping[str, str] = INHERITED, environ: MutableMapping[str, str] = os.environ
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


def _pinned(folder: Path) -> bool | None:
    """The arithmetic of the run in ``folder``, once it has saved something."""
    path = folder / "config.yaml"
    if not path.is_file() or all(
        checkpoints.problem(each) for each in checkpoints.list_folders(folder / "checkpoints")
    ):
        return None
    trainer: Any = read_run_file(path, dict).get("trainer") or {}
    return trainer["bf16"] if isinstance(trainer.get("bf16"), bool) else None
