"""The unit that every corpus reader yields: one recording with everything known about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from qa_train.data.audio.waveform import MAX_CLIP_S, read_clip

SAMPLE_RATE = 16_000
# The waveform of a text-only record.
NO_SOUND = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Clip:
    """One recording.

    ``wave`` is mono float32 [num_samples] at 16 kHz; ``record`` is the JSON member of the shard
    (fields: README, "Record"); ``group`` names what must stay on one side of the split.
    """

    key: str
    wave: np.ndarray
    record: dict[str, Any] = field(default_factory=dict)
    group: str = ""

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.wave) / SAMPLE_RATE


def to_mono_16k(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Mixes [n] or [n, channels] down to mono and resamples to 16 kHz (soxr HQ), float32."""
    mono = wave.mean(axis=1) if wave.ndim == 2 else wave
    if sample_rate != SAMPLE_RATE:
        mono = soxr.resample(mono, sample_rate, SAMPLE_RATE)
    # Resampling a full-scale recording can overshoot 1.0, which an encoder would clip audibly.
    peak = float(np.abs(mono).max(initial=0.0))
    return np.asarray(mono / peak if peak > 1.0 else mono, dtype=np.float32)


def read_sound_file(path: Path) -> np.ndarray:
    """Any file of sound, as mono 16 kHz float32. Raises BadAudio."""
    return to_mono_16k(read_clip(path, max_duration_s=MAX_CLIP_S), SAMPLE_RATE)
