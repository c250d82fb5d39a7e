"""Whisper log-mel frames of a waveform: ``M`` mel bins, ``L`` real mel frames of 10 ms."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import hertz_to_mel, mel_filter_bank, mel_to_hertz

from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.waveform import BadAudio

# Mel filters that are applied at once.
_GROUP = 16


def log_mel(wave: np.ndarray, num_mel_bins: int) -> Tensor:
    """Whisper log-mel of one segment, float32 [M, L + FRONT_END.tail(L)].

    The frames are those of ``WhisperFeatureExtractor`` padded to 30 s, so that an encoder that
    sees only these gives the padded encoder's states: the two tail frames still depend on the clip through their
    windows and the second convolution. Zeros are appended only as far as those windows reach; near 30 s the signal ends
    with the same reflection as the reference. The dynamic-range floor (maximum - 8) is taken over every frame that
    depends on the clip.
    """
    num_samples = len(wave)
    if not FRONT_END.shortest_clip <= num_samples <= FRONT_END.segment:
        raise BadAudio(f"a segment of {num_samples} samples; expected {FRONT_END.shortest_clip} to {FRONT_END.segment}")
    frames = FRONT_END.frames(num_samples)
    kept = frames + FRONT_END.tail(frames)
    length = min(num_samples + 2 * FRONT_END.hop + FRONT_END.window, FRONT_END.segment)
    half = FRONT_END.window // 2
    padded = torch.zeros(length + FRONT_END.window)
    padded[half : half + num_samples] = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
    # Frames are centred: the signal is mirrored at both ends, as torch.stft does (bit-equal to it, and faster).
    padded[:half] = padded[half + 1 : FRONT_END.window + 1].flip(0)
    padded[length + half :] = padded[length - 1 : length + half - 1].flip(0)
    spectrum = torch.fft.rfft(padded.unfold(0, FRONT_END.window, FRONT_END.hop)[: length // FRONT_END.hop] * _window())
    squares = torch.view_as_real(spectrum).flatten(1).square_()
    power = (squares[:, 0::2] + squares[:, 1::2]).T
    mel = torch.empty(num_mel_bins, power.shape[1])
    for (low, high, bank), rows in zip(_filters(num_mel_bins), mel.split(_GROUP), strict=True):
        torch.mm(bank, power[low:high], out=rows)
    mel.clamp_(min=1e-10).log10_()
    mel.clamp_(min=float(mel.amax()) - 8.0)
    # (x + 4) / 4, in one pass.
    return torch.add(torch.ones(()), mel[:, :kept], alpha=0.25)


def bin_hertz(num_mel_bins: int) -> np.ndarray:
    """The frequency in the middle of each mel bin, Hz [M]."""
    top = hertz_to_mel(FRONT_END.sample_rate / 2, "slaney")
    return np.asarray(mel_to_hertz(np.linspace(0.0, top, num_mel_bins + 2)[1:-1], "slaney"))


def decibels(mel: np.ndarray) -> np.ndarray:
    """The power of values of `log_mel`, in dB."""
    return 10.0 * (4.0 * mel - 4.0)


@lru_cache(maxsize=1)
def _window() -> Tensor:
    return torch.hann_window(FRONT_END.window)


@lru_cache(maxsize=4)
def _filters(num_mel_bins: int) -> list[tuple[int, int, Tensor]]:
    """The filter bank in groups of `_GROUP` filters, each with its frequency bins ``low`` to ``high``.

    Filters are narrow: the whole matrix [M, 201] is nearly all zeros, and multiplying by it takes three times as long.
    """
    bank = mel_filter_bank(
        num_frequency_bins=FRONT_END.window // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=FRONT_END.sample_rate / 2,
        sampling_rate=FRONT_END.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    groups = []
    for start in range(0, num_mel_bins, _GROUP):
        part = bank[:, start : start + _GROUP]
        heard = np.flatnonzero(part.any(axis=1))
        low, high = int(heard[0]), int(heard[-1]) + 1
        groups.append((low, high, torch.from_numpy(np.ascontiguousarray(part[low:high].T, dtype=np.float32))))
    return groups
