"""The unit that every corpus reader yields: one recording with everything known about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.data.audio.waveform import MAX_CLIP_S, read_clip, within_full_scale
from qa_train.data.audio.waveform import SAMPLE_RATE as SAMPLE_RATE

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


def read_sound_file(path: Path) -> np.ndarray:
    """Any file of sound, as mono 16 kHz float32 with a peak of at most 1. Raises BadAudio."""
    return within_full_scale(read_clip(path, max_duration_s=MAX_CLIP_S))
