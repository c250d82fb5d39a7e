"""What a step holds, and what that means per second."""

from __future__ import annotations

import torch

# 100 mel frames are one second (hop 160 at 16 kHz), 25 audio tokens are one second.
_FRAMES_PER_SECOND = 100
_AUDIO_TOKENS_PER_SECOND = 25


def count(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Tokens, padded tokens, supervised tokens, rows, audio seconds, pairs of one micro-batch and a 0, as a tensor."""
    mask = batch["attention_mask"]
    if "labels" in batch:
        supervised, pairs = batch["labels"][:, 1:].ne(-100).sum(), 0
    else:
        supervised, pairs = batch["completion_mask"][:, 1:].sum(), mask.shape[0] // 2
    if "audio_states" in batch:
        audio_s = batch["audio_states"].shape[0] / _AUDIO_TOKENS_PER_SECOND
    elif "feature_lengths" in batch:
        audio_s = int(batch["feature_lengths"].sum()) / _FRAMES_PER_SECOND
    else:
        audio_s = 0.0
    values = [int(mask.sum()), mask.numel(), int(supervised), mask.shape[0], audio_s, pairs, 0]
    return torch.tensor(values, dtype=torch.float64)


def rates(numbers: dict[str, float], seconds: float) -> dict[str, float]:
    """Counts of a step and what they mean per second."""
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
        "skipped_samples": int(numbers["skipped"]),
    }
    if numbers["checkpoint_s"]:
        # The save after the step before; "seconds" holds it too.
        record["checkpoint_s"] = numbers["checkpoint_s"]
    return record
