"""Encoded clips, each encoded once however many questions it has.

Evaluation asks several questions about the same recording, and a frozen encoder gives the same
states after every training stage: encoding is then the largest part of the work saved.

Shapes: M mel bins, F mel frames of all segments joined, T audio tokens, E encoder width.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.mel import log_mel
from qa_train.data.audio.waveform import audio_tokens, segments
from qa_train.model import encoder_states


class EncodedClips:
    """Encoder states by (encoder weights, waveform); the least recently used go first.

    May be shared between generators, also of different models: another encoder is another key.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._states: OrderedDict[str, torch.Tensor] = OrderedDict()

    def states(self, model: Any, encoder: str, waves: Sequence[np.ndarray], num_mel_bins: int) -> torch.Tensor:
        """States [T, E] of all clips joined, in order; ``encoder`` is the hash of the model's encoder.

        Clips not known yet are encoded together in one call, unpadded.
        """
        keys = [hashlib.blake2b(wave.tobytes(), key=encoder.encode()[:64]).hexdigest() for wave in waves]
        found = {key: self._states[key] for key in keys if key in self._states}
        missing = {key: wave for key, wave in zip(keys, waves, strict=True) if key not in found}
        if missing:
            found |= dict(zip(missing, encode(model, list(missing.values()), num_mel_bins), strict=True))
        for key in dict.fromkeys(keys):
            self._keep(key, found[key])
        return torch.cat([found[key] for key in keys])

    def _keep(self, key: str, states: torch.Tensor) -> None:
        if key not in self._states:
            self.num_bytes += states.nbytes
            self._states[key] = states
        self._states.move_to_end(key)
        while self.num_bytes > self.max_bytes and self._states:
            self.num_bytes -= self._states.popitem(last=False)[1].nbytes


def encode(model: Any, waves: Sequence[np.ndarray], num_mel_bins: int) -> list[torch.Tensor]:
    """Encoder states [T, E] of each waveform, from one unpadded encoder call over all their segments."""
    pieces = [piece for wave in waves for piece in segments(wave)]
    mel = torch.cat([log_mel(piece, num_mel_bins) for piece in pieces], dim=1).to(model.device, model.dtype)
    lengths = torch.tensor([FRONT_END.frames(len(piece)) for piece in pieces])
    joined = encoder_states(model, mel, lengths)
    # A slice would keep the states of the whole call alive.
    return [part.clone() for part in joined.split([audio_tokens(len(wave)) for wave in waves])]
