"""One clip of a shard: the position of its bytes, and their decoding to mel frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import crc32c
import numpy as np
from torch import Tensor

from qa_train.config import StorageConfig
from qa_train.data.audio.augment import ClipAugment
from qa_train.data.audio.decoder import KillableDecoder
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.mel import log_mel
from qa_train.data.audio.waveform import SAMPLE_RATE, BadAudio, audio_tokens, read_indexed, segments
from qa_train.data.stores.neighbours import Range
from qa_train.data.stores.storage import RangeReader


class SkipSample(ValueError):
    """A sample that cannot be built; ``reason`` in a few words for the counts."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Clip:
    """A clip as the index knows it; ``num_samples`` at 16 kHz. ``id`` names its content."""

    id: str
    shard: str
    member: str
    offset: int
    size: int
    crc32c: int
    num_samples: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / SAMPLE_RATE

    @property
    def num_tokens(self) -> int:
        """Audio tokens, over all its segments."""
        return audio_tokens(self.num_samples)


@dataclass(frozen=True)
class ClipMels:
    """Clips for the encoder: ``input_features`` [M, F], ``feature_lengths`` [S], tokens per clip; those skipped."""

    clips: list[Clip]
    clip_tokens: list[int]
    input_features: Tensor
    feature_lengths: Tensor
    skipped: list[tuple[Clip, SkipSample]]


class ClipReader:
    """Reads clips by byte range and checks them against the index. Picklable.

    With ``decode_timeout_s`` clips are decoded in a child process that is killed when it takes longer.
    """

    def __init__(
        self, num_mel_bins: int, storage: StorageConfig | None = None, decode_timeout_s: float | None = None
    ) -> None:
        self.num_mel_bins = num_mel_bins
        self._files = RangeReader(storage)
        self._killable = None if decode_timeout_s is None else KillableDecoder(decode_timeout_s)
        self._decode = read_indexed if self._killable is None else self._killable.read_indexed

    def close(self) -> None:
        """Close files, and end the decoder's process."""
        self._files.close()
        if self._killable is not None:
            self._killable.close()

    def fetch(self, *groups: Iterable[Clip]) -> None:
        """Start reading the clips that are remote, the first group first; `wave` waits for its own. Clips of earlier
        calls that this one does not name are dropped.
        """
        self._files.fetch(
            *([Range(clip.shard, clip.offset, clip.size, clip.crc32c) for clip in group] for group in groups)
        )

    def wave(self, clip: Clip) -> np.ndarray:
        """The clip as float32 [n] at 16 kHz.

        Raises SkipSample when the shard cannot be read or changed, or the audio is bad.
        """
        try:
            raw = self._files.read(clip.shard, clip.offset, clip.size, clip.crc32c)
        except (OSError, ValueError) as error:
            raise SkipSample("unreadable", f"{clip.member}, byte {clip.offset}: {error}") from error
        if len(raw) != clip.size or crc32c.crc32c(raw) != clip.crc32c:
            what = f"{clip.member}: {len(raw)} of {clip.size} bytes at {clip.offset} do not match the index's checksum"
            raise SkipSample("changed shard", f"{what}: damaged, or another shard under this name")
        try:
            return self._decode(raw, clip.num_samples)
        except BadAudio as error:
            raise SkipSample("bad audio", f"{clip.member}, byte {clip.offset}: {error}") from error

    def mels(self, clip: Clip, augment: ClipAugment | None = None) -> tuple[list[Tensor], list[int]]:
        """Log-mel [M, L + tail] of each segment of a clip, and L, the real frames of each."""
        wave = self.wave(clip)
        parts = segments(augment.wave(wave) if augment else wave)
        mels = [log_mel(part, self.num_mel_bins) for part in parts]
        return [augment.mel(mel) for mel in mels] if augment else mels, [FRONT_END.frames(len(part)) for part in parts]


class NoiseReader(ClipReader):
    """Returns noise of the requested clip's length, without reading it."""

    def fetch(self, *groups: Iterable[Clip]) -> None:
        """Nothing is read."""

    def wave(self, clip: Clip) -> np.ndarray:
        """Quiet noise, float32 [n] at 16 kHz."""
        return np.random.default_rng(0).normal(0, 0.01, clip.num_samples).astype(np.float32)
