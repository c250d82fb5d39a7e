"""The options of `qa-train plan STAGE`, separate from the planner so that reading them needs no model code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class PlanConfig:
    """Options of `qa-train plan STAGE`."""

    # GPU model: h200, h100, b200, a100-80, a100-40, l40s, a6000, 5090, 4090, 3090 or l4.
    gpu: str = "h100"
    # Number of GPUs on all machines together.
    gpus: int = 8
    # ZeRO stage 1, 2 or 3; 0: plain training; null: as in the configuration.
    zero: int | None = None
    # To host memory: optimizer (its states) or all (the weights too, with ZeRO-3).
    offload: str | None = None
    # Share of the card's bfloat16 peak that useful and recomputed operations reach, communication included.
    mfu: float | None = None
    # One or two run folders, measured=[runs/a,runs/b]: step time is predicted from theirs, for the same machine and
    # number of processes. Two with different data.tokens_per_batch give a better prediction.
    measured: Any = None
    # Instead of one run, compare the stage's experiments on these GPUs: which fit, and how many steps these hours
    # allow.
    budget_hours: float | None = None
    # Price of one GPU for one hour, in any currency.
    price: float | None = None
    # Average seconds of audio per sample, used if the shards are not available.
    clip_s: float = 10.0
    # Average text tokens per sample, all turns together, used if the shards are not available.
    text_tokens: int = 50
    # Average answer tokens per sample, used if the shards are not available.
    answer_tokens: int = 20
    # Hours of audio of each source, e.g. hours.asr=20000: for epochs, and for mixtures by temperature or epochs.
    hours: dict[str, float] = field(default_factory=dict)
    # Also write the estimate to this file.
    json: str | None = None
