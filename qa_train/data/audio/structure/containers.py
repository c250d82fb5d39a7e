"""Format and length of an audio file, read from its own structure before anything is decoded.

libsndfile guesses the length of an MP3 without a Xing header, reads only the first of chained Ogg streams, does not
know a FLAC's length when the header leaves it open, and accepts truncated files. So the structure is parsed here: the
result is the file unchanged, parts that libsndfile reads completely, or BadAudio with the format, the finding and the
remedy.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

# ``find``, slices and ``len`` are all that is used of it.
Data = bytes | mmap.mmap
CONVERT = "ffmpeg -i IN OUT.flac"


class BadAudio(ValueError):
    """A clip that cannot be used; the message has the details, ``reason`` two words for the counts."""

    reason = "bad audio"


@dataclass(frozen=True)
class Part:
    """The input of one decoder: ``head``, then the bytes ``spans`` of the file, (start, stop) each."""

    spans: tuple[tuple[int, int], ...]
    head: bytes = b""
    # Samples (per channel) that the head decodes to, and those of the part without them; None: as stated in its header.
    skip: int = 0
    frames: int | None = None

    def read(self, data: Data) -> bytes:
        """The bytes for the decoder."""
        return b"".join([self.head, *(data[start:stop] for start, stop in self.spans)])


@dataclass(frozen=True)
class Container:
    """``parts``, concatenated, are the sound; empty: the whole file.

    ``kind`` is its extension in shards, ``demuxer`` FFmpeg's name of the format, ``native``: libsndfile reads it.
    ``seconds``: its length by its frames, for formats without a length from the decoder.
    """

    name: str
    kind: str
    demuxer: str
    native: bool = True
    parts: tuple[Part, ...] = ()
    seconds: float | None = None


def damaged(name: str, what: str) -> BadAudio:
    """The error for a file of which a part is missing or wrong."""
    return BadAudio(f"{name}: {what}: damaged or cut; fetch it again, or keep what can be read: {CONVERT}")


def syncsafe(data: Data, start: int) -> int:
    """Bytes of the ID3v2 tag at ``start``, including its header (and footer); 0 if there is no tag, or one that is said
    to be longer than the file.

    Source: id3.org/id3v2.4.0-structure, sections 3.1 and 6.2.
    """
    head = data[start : start + 10]
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:]) > 127 or head[3] == 255:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    whole = 10 + size + (10 if head[5] & 0x10 else 0)
    return whole if start + whole <= len(data) else 0
