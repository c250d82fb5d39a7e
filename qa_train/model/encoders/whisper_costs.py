"""Operations and kept bytes of the Whisper-type encoder, on real frames only.

t conv frames (20 ms) of a segment, d encoder width, f MLP width, M mel bins:

 - forward: (8 d^2 + 4 d f) t per layer, 4 d t^2 per layer for attention, 6 M d per mel frame and 6 d^2 per conv frame
   for the two convolutions;
 - kept per conv frame and layer, with ``s`` bytes per value of the residual stream, ``p`` per output of a matrix
   product and ``a`` inside attention: of each of two norms the input (in float32 under autocast on a GPU) and what the
   linear layers read; 4 d a of attention; 2 f p of the MLP. A frozen encoder keeps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qa_train.model.layers.costs import EncoderFlops, Kept, Precision, Trained
from qa_train.model.layers.lengths import audio_tokens, conv_frames

_CONV_KERNEL = 3


@dataclass(frozen=True)
class WhisperCosts:
    """The sizes of an encoder that its cost depends on."""

    mel_bins: int
    width: int
    ffn: int
    layers: int

    @classmethod
    def of(cls, config: Any) -> WhisperCosts:
        """Those of a ``Qwen2AudioEncoderConfig``."""
        return cls(config.num_mel_bins, config.d_model, config.encoder_ffn_dim, config.encoder_layers)

    @property
    def weights(self) -> int:
        """Weights of the linear layers, all layers."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.ffn)

    def frames(self, segments: Sequence[int]) -> int:
        """Conv frames of segments of so many mel frames: the positions of every layer."""
        return sum(conv_frames(length) for length in segments)

    def flops(self, segments: Sequence[int], *, trains: bool = False) -> EncoderFlops:
        """Those of segments of so many mel frames: of a forward, and of a backward pass too if the encoder trains."""
        frames = [conv_frames(length) for length in segments]
        kernel, again = 2 * _CONV_KERNEL * self.width, 2 * int(trains)
        # The mel needs no gradient.
        first = kernel * self.mel_bins * sum(segments) * (1 + int(trains))
        return EncoderFlops(
            stem=first + kernel * self.width * sum(frames) * (1 + again),
            layers=2 * self.weights * sum(frames) * (1 + again),
            attention=4 * self.layers * self.width * sum(n * n for n in frames) * (1 + again),
        )

    def kept(self, segments: Sequence[int], precision: Precision, trained: Trained, mode: str) -> Kept:
        """Bytes of an encoder that trains, with gradient checkpointing ``mode`` (none, selective or full).

        What the projector reads counts as an end.
        """
        frames, d, f, p = self.frames(segments), self.width, self.ffn, precision.product
        stream = precision.stream
        # Inputs of the linear layers: one tensor for query, key and value and one for fc1, or a copy for each of the
        # four.
        copy = trained.adapter_copy or (p if precision.autocast else 0)
        copies = 4 * copy if copy else 2 * stream
        loop = d * p if precision.loop else 0
        layer = 2 * precision.norms * d + copies * d + 4 * d * precision.attention + loop + 2 * f * p
        marks = stream * d
        if mode == "selective":
            # The sum before the MLP, what attention reads and gives, and what the activation function reads.
            marks += stream * d + 4 * d * precision.attention + loop + f * p
        ends = sum(audio_tokens(length) for length in segments) * 2 * d * stream
        if trained.whole:
            # mel columns = 2 x frames: input, output before and after the first GELU; then the second convolution's.
            ends += frames * p * (2 * self.mel_bins + 4 * d + d)
        return Kept(layer * frames, marks * frames, ends)
