"""Augmentation of training audio, as a pure function of seed, epoch and sample.

Nothing here changes a length, so the plan's token counts hold. (A change of speed would: make copies of the shards.)

``n`` samples at 16 kHz, ``M`` mel bins, ``L`` mel frames with their tail, ``T`` audio tokens, ``D`` encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from qa_train.config import AugmentConfig
from qa_train.utils import draws

MAX_SPAN = 8
# The colour of the noise: its power falls with frequency ** -c, c drawn evenly from 0 (white) to this (near pink and
# beyond, as most rooms and streets sound).
_STEEPEST = 1.5


class ClipAugment:
    """What happens to one clip of one sample in one epoch; use it once, in the order of the audio."""

    def __init__(self, cfg: AugmentConfig, key: Sequence[int | str]) -> None:
        self._cfg = cfg
        self._rng = draws.generator(list(key))

    def wave(self, wave: np.ndarray) -> np.ndarray:
        """Volume and noise: float32 [n] -> float32 [n]."""
        cfg, rng = self._cfg, self._rng
        if cfg.gain_db:
            wave = wave * np.float32(10 ** (rng.uniform(-cfg.gain_db, cfg.gain_db) / 20))
        if cfg.noise_share and rng.random() < cfg.noise_share:
            lowest, highest = cfg.noise_snr_db
            wave = add_noise(wave, rng.uniform(lowest, highest), rng)
        return wave

    def mel(self, mel: Tensor) -> Tensor:
        """SpecAugment: log-mel [M, L] of a segment with spans of frames and of bins at the segment's mean."""
        cfg, rng = self._cfg, self._rng
        bins, frames = mel.shape
        if not cfg.time_masks and not cfg.freq_masks:
            return mel
        masked, mean = mel.clone(), mel.mean()
        room = int(cfg.time_mask_share * frames)
        for _ in range(cfg.time_masks):
            width = min(int(rng.integers(0, cfg.time_mask_frames + 1)), room)
            start = int(rng.integers(0, frames - width + 1))
            masked[:, start : start + width] = mean
            room -= width
        for _ in range(cfg.freq_masks):
            width = min(int(rng.integers(0, cfg.freq_mask_bins + 1)), bins)
            start = int(rng.integers(0, bins - width + 1))
            masked[start : start + width] = mean
        return masked


def add_noise(wave: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """``wave`` [n] with Gaussian noise of a random colour, ``snr_db`` decibels below it in power; silence stays so."""
    power = float(np.mean(np.square(wave, dtype=np.float64)))
    if power == 0:
        return wave
    spectrum = np.fft.rfft(rng.standard_normal(len(wave)))
    # The first bin would be infinite; it is the mean, which is inaudible.
    spectrum[1:] *= np.arange(1, len(spectrum)) ** (-rng.uniform(0, _STEEPEST) / 2)
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, len(wave))
    scale = np.sqrt(power / 10 ** (snr_db / 10) / np.mean(np.square(noise)))
    return (wave + scale * noise).astype(np.float32)


def check_augment(cfg: AugmentConfig) -> None:
    """ValueError for a value out of its range."""
    low_high = list(cfg.noise_snr_db)
    if len(low_high) != 2 or low_high[0] > low_high[1]:
        raise ValueError(f"data.augment.noise_snr_db is {low_high}: give the lowest and the highest, e.g. [5, 30]")
    for name in ("noise_share", "time_mask_share"):
        if not 0 <= getattr(cfg, name) <= 1:
            raise ValueError(f"data.augment.{name} is {getattr(cfg, name)}: use a share between 0 and 1")
    for name in ("gain_db", "time_masks", "time_mask_frames", "freq_masks", "freq_mask_bins"):
        if getattr(cfg, name) < 0:
            raise ValueError(f"data.augment.{name} is {getattr(cfg, name)}: use 0 (off) or more")


def mask_spans(states: Tensor, share: float, key: tuple[int, int, str]) -> Tensor:
    """Set about ``share`` of the audio tokens of ``states`` [T, D] to zero, in spans of 1 to 8 tokens.

    The spans depend on ``key`` (seed, epoch, clip) alone, so that a resumed run masks the same ones.
    """
    if share <= 0 or not len(states):
        return states
    rng = draws.generator(list(key))
    spans = rng.poisson(share * len(states) / ((1 + MAX_SPAN) / 2))
    masked = states.clone()
    for start, width in zip(rng.integers(0, len(states), spans), rng.integers(1, MAX_SPAN + 1, spans), strict=True):
        masked[start : start + width] = 0.0
    return masked
