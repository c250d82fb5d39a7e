"""The Whisper-type encoder of Qwen2-Audio on real frames only.

Shapes: S segments (at most 30 s of audio each), M mel bins, P columns of the joined mel (every
segment's frames and its tail, one segment after another), F conv frames (20 ms) of all segments,
T audio tokens (40 ms) of all segments, D encoder width.

Equal to the stock encoder, which pads every segment to 30 s, because
 - the tail frames after each segment are those of the padded reference (computed from the
   zero-padded waveform), and the convolutions see zeros only before the first and after frame 3000;
 - positions restart with each segment, and attention stays inside it;
 - the pool joins two conv frames of one segment; an odd last frame is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen2AudioEncoderConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from qa_train.model.layers.attention import Documents, choose_attention, mask_between
from qa_train.model.layers.lengths import audio_tokens, conv_frames, mel_columns, ranges
from qa_train.model.layers.on_cpu import sent


@dataclass(frozen=True)
class _Layout:
    """The position of each frame. Indices are on the model's device.

    columns: LongTensor [P], places of the mel columns in the spaced mel of ``width`` columns.
    borders: LongTensor [S], the empty column before each segment.
    frames: LongTensor [F], places of the conv frames in the second convolution's output.
    positions: LongTensor [F], 0, 1, ... within each segment.
    pairs: LongTensor [T], the first of the two conv frames of each audio token.
    """

    width: int
    columns: torch.Tensor
    borders: torch.Tensor
    frames: torch.Tensor
    positions: torch.Tensor
    pairs: torch.Tensor
    documents: Documents

    @classmethod
    def of(cls, lengths: torch.Tensor, max_frames: int, device: torch.device) -> _Layout:
        """lengths: LongTensor [S] on the CPU, real mel frames of the segments."""
        columns = mel_columns(lengths, max_frames)
        # Each segment starts at an even place (the second convolution has stride 2) with an empty one before it.
        room = (columns + 2) // 2 * 2
        starts = room.cumsum(0) - room + 2
        frames, tokens = conv_frames(lengths), audio_tokens(lengths)
        positions = ranges(frames)
        first_frame = frames.cumsum(0) - frames
        indices = {
            "columns": starts.repeat_interleave(columns) + ranges(columns),
            "borders": starts - 1,
            "frames": (starts // 2).repeat_interleave(frames) + positions,
            "positions": positions,
            "pairs": first_frame.repeat_interleave(tokens) + 2 * ranges(tokens),
        }
        on_device = {name: sent(index, device) for name, index in indices.items()}
        return cls(width=int(room.sum()) + 2, documents=Documents.of(frames, device), **on_device)


class UnpaddedQwen2AudioEncoder(Qwen2AudioEncoder):
    """Stock weights and layers; the forward takes joined segments instead of padded windows."""

    def __init__(self, config: Qwen2AudioEncoderConfig) -> None:
        if config.encoder_layerdrop:
            raise ValueError(
                f"encoder_layerdrop is {config.encoder_layerdrop}; all ranks must run the same layers: set it to 0"
            )
        choose_attention(config)
        super().__init__(config)

    @property
    def max_frames(self) -> int:
        """Mel frames of a full window: 3000, which is 30 s."""
        return 2 * self.max_source_positions

    def forward(  # type: ignore[override]
        self, input_features: torch.Tensor, feature_lengths: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutput:
        """input_features [M, P], feature_lengths LongTensor [S] (real mel frames) -> last_hidden_state [T, D].

        ValueError if the mel bins, the number of columns or a length do not fit.
        """
        lengths = feature_lengths.to("cpu", torch.long)
        self._check(input_features, lengths)
        weight = self.conv1.weight
        layout = _Layout.of(lengths, self.max_frames, weight.device)
        hidden = self._convolve(input_features.to(weight.device, weight.dtype), layout)
        hidden = hidden + self.embed_positions(layout.positions)[None]
        hidden = nn.functional.dropout(hidden, p=self.dropout, training=self.training)
        mask = mask_between(self.config, layout.documents, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, mask, documents=layout.documents)
        hidden = hidden[0]
        pooled = (hidden[layout.pairs] + hidden[layout.pairs + 1]) / 2
        return BaseModelOutput(last_hidden_state=self.layer_norm(pooled))

    def _convolve(self, mel: torch.Tensor, layout: _Layout) -> torch.Tensor:
        """Joined mel [M, P] -> conv frames [1, F, D]; every segment sees zeros around itself, as if alone."""
        spaced = mel.new_zeros(1, mel.shape[0], layout.width).index_copy(2, layout.columns, mel[None])
        hidden = nn.functional.gelu(self.conv1(spaced))
        # A border is padding for the second convolution too, but the first one has written there.
        hidden = hidden.index_fill(2, layout.borders, 0.0)
        hidden = nn.functional.gelu(self.conv2(hidden))
        return hidden[:, :, layout.frames].transpose(1, 2)

    def _check(self, mel: torch.Tensor, lengths: torch.Tensor) -> None:
        if mel.ndim != 2 or mel.shape[0] != self.num_mel_bins:
            raise ValueError(
                f"input_features have shape {list(mel.shape)}; this encoder takes [{self.num_mel_bins}, frames]: "
                f"compute the log-mel with {self.num_mel_bins} bins and join the segments on time"
            )
        if lengths.numel() == 0 or int(lengths.min()) < 3 or int(lengths.max()) > self.max_frames:
            raise ValueError(
                f"feature_lengths are {_short(lengths)}; every segment needs 3 to {self.max_frames} mel frames: "
                "remove empty clips and split longer ones into segments"
            )
        expected = int(mel_columns(lengths, self.max_frames).sum())
        if mel.shape[1] != expected:
            raise ValueError(
                f"input_features have {mel.shape[1]} columns, but feature_lengths {_short(lengths)} need {expected}: "
                f"each segment brings its frames and up to 2 tail frames, at most {self.max_frames} together"
            )


def _short(lengths: torch.Tensor) -> str:
    values = lengths.tolist()
    return str(values if len(values) <= 8 else [*values[:7], "..."])
