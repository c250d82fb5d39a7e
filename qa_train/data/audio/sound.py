"""Opening audio, by content: libsndfile, with the file's parsed structure, ``dr_flac``, or PyAV (``media``) for what
libsndfile does not read.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile

from qa_train.data.audio import dr_flac
from qa_train.data.audio.media import MediaSound
from qa_train.data.audio.structure.containers import CONVERT, BadAudio, Container, Data, Part
from qa_train.data.audio.structure.formats import examine

_BLOCK_FRAMES = 1 << 18
# A file of more chained streams is refused: each is opened by itself.
_MAX_PARTS = 10_000
# Most samples of an Ogg page: 255 packets of half the largest block. In the last page, which may end early, libsndfile
# misses a place by up to a block.
_LAST_PAGE = 255 * 4096
# libsndfile's numbers for a codec that it does not know in a container that it does (ALAC, AAC or Opus in CAF, FLAC of
# 32 bits, any FLAC in Ogg, G.722 or MP2 in WAV), and for what it calls malformed: an Ogg cut by copying, a CAF from a
# pipe.
_OTHER_CODEC, _MALFORMED = (4, 18, 64, 161), 3


class _NotRead(BadAudio):
    """libsndfile knows the container, and not what is in it."""


class Sound:
    """A file that libsndfile reads: ``rate`` in Hz, ``channels``, ``frames`` (samples per channel, the true number)."""

    def __init__(self, source: bytes | Path, data: Data, container: Container) -> None:
        self._source, self._data, self.container = source, data, container
        self._parts: tuple[Part | None, ...] = container.parts or (None,)
        if len(self._parts) > _MAX_PARTS:
            raise BadAudio(f"{container.name}: {len(self._parts)} streams in one file; convert it: {CONVERT}")
        self._first = self._open(self._parts[0])
        self.rate, self.channels = self._first.samplerate, self._first.channels
        self.kind = f"{self._first.format}/{self._first.subtype}"
        self.frames = self._frames(self._first, self._parts[0])
        for number, part in enumerate(self._parts[1:], start=2):
            with self._open(part) as file:
                if (file.samplerate, file.channels) != (self.rate, self.channels):
                    raise BadAudio(
                        f"{container.name}: its stream {number} has {file.samplerate} Hz and {file.channels} channels, "
                        f"the first {self.rate} and {self.channels}; convert it: {CONVERT}"
                    )
                self.frames += self._frames(file, part)

    def close(self) -> None:
        """Close the file."""
        self._first.close()

    def blocks(self, limit: int) -> Iterator[np.ndarray]:
        """All samples, float32 [n] (mono) or [n, channels] at a time, at most ``limit`` in all; to be read once.

        Raises BadAudio where the decoder stops.
        """
        for number, part in enumerate(self._parts):
            with self._first if number == 0 else self._open(part) as file:
                skip = part.skip if part is not None else 0
                while limit > 0 and len(block := self._read(file, min(limit + skip, _BLOCK_FRAMES // self.channels))):
                    block, skip = block[skip:], max(0, skip - len(block))
                    limit -= len(block)
                    if len(block):
                        yield block

    def seek(self, frame: int) -> int:
        """The sample that the blocks then begin with: this one, or one before it from which decoding is exact."""
        if self.container.parts or not self._first.seekable():
            return 0
        if self._first.subtype == "VORBIS":
            frame = max(0, min(frame, self.frames - _LAST_PAGE))
        with self._named():
            self._first.seek(frame)
        return frame

    def _open(self, part: Part | None) -> soundfile.SoundFile:
        source = self._source if part is None else part.read(self._data)
        try:
            if isinstance(source, bytes):
                return soundfile.SoundFile(_Bytes(source))
            # By descriptor: libsndfile would also look at the name.
            return soundfile.SoundFile(os.open(source, os.O_RDONLY), closefd=True)
        except (soundfile.SoundFileError, RuntimeError, OSError) as error:
            sphere = ", or sph2pipe -f wav IN OUT.wav" if self.container.name == "NIST SPHERE" else ""
            kind = self._kind(error)
            media = ""
            if kind is _NotRead and getattr(error, "code", None) == _MALFORMED and find_spec("av") is None:
                # Such a file mostly is damaged.
                kind, media = BadAudio, ", or, if others play it, pip install 'qa-train[media]'"
            what = f"{self.container.name}: libsndfile says: {_said(error)}"
            raise kind(f"not a readable audio file: {what}; try {CONVERT}{sphere}{media}") from error

    def _kind(self, error: Exception) -> type[BadAudio]:
        """Whether another decoder is to be asked. A chain of streams is one that only libsndfile reads to its end."""
        code = getattr(error, "code", None)
        other = code in _OTHER_CODEC or (code == _MALFORMED and self.container.demuxer in ("ogg", "caf"))
        return _NotRead if other and len(self._parts) == 1 else BadAudio

    def _frames(self, file: soundfile.SoundFile, part: Part | None) -> int:
        return int(file.frames if part is None or part.frames is None else part.frames)

    def _read(self, file: soundfile.SoundFile, frames: int) -> np.ndarray:
        with self._named():
            return file.read(frames=frames, dtype="float32")

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """BadAudio for what libsndfile raises after a file is open."""
        try:
            yield
        except (soundfile.SoundFileError, ValueError, RuntimeError, MemoryError) as error:
            raise BadAudio(f"{self.container.name}: the decoder stopped: {_said(error)}; {CONVERT}") from error


class WholeFlac:
    """A FLAC in memory, decoded at once: as `Sound`, with its samples and faults, in less time."""

    def __init__(self, raw: bytes, container: Container, header: tuple[int, int, int]) -> None:
        self._raw, self.container = raw, container
        self.frames, self.rate, self.channels = header
        self.kind = "FLAC"

    def close(self) -> None:
        """Nothing is open."""

    def blocks(self, limit: int) -> Iterator[np.ndarray]:
        """As those of `Sound`, but one where it can be."""
        samples = dr_flac.decode(self._raw)
        if samples is not None:
            yield samples[:limit]
            return
        sound = Sound(self._raw, self._raw, self.container)
        try:
            yield from sound.blocks(limit)
        finally:
            sound.close()


class _Bytes(io.BytesIO):
    """For libsndfile, which a broken header makes seek to places before the start."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


AnySound = Sound | MediaSound | WholeFlac


@contextlib.contextmanager
def open_sound(source: bytes | str | Path, *, at_once: bool = False) -> Iterator[AnySound]:
    """The sound of a file, detected by content instead of name; ``at_once``: it may be decoded in one block.

    Raises BadAudio with the finding and the remedy.
    """
    with _data(source) as (place, data):
        container = examine(data)
        header = None
        if at_once and isinstance(place, bytes) and container.kind == "flac" and not container.parts:
            header = dr_flac.stated(place)
        sound = _opened(place, data, container) if header is None else WholeFlac(bytes(data), container, header)
        try:
            yield sound
        finally:
            sound.close()


def _opened(place: bytes | Path, data: Data, container: Container) -> AnySound:
    if container.native:
        with contextlib.suppress(_NotRead):
            return Sound(place, data, container)
    return MediaSound(b"".join(part.read(data) for part in container.parts) or bytes(data), container)


@contextlib.contextmanager
def _data(source: bytes | str | Path) -> Iterator[tuple[bytes | Path, Data]]:
    """What libsndfile opens, and all bytes of it (of a file: mapped, not read)."""
    if isinstance(source, bytes):
        yield source, source
        return
    path = Path(source)
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                yield path, b""
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                yield path, mapped
    except OSError as error:
        raise BadAudio(f"not a readable file: {error.strerror or error}") from error


def _said(error: BaseException) -> str:
    """libsndfile's own words, without the name of an object in memory."""
    return str(getattr(error, "error_string", None) or error).rstrip(".")
