"""How many frames and tokens a piece of audio has at each depth of the model, for tensors of lengths.

The arithmetic is the front end's: mel frames (10 ms), conv frames (20 ms), audio tokens (40 ms).
"""

from __future__ import annotations

import torch

from qa_train.data.audio.front_end import FRONT_END

conv_frames = FRONT_END.conv_frames
audio_tokens = FRONT_END.tokens_of


def mel_columns(mel_frames: torch.Tensor, max_frames: int) -> torch.Tensor:
    """Columns that each segment occupies in the joined mel: its frames and its tail.

    mel_frames: LongTensor [S]; max_frames: frames of a full window (3000 for 30 s), never exceeded.
    """
    return (mel_frames + FRONT_END.tail_frames).clamp(max=max_frames)


def ranges(lengths: torch.Tensor) -> torch.Tensor:
    """0, 1, ..., lengths[0]-1, 0, 1, ..., lengths[1]-1, ... as one LongTensor [sum of lengths]."""
    starts = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)
