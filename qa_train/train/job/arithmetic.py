"""The arithmetic of a run: chosen once by what the device computes fast, and kept by every resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from qa_train.config import StageConfig
from qa_train.model.precision import bfloat16_speed, native_bfloat16
from qa_train.train.job import checkpoints
from qa_train.train.job.distributed import is_main
from qa_train.utils.safe_yaml import read_yaml

logger = logging.getLogger(__name__)


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


def _pinned(folder: Path) -> bool | None:
    """The arithmetic of the run in ``folder``, once it has saved something."""
    path = folder / "config.yaml"
    if not path.is_file() or all(
        checkpoints.problem(each) for each in checkpoints.list_folders(folder / "checkpoints")
    ):
        return None
    trainer: Any = (read_yaml(path) or {}).get("trainer") or {}
    return trainer["bf16"] if isinstance(trainer.get("bf16"), bool) else None
