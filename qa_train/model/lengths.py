"""How many frames and tokens a piece of audio has at each depth of the model.

One mel frame is 10 ms. The first convolution keeps the rate, the second halves it (conv frames,
20 ms), and the average pool halves it again (audio tokens, 40 ms, 25 per second). The formulas are
those of ``Qwen2AudioEncoder._get_feat_extract_output_lengths`` in transformers.
"""

from __future__ import annotations

from typing import TypeVar

import torch

Length = TypeVar("Length", int, torch.Tensor)

# The second convolution reads one frame past the last kept one, and so does the first.
TAIL_FRAMES = 2


def conv_frames(mel_frames: Length) -> Length:
    """Frames after the two convolutions, for ``mel_frames`` real mel frames."""
    return (mel_frames - 1) // 2 + 1


def audio_tokens(mel_frames: Length) -> Length:
    """Audio tokens (encoder output positions) of ``mel_frames`` real mel frames."""
    return (conv_frames(mel_frames) - 2) // 2 + 1


def mel_columns(mel_frames: torch.Tensor, max_frames: int) -> torch.Tensor:
    """Columns that each segment occupies in the joined mel: its frames and its tail.

    mel_frames: LongTensor [S]; max_frames: frames of a full window (3000 for 30 s), never exceeded.
    """
    return (mel_frames + TAIL_FRAMES).clamp(max=max_frames)


def ranges(lengths: torch.Tensor) -> torch.Tensor:
    """0, 1, ..., lengths[0]-1, 0, 1, ..., lengths[1]-1, ... as one LongTensor [sum of lengths]."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)
