"""What of a batch on a GPU is also on the CPU, and the way from one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class OnCpu:
    """Copies on the CPU of a batch that is on a GPU: places are found in them, so that no kernel is waited for.

    Not a mapping or a tensor, so that trainers and wrappers of the model leave it where it is.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    feature_lengths: torch.Tensor | None = None
    completion_mask: torch.Tensor | None = None

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor]) -> OnCpu:
        """What a batch that is still on the CPU has of them."""
        return cls(**{name: batch[name] for name in cls.__dataclass_fields__ if name in batch})


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Small ``values`` of the CPU on ``device``; a GPU is not waited for, which needs pinned memory."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device, non_blocking=True)
    return values.pin_memory().to(device, non_blocking=True)
