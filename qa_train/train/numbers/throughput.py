"""Counts of a step and rates per second."""

from __future__ import annotations

import re
from typing import Any

import torch

from qa_train.config import StageConfig
from qa_train.data.audio.front_end import FRONT_END
from qa_train.model.flops import Regime, Shapes, Work, training_flops
from qa_train.planner.gpus import GPUS


class Throughput:
    """Counts the tokens, the audio and the useful operations of micro-batches, and what a step made of them a second.

    Useful operations are those of real frames, real tokens and supervised rows, once each, without DPO's reference (see
    `qa_train.model.flops`).
    """

    # What `count` counts.
    NAMES = ("tokens", "padded_tokens", "supervised_tokens", "rows", "audio_s", "pairs", "chosen_tokens",
             "useful_flops")  # fmt: skip

    def __init__(self, cfg: StageConfig, model_config: Any, devices: int = 1) -> None:
        """``devices``: how many compute a step together."""
        self._shapes, self._regime = Shapes.of(model_config), Regime.of(cfg.model)
        peak = peak_flops()
        self._peak = None if peak is None else peak * devices

    def count(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """``NAMES`` of one micro-batch, as a tensor."""
        mask, work = batch["attention_mask"], Work.of(batch)
        pairs = 0 if "labels" in batch else len(mask) // 2
        chosen = int(batch["completion_mask"][:pairs, 1:].sum()) if pairs else 0
        if "audio_states" in batch:
            audio_s = batch["audio_states"].shape[0] / FRONT_END.tokens_per_second
        else:
            audio_s = sum(work.segments) / FRONT_END.frames_per_second
        flops = training_flops(self._shapes, work, self._regime).total
        values = [int(mask.sum()), mask.numel(), work.supervised, len(mask), audio_s, pairs, chosen, flops]
        return torch.tensor(values, dtype=torch.float64)

    def rates(self, numbers: dict[str, Any], seconds: float) -> dict[str, float]:
        """Counts of a step and rates per second.

        numbers: ``NAMES`` over all ranks, "skipped" by reason, "data_wait_s", "checkpoint_s".
        """
        if not numbers:
            return {"seconds": seconds}
        rows = numbers["pairs"] or numbers["rows"]
        record = {
            "supervised_tokens": int(numbers["supervised_tokens"]),
            "tokens": int(numbers["tokens"]),
            "samples": int(rows),
            "audio_s": round(numbers["audio_s"], 2),
            "seconds": seconds,
            "data_wait_s": numbers["data_wait_s"],
            "tokens_per_s": numbers["tokens"] / seconds,
            "samples_per_s": rows / seconds,
            "audio_s_per_s": numbers["audio_s"] / seconds,
            "useful_tflops_per_s": numbers["useful_flops"] / seconds / 1e12,
            "skipped_samples": sum(numbers["skipped"].values()),
        }
        record |= {f"skipped/{reason}": n for reason, n in numbers["skipped"].items() if n}
        if self._peak is not None:
            record["useful_mfu"] = numbers["useful_flops"] / seconds / self._peak
        if numbers["checkpoint_s"]:
            # The save after the step before; "seconds" holds it too.
            record["checkpoint_s"] = numbers["checkpoint_s"]
        return record


def peak_flops() -> float | None:
    """The data sheet's bfloat16 rate of this process's GPU, operations per second; None if it is not in the table."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower()
    return next(
        (gpu.bf16_tflops * 1e12 for key, gpu in GPUS.items() if key.partition("-")[0] in re.split(r"[ -]", name)), None
    )
