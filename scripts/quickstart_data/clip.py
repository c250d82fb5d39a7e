"""A clip in memory with everything known about it: how it is read, and written into a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.clips.make_shards import Job
from data_pipelines.clips.read_shards import first_recordings
from qa_train.data.audio.waveform import MAX_CLIP_S, SAMPLE_RATE, read_clip, within_full_scale
from qa_train.data.shards.writer import ShardWriter

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


def read_shard(path: Path, keep: Callable[[dict[str, Any]], bool] = lambda record: True) -> Iterator[Clip]:
    """The clips of a shard in its order, each with its first (own) recording decoded to 16 kHz.

    Clips with a false ``keep`` of their record are skipped without being decoded.
    """
    for place, _ in first_recordings(path):
        if keep(place.record):
            yield Clip(place.key, place.wave(), place.record)


def write_shard(path: Path, clips: Iterable[Clip]) -> int:
    """Writes one shard (FLAC); returns the clips written. A clip without samples becomes a text-only record."""
    num = 0
    with ShardWriter(path) as writer:
        for clip in clips:
            writer.write(clip.key, clip.record, clip.wave if len(clip.wave) else [], SAMPLE_RATE)
            num += 1
    return num


@dataclass(frozen=True)
class ClipJob(Job):
    """A shard of clips; ``maker(*arguments)`` yields them."""

    def write(self) -> int:
        """Writes the shard; returns the number of its clips."""
        return write_shard(self.path, self.maker(*self.arguments))
