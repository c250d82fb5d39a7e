"""A `Recording`, and reading what it points to: encoded bytes as they are, or a waveform at 16 kHz.

Everything is bounded: headers are checked before decoding (`qa_train.data.audio.waveform`), and no read is
longer than the limit of the import, whatever a header claims.
"""

from __future__ import annotations

import base64
import io
import math
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow

from data_pipelines.corpora.table_file import TableFile
from qa_train.config import StorageConfig
from qa_train.data.audio.waveform import (
    MIN_CLIP_SAMPLES,
    BadAudio,
    read_clip,
    read_frames,
    read_header,
    resample,
    within_full_scale,
)
from qa_train.data.shards.clip_files import FETCHING, clip_bytes, spelt, there
from qa_train.data.shards.tar import MAX_MEMBER_BYTES, OTHER_AUDIO_EXTENSIONS

# Used if no other kind is next to them (a video next to its sound).
OTHER_AUDIO = tuple(f".{kind}" for kind in OTHER_AUDIO_EXTENSIONS)

WHOLE = "clips of a table that are already cut: columns.start=null columns.end=null imports files whole"
# Compressed files are unpacked in memory.
MAX_UNPACKED_BYTES = 1 << 30


@dataclass(frozen=True)
class Recording:
    """Where one recording lies.

    A file, or an address; or a byte range (``offset``, ``size``) of an uncompressed tar; or the ``member`` of a zip; or
    a ``row`` of a Parquet or Arrow file, whose ``column`` holds the encoded bytes, or a list of clips of which this is
    number ``clip`` (from 0 on); or ``data``, the file itself as base64, from the list at ``path``. ``start_s`` and
    ``end_s`` cut a segment out of it (seconds), ``channel`` takes one channel instead of their mean.
    """

    path: str
    member: str = ""
    offset: int | None = None
    size: int = 0
    row: int | None = None
    column: str = ""
    clip: int | None = None
    start_s: float = 0.0
    end_s: float | None = None
    channel: int | None = None
    data: str = ""
    # The file itself, of a recording that is made into a record at once and in no list.
    raw: bytes | None = None
    # How the file is compressed of which offset and size are a range: "zstd", "gzip", "bz2", "brotli".
    packed: str = ""

    @property
    def name(self) -> str:
        """The recording as a person would name it, for messages."""
        place = f"{self.path}[{self.row}]" if self.row is not None else self.path
        place += f"[{self.clip}]" if self.clip is not None else ""
        return f"{place}/{self.member}" if self.member else place

    @property
    def whole(self) -> bool:
        """Whether the file is taken as it is, not a part of it."""
        return self.start_s == 0.0 and self.end_s is None and self.channel is None


class MissingAudio(BadAudio):
    """The recording is not where the corpus's lists say."""

    reason = "missing audio"


class TooLong(BadAudio):
    """The recording is longer than the import's limit: a filter, not damage."""

    reason = "longer than max_duration_s"


def source_of(place: Recording, storage: StorageConfig) -> bytes | Path:
    """What a decoder can open: the path of a plain file, or the bytes of a member or cell.

    ``storage``: how remote files are read, here and below.

    Raises MissingAudio or BadAudio.
    """
    if place.raw is not None:
        return place.raw
    if place.row is not None:
        return _cell(place, storage)
    if place.data:
        return base64.b64decode(place.data)
    if "://" in place.path:
        # A list may hold thousands of addresses of a server that is gone.
        return clip_bytes(place.path, replace(storage, retries=min(storage.retries, FETCHING.retries)))
    if place.packed:
        return unpacked(place.path, place.packed)[place.offset :][: place.size]
    try:
        if place.offset is not None:
            return _range(place, place.offset)
        if place.member:
            return zip_member(place.path, place.member).getvalue()
    except FileNotFoundError as error:
        raise MissingAudio(f"{place.path} does not exist{_elsewhere(Path(place.path))}") from error
    except (OSError, OverflowError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadAudio(f"{place.name}: {error}") from error
    path = Path(place.path)
    if not there(path):
        raise MissingAudio(f"{path} does not exist{_other(path)}{_elsewhere(path)}")
    return path


def _range(place: Recording, offset: int) -> bytes:
    if place.size > MAX_MEMBER_BYTES:
        raise ValueError(f"a range of {place.size} bytes; at most {MAX_MEMBER_BYTES} are read")
    with Path(place.path).open("rb") as file:
        file.seek(offset)
        return file.read(place.size)


def raw_bytes(place: Recording, storage: StorageConfig) -> bytes:
    """The encoded bytes of a whole recording. Raises BadAudio when they exceed a shard member's limit."""
    source = source_of(place, storage)
    if isinstance(source, bytes):
        return source
    if source.stat().st_size > MAX_MEMBER_BYTES:
        raise BadAudio(f"{place.name}: more than {MAX_MEMBER_BYTES} bytes")
    return source.read_bytes()


def duration_s(source: bytes | Path) -> float:
    """Length in seconds that the header states."""
    frames, rate = read_header(source)
    return frames / rate


def wave_of(place: Recording, max_duration_s: float, storage: StorageConfig) -> np.ndarray:
    """The recording, or its segment, as float32 mono [n] at 16 kHz with a peak of at most 1.

    Raises TooLong, MissingAudio, or BadAudio when nothing usable is there.
    """
    source = source_of(place, storage)
    try:
        frames, rate = read_header(source)
        if not place.whole:
            wave = _segment(source, place, frames, rate, max_duration_s)
        elif frames / rate > max_duration_s:
            raise TooLong(f"{frames / rate:.1f} s")
        else:
            wave = read_clip(source, max_duration_s=max_duration_s + 1)
    except BadAudio as error:
        raise type(error)(f"{place.name}: {error}") from error
    if len(wave) < MIN_CLIP_SAMPLES:
        raise BadAudio(f"{place.name}: {len(wave)} samples at 16 kHz, too few for one token")
    return within_full_scale(wave)


def _segment(source: bytes | Path, place: Recording, frames: int, rate: int, max_duration_s: float) -> np.ndarray:
    """The part of a recording of ``frames`` samples at ``rate``; the errors do not name the file."""
    times = place.start_s * rate, frames if place.end_s is None else place.end_s * rate
    # Lists may state any number: one that is not finite is no place.
    start, end = (round(time) if math.isfinite(time) else -1 for time in times)
    # Lists round to a hundredth of a second: a segment may end that much behind the recording.
    if not 0 <= start < min(end, frames) or end > frames + rate // 10:
        raise BadAudio(
            f"the segment from {place.start_s} s to {place.end_s} s does not lie within the "
            f"recording of {frames / rate:.2f} s; {WHOLE}"
        )
    if (min(end, frames) - start) / rate > max_duration_s:
        raise TooLong(f"a segment of {(end - start) / rate:.1f} s")
    wave = read_frames(source, start, min(end, frames))
    if place.channel is not None and place.channel >= wave.shape[1]:
        raise BadAudio(f"channel {place.channel} of {wave.shape[1]}")
    mono = wave.mean(axis=1) if place.channel is None else wave[:, place.channel]
    if not np.isfinite(mono).all():
        raise BadAudio("it contains NaN or infinite samples")
    return resample(np.ascontiguousarray(mono), rate)


def _other(path: Path) -> str:
    """What to do when the audio lies there in a format that libsndfile does not read, or with capitals in its name."""
    in_capitals = path.with_suffix(path.suffix.swapcase())
    if there(in_capitals):
        return f" (but {in_capitals.name} does: path=[LIST,FOLDER] by_name=true ignores capitals if that is unique)"
    for extension in OTHER_AUDIO:
        other = path.with_suffix(extension)
        if there(other):
            wav = path.with_suffix(".wav").name
            return f"; extract the sound of {other.name} first: ffmpeg -i {other.name} -ac 1 -ar 16000 {wav}"
    return ""


def _elsewhere(path: Path) -> str:
    """What to do when not even the folder of a file is there: lists are often made on another machine."""
    if there(path.parent, Path.is_dir):
        return ""
    return (
        " (a path of another machine? prefix=[OLD,NEW] changes the beginning of paths in lists, by_name=true looks for "
        "names)"
    )


def _cell(place: Recording, storage: StorageConfig) -> bytes:
    """The encoded audio in a row of a table: bytes, or Hugging Face's struct of bytes and path."""
    assert place.row is not None
    try:
        value = TableFile(place.path, storage).rows(place.row, (place.column,))[0][place.column]
    except ValueError as error:
        raise BadAudio(f"{place.name}: {error}") from error
    value = value if place.clip is None else value[place.clip]
    raw = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(raw, bytes) and raw:
        return raw
    named = value.get("path") if isinstance(value, dict) else value
    if not isinstance(named, str) or not named or "://" in place.path:
        files = "; files that it names are not read" if "://" in place.path else ""
        raise MissingAudio(f"{place.name}: no audio bytes in column {place.column!r}{files}")
    path = spelt(Path(place.path).parent, named)
    if not there(path):
        raise MissingAudio(f"{place.name}: no audio bytes in column {place.column!r}, and no file {path}")
    return path.read_bytes()


@lru_cache(maxsize=1)
def unpacked(path: str, packed: str) -> bytes:
    """A compressed file in memory. Raises BadAudio when it is damaged, or larger than ``MAX_UNPACKED_BYTES``."""
    parts: list[bytes] = []
    try:
        with pyarrow.CompressedInputStream(path, packed) as stream:
            while part := stream.read(1 << 20):
                parts.append(part)
                if len(parts) > MAX_UNPACKED_BYTES >> 20:
                    raise BadAudio(f"{path} unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    except OSError as error:
        raise BadAudio(f"{path}: cannot be unpacked ({error})") from error
    return b"".join(parts)


def zip_member(path: str, member: str) -> io.BytesIO:
    """A zip member in memory, bounded by the size that a shard's member may have."""
    with open_zip(path).open(member) as file:
        raw = file.read(MAX_MEMBER_BYTES + 1)
    if len(raw) > MAX_MEMBER_BYTES:
        raise ValueError(f"{path}: member {member!r} has more than {MAX_MEMBER_BYTES} bytes")
    return io.BytesIO(raw)


@lru_cache(maxsize=8)
def open_zip(path: str) -> zipfile.ZipFile:
    """An open archive; opening reads its whole list of members, so each process does it once."""
    try:
        try:
            # Programs of Linux and macOS write it, most without the mark that says so.
            return zipfile.ZipFile(path, metadata_encoding="utf-8")
        except UnicodeDecodeError:
            return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: not a readable zip archive ({error}); download it again") from error
