"""Counts of a step and rates per second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from qa_train.data.audio.front_end import FRONT_END

if TYPE_CHECKING:
    from qa_train.train.numbers.useful_work import UsefulWork

NAMES = ("tokens", "padded_tokens", "supervised_tokens", "rows", "audio_s", "pairs", "chosen_tokens",
         "useful_flops")  # fmt: skip


def count(batch: dict[str, torch.Tensor], work: UsefulWork) -> torch.Tensor:
    """``NAMES`` of one micro-batch, as a tensor."""
    mask = batch["attention_mask"]
    if "labels" in batch:
        supervised, pairs, chosen = batch["labels"][:, 1:].ne(-100).sum(), 0, 0
    else:
        supervised, pairs = batch["completion_mask"][:, 1:].sum(), mask.shape[0] // 2
        chosen = int(batch["completion_mask"][:pairs, 1:].sum())
    if "audio_states" in batch:
        audio_s = batch["audio_states"].shape[0] / FRONT_END.tokens_per_second
    elif "feature_lengths" in batch:
        audio_s = int(batch["feature_lengths"].sum()) / FRONT_END.frames_per_second
    else:
        audio_s = 0.0
    flops = work.flops(batch, int(supervised))
    values = [int(mask.sum()), mask.numel(), int(supervised), mask.shape[0], audio_s, pairs, chosen, flops]
    return torch.tensor(values, dtype=torch.float64)


def rates(numbers: dict[str, Any], seconds: float, peak: float | None) -> dict[str, float]:
    """Counts of a step and rates per second.

    numbers: ``NAMES`` over all ranks, "skipped" by reason, "data_wait_s", "checkpoint_s"; peak: operations per second
    of all ranks together by the data sheet, if it is known.
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
    if peak is not None:
        record["useful_mfu"] = numbers["useful_flops"] / seconds / peak
    if numbers["checkpoint_s"]:
        # The save after the step before; "seconds" holds it too.
        record["checkpoint_s"] = numbers["checkpoint_s"]
    return record
