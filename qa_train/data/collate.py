"""Collation of a batch: rows padded on the right, audio concatenated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def join_audio(audio: list[tuple[list[Tensor], list[int]]]) -> dict[str, Tensor]:
    """The audio of a batch, joined on time: mel segments [M, L] with their real frames, or cached
    states [T, D] (which come without frames). No audio gives no key.
    """
    tensors = [tensor for parts, _ in audio for tensor in parts]
    lengths = [length for _, part in audio for length in part]
    if not tensors:
        return {}
    if lengths:
        return {"input_features": torch.cat(tensors, dim=1), "feature_lengths": torch.tensor(lengths)}
    return {"audio_states": torch.cat(tensors, dim=0)}


def pad_ids(rows: list[list[int]], pad_id: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` [B, L], padded on the right."""
    mask = pad([[1] * len(row) for row in rows], 0)
    return {"input_ids": pad(rows, pad_id), "attention_mask": mask}


def pad(rows: list[list[int]], value: int) -> Tensor:
    """Rows of different lengths as one LongTensor [B, L]."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
