"""Collation of a batch: rows padded on the right, audio concatenated."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info


def join_audio(
    audio: list[tuple[list[Tensor], list[int]]], mel_dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The audio of a batch, joined on time: mel segments [M, L] with their real frames, in ``mel_dtype``, or cached
    states [T, D] (which come without frames). No audio gives no key.

    In a loader's worker it is joined in shared memory, where it has to be for the trainer, and not copied there later.
    """
    tensors = [tensor for parts, _ in audio for tensor in parts]
    lengths = [length for _, part in audio for length in part]
    if not tensors:
        return {}
    if lengths:
        return {"input_features": _joined(tensors, 1, mel_dtype), "feature_lengths": torch.tensor(lengths)}
    return {"audio_states": _joined(tensors, 0, tensors[0].dtype)}


def _joined(tensors: list[Tensor], dim: int, dtype: torch.dtype) -> Tensor:
    sizes = [tensor.shape[dim] for tensor in tensors]
    shape = list(tensors[0].shape)
    shape[dim] = sum(sizes)
    if get_worker_info() is None or not math.prod(shape):
        out = torch.empty(shape, dtype=dtype)
    else:
        # As torch's own collation does it.
        shared = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
        out = torch.empty(0, dtype=dtype).set_(shared).view(shape)  # type: ignore[call-overload]
    for place, tensor in zip(out.split(sizes, dim), tensors, strict=True):
        place.copy_(tensor)
    return out


def pad_ids(rows: list[list[int]], pad_id: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` [B, L], padded on the right."""
    mask = pad([[1] * len(row) for row in rows], 0)
    return {"input_ids": pad(rows, pad_id), "attention_mask": mask}


def pad(rows: list[list[int]], value: int) -> Tensor:
    """Rows of different lengths as one LongTensor [B, L]."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
