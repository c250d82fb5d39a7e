"""The two forms of a batch: padded rectangles outside the model, joined rows inside.

Shapes: B rows, L their padded length, T real tokens of all rows, S audio segments, M mel bins, P joined columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qa_train.model.layers.attention import Documents
from qa_train.model.layers.lengths import mel_columns, ranges
from qa_train.model.layers.on_cpu import sent


@dataclass(frozen=True)
class Rows:
    """The real tokens of a padded batch, row after row."""

    shape: tuple[int, int]
    index: torch.Tensor  # LongTensor [T], places in the flattened batch
    positions: torch.Tensor  # LongTensor [1, T], restarting with each row
    documents: Documents

    @classmethod
    def of(cls, shape: tuple[int, int], mask: torch.Tensor | None, device: torch.device) -> Rows:
        """The real positions of rows x length ``shape``; ``mask`` (rows, length) is 1 on them, None: all are real.

        A mask on a GPU is waited for.
        """
        if mask is None:
            mask = torch.ones(shape, dtype=torch.long)
        lengths = mask.bool().sum(1).to("cpu", torch.long)
        index = sent(mask.flatten().nonzero().flatten(), device)
        if not len(index):
            raise ValueError(f"attention_mask of shape {list(shape)} has no real token: drop the empty batch")
        positions = sent(ranges(lengths)[None], device)
        return cls(shape, index, positions, Documents.of(lengths[lengths > 0], device))

    def drop_padding(self, values: torch.Tensor) -> torch.Tensor:
        """[B, L, ...] -> [T, ...]."""
        return values.flatten(0, 1)[self.index]

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        """Uniform in -1 to 1, divided by sqrt(L * D) with L tokens of the document: [T, D] as ``like``."""
        lengths = self.documents.starts.diff()
        scale = (lengths * like.shape[-1]).to(like.dtype).rsqrt()
        return torch.empty_like(like).uniform_(-1, 1) * scale.repeat_interleave(lengths, output_size=len(like))[:, None]

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """[1, T, D] -> [B, L, D], zeros at padding."""
        batch, length = self.shape
        flat = values.new_zeros(batch * length, values.shape[-1]).index_copy(0, self.index, values[0])
        return flat.view(batch, length, -1)


def joined_features(
    features: torch.Tensor | None, mask: torch.Tensor | None, lengths: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Bring the stock padded form [S, M, 3000] with its mask into the joined form [M, P] with lengths."""
    if features is None:
        return None, None
    if lengths is not None:
        return features, lengths
    if mask is None or features.ndim != 3:
        raise ValueError(
            f"input_features of shape {list(features.shape)} came without their lengths: pass feature_lengths with "
            "joined features [mels, frames], or feature_attention_mask with padded ones [segments, mels, 3000]"
        )
    lengths = mask.sum(-1).to("cpu", torch.long)
    columns = mel_columns(lengths, features.shape[-1]).to(features.device)
    kept = torch.arange(features.shape[-1], device=features.device) < columns[:, None]
    return features.transpose(0, 1)[:, kept], lengths
