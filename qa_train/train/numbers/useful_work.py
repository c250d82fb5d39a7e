"""The useful operations of a micro-batch, and the rate that the data sheet of this GPU promises."""

from __future__ import annotations

import re
from typing import Any

import torch

from qa_train.config import StageConfig
from qa_train.model.flops import Regime, Shapes, Work, training_flops
from qa_train.planner.gpus import GPUS


class UsefulWork:
    """Useful floating-point operations of micro-batches: real frames, real tokens, supervised rows, once each."""

    def __init__(self, cfg: StageConfig, model_config: Any) -> None:
        """The trained parts and the sizes of the model."""
        self._shapes, self._regime = Shapes.of(model_config), Regime.of(cfg.model)

    def flops(self, batch: dict[str, torch.Tensor], supervised: int) -> float:
        """Those of one micro-batch (see ``qa_train.model.flops``); without DPO's reference."""
        segments = batch["feature_lengths"].tolist() if "feature_lengths" in batch else []
        documents = [n for n in batch["attention_mask"].sum(1).tolist() if n]
        return training_flops(self._shapes, Work(segments, documents, supervised), self._regime).total


def peak_flops() -> float | None:
    """The data sheet's bfloat16 rate of this process's GPU, operations per second; None if it is not in the table."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower()
    return next(
        (gpu.bf16_tflops * 1e12 for key, gpu in GPUS.items() if key.partition("-")[0] in re.split(r"[ -]", name)), None
    )
