"""Formats that libsndfile does not read (M4A, MP4, WebM, AAC, WMA ...), by PyAV (FFmpeg), extra ``media``.

Only the demuxer that the file's own bytes name is opened, on an object in memory: playlists and references that would
make FFmpeg open other files or addresses are never followed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from qa_train.data.audio.structure.containers import CONVERT, BadAudio, Container, damaged

# Encoders pad the last frame, declared or not: a length may differ by this many seconds.
_SLACK_S = 0.15
# Formats without a stated length, or with an estimate from the bit rate.
_ESTIMATED = ("aac",)
# Formats that state one length for all their streams.
_OF_THE_LONGEST = ("matroska", "asf")
# Samples that an encoder puts before the sound: HE-AAC has the most.
_MAX_PRIMING = 8192


class MediaSound:
    """The first audio stream of a file: ``rate`` in Hz, ``channels``, and blocks of float32 [n, channels]."""

    def __init__(self, raw: bytes, container: Container) -> None:
        if not container.demuxer:
            raise BadAudio(f"{container.name}: it is not read here; convert it: {CONVERT}")
        try:
            import av
        except ImportError as error:
            raise BadAudio(
                f"{container.name}: libsndfile does not read it; convert it ({CONVERT}), or install a decoder for it: "
                "pip install 'qa-train[media]'"
            ) from error
        self._av, self.container = av, container
        try:
            self._file: Any = av.open(io.BytesIO(raw), format=container.demuxer, metadata_errors="replace")
        except (av.error.FFmpegError, ValueError, OSError) as error:
            raise damaged(container.name, f"FFmpeg cannot open it ({_said(error)})") from error
        streams = self._file.streams.audio
        if not streams:
            others = len(self._file.streams)
            self._file.close()
            raise BadAudio(f"{container.name}: it has no sound, only {others} other streams")
        self._stream = streams[0]
        codec = self._stream.codec_context
        if codec is None:
            self._file.close()
            raise BadAudio(f"{container.name}: FFmpeg has no decoder for its sound")
        self.rate, self.channels = int(codec.sample_rate or 0), int(codec.channels or 0)
        self.kind = f"{container.name}, {codec.name}"
        self.frames: int | None = None

    def close(self) -> None:
        """Free the decoder."""
        self._file.close()

    def blocks(self, limit: int) -> Iterator[np.ndarray]:
        """All samples, [n, channels] at a time, at most ``limit`` in all. Raises BadAudio when the file was cut."""
        # Interleaved: of eight separate channels PyAV counts nine, and the process dies of it.
        resampler = self._av.AudioResampler(format="flt")
        count = 0
        try:
            for frame in self._file.decode(self._stream):
                for even in resampler.resample(frame):
                    block = even.to_ndarray().reshape(even.samples, -1)[: limit - count]
                    count += len(block)
                    yield block
                if count >= limit:
                    return
        except (self._av.error.FFmpegError, ValueError, MemoryError) as error:
            raise BadAudio(f"{self.container.name}: the decoder stopped: {_said(error)}; {CONVERT}") from error
        self._check(count)

    def _check(self, count: int) -> None:
        """The decoded length against the stated one."""
        stated = self._stated()
        if stated is not None and count / self.rate < stated - _SLACK_S:
            raise damaged(
                self.container.name, f"it decodes to {count / self.rate:.2f} s, its header states {stated:.2f} s"
            )

    def _stated(self) -> float | None:
        """The length of the sound in seconds, as the file has it; None where it has none, or only that of a video."""
        if self.container.seconds is not None:
            return self.container.seconds
        demuxer, stream = self.container.demuxer, self._stream
        if demuxer in _ESTIMATED or (demuxer in _OF_THE_LONGEST and len(self._file.streams) > 1):
            return None
        if not stream.duration or not stream.time_base:
            return self._file.duration / self._av.time_base if self._file.duration else None
        start = float((stream.start_time or 0) * stream.time_base)
        # Lengths include what lies before time 0 (Speex), and what the decoder drops at the start (AAC of iTunes).
        counted = abs(start) if start * self.rate <= _MAX_PRIMING else 0.0
        return float(stream.duration * stream.time_base) - counted


def _said(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).split("\n")[0]
