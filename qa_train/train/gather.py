"""Gathering values of which every rank has its own number."""

from __future__ import annotations

from collections.abc import Callable

import torch


def gather_ragged(gather: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """``gather`` for values [n] of which every rank has its own n: the values of all ranks, one after another.

    TRL gathers the rewards of a batch for its metrics and takes it that all ranks have the same number; batches
    filled to a token budget have not, and gloo aborts (NCCL would hang or mix values up).
    """
    if not values.ndim:
        return gather(values)
    sizes = gather(torch.tensor([len(values)], device=values.device)).tolist()
    longest = max(sizes)
    padded = torch.cat([values, values.new_zeros(longest - len(values), *values.shape[1:])])
    return torch.cat([part[:n] for part, n in zip(gather(padded).split(longest), sizes, strict=True)])
