"""Augmentation of cached encoder outputs, as a pure function of seed, epoch and clip."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from torch import Tensor

MAX_SPAN = 8


def mask_spans(states: Tensor, share: float, key: tuple[int, int, str]) -> Tensor:
    """Set about ``share`` of the audio tokens of ``states`` [T, D] to zero, in spans of 1 to 8 tokens.

    The spans depend on ``key`` (seed, epoch, clip) alone, so that a resumed run masks the same ones.
    """
    if share <= 0 or not len(states):
        return states
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    spans = rng.poisson(share * len(states) / ((1 + MAX_SPAN) / 2))
    masked = states.clone()
    for start, width in zip(rng.integers(0, len(states), spans), rng.integers(1, MAX_SPAN + 1, spans), strict=True):
        masked[start : start + width] = 0.0
    return masked
