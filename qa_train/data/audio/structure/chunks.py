"""Formats with audio in one chunk of stated size (WAV and its kin): the size is compared with the bytes present.

Sources: Microsoft's RIFF, EBU Tech 3306 (RF64), Sony's Wave64, Apple's AIFF and CAF, Sun's AU, NIST's SPHERE.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qa_train.data.audio.structure.containers import BadAudio, Data, Part, damaged

# Bytes by which the headers of harmless files may be wrong.
_SLACK = 64
# What sox writes into an AIFF for a pipe is the smallest.
_UNKNOWN_32, _UNKNOWN_64 = 0x7F000000, 1 << 62
_EXTENSIBLE = 0xFFFE
MP3_IN_WAV = 0x55
GSM, _GSM_BLOCK = 0x31, 65
W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"


def chunks(data: Data, name: str) -> Iterator[tuple[bytes, int, int]]:
    """(identity, first byte, stated size) of the chunks at the top of a RIFF, RIFX, RF64, AIFF, Wave64 or CAF file."""
    wide = name == "Wave64"
    order: Literal["little", "big"] = "big" if name in ("WAV (RIFX)", "AIFF", "CAF") else "little"
    at, identity, number = (40, 16, 8) if wide else (8, 4, 8) if name == "CAF" else (12, 4, 4)
    while at + identity + number <= len(data):
        body = at + identity + number
        size = int.from_bytes(data[at + identity : body], order)
        if wide:
            # Its sizes count the chunk's header.
            size -= identity + number
        yield data[at : at + 4], body, size
        if size < 0:
            return
        at = body + size + (-size % 8 if wide else size % 2 if number == 4 else 0)


def check_size(data: Data, name: str) -> None:
    """BadAudio when a header states more audio than the file has: libsndfile would accept the rest as complete."""
    if name == "AU":
        start, size = int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
        _compare(name, size, len(data) - start, size >= _UNKNOWN_32)
    elif name == "NIST SPHERE":
        _check_sphere(data)
    else:
        for identity, start, size in chunks(data, name):
            if identity in (b"data", b"SSND"):
                unknown = size >= (_UNKNOWN_64 if name in ("Wave64", "CAF") else _UNKNOWN_32)
                _compare(name, size, len(data) - start, unknown)
                return


def _compare(name: str, stated: int, there: int, unknown: bool) -> None:
    # Programs that write into a pipe cannot know the length, and state the largest one.
    if not unknown and stated - there > _SLACK:
        raise damaged(name, f"its header states {stated} bytes of audio, the file has {there}")


def _check_sphere(data: Data) -> None:
    lines = [line.split(None, 2) for line in data[:1024].decode("latin-1").split("\n")]
    said = {words[0]: words[2] for words in lines if len(words) == 3}
    size = int(lines[1][0]) if len(lines) > 1 and lines[1] and lines[1][0].isdigit() else 1024
    values = [said.get(name, "1") for name in ("sample_count", "channel_count", "sample_n_bytes")]
    if all(value.strip().isdigit() for value in values) and "sample_count" in said:
        count, channels, width = map(int, values)
        if said.get("sample_coding", "pcm").strip() in ("pcm", "ulaw", "alaw", "mu-law"):
            _compare("NIST SPHERE", count * channels * width, len(data) - size, False)


@dataclass(frozen=True)
class Wave:
    """A WAV's format tag and audio position; ``known``: the header states the size (or libsndfile copes)."""

    format: int
    start: int
    size: int
    known: bool = True


def wav_chunks(data: Data, name: str) -> Wave:
    """The audio of a WAV. Raises BadAudio when it was cut, has none, or when more seems to follow than is stated."""
    order: Literal["little", "big"] = "big" if name == "WAV (RIFX)" else "little"
    tag, wide = 0, -1
    for identity, start, size in chunks(data, name):
        if identity == b"ds64":
            wide = int.from_bytes(data[start + 8 : start + 16], "little")
        elif identity == b"fmt ":
            tag = int.from_bytes(data[start : start + 2], order)
            if tag == _EXTENSIBLE:
                tag = int.from_bytes(data[start + 24 : start + 26], order)
        elif identity == b"data":
            there = len(data) - start
            if size == 0xFFFFFFFF and wide >= 0:
                size = wide
            if 0 < size < (_UNKNOWN_64 if wide >= 0 else _UNKNOWN_32):
                _compare(name, size, there, False)
                _check_rest(data, name, start, size)
                return Wave(tag, start, min(size, there))
            if size or not there or _are_chunks(data, start):
                return Wave(tag, start, there if size else 0)
            return Wave(tag, start, there, known=False)
    raise damaged(name, "it has no audio ('data' chunk)")


def _check_rest(data: Data, name: str, start: int, size: int) -> None:
    """BadAudio when non-chunk bytes follow the audio: the recorder was stopped before it wrote the size."""
    rest = len(data) - start - size
    if rest <= _SLACK or _are_chunks(data, start + size + size % 2) or _are_chunks(data, start + size):
        return
    tail = data[start + size : start + size + rest]
    if (tail[-128:-125] == b"TAG" and len(tail) <= _SLACK + 128) or not tail.strip(b"\0"):
        return
    raise BadAudio(
        f"{name}: its header states {size} bytes of audio, and {rest} bytes follow that are not a chunk; "
        "all of it: ffmpeg -ignore_length 1 -i IN OUT.flac; only the stated part: ffmpeg -i IN OUT.flac"
    )


def _are_chunks(data: Data, at: int) -> bool:
    """Whether a chunk starts at ``at`` that ends within the file."""
    name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
    if len(name) < 4 or name in (b"RIFF", b"RF64") or not all(32 <= byte < 127 for byte in name):
        return False
    return at + 8 + size <= len(data) + _SLACK


def wav_part(data: Data, wave: Wave) -> Part:
    """A WAV of which the header states no size (a recorder that was stopped), with the size that it has.

    So too with GSM: libsndfile rounds sizes up to even ones, and decodes the odd byte as a block of its own.
    """
    head, size = bytearray(data[: wave.start]), wave.size
    if wave.format == GSM:
        size = size // _GSM_BLOCK * _GSM_BLOCK & ~1
    if head[:4] in (b"RF64", b"BW64"):
        # Its sizes of 64 bits are not stated either.
        head[:4] = b"RIFF"
        head = head.replace(b"ds64", b"JUNK", 1)
    for at, stated in ((4, wave.start + size - 8), (wave.start - 4, size)):
        head[at : at + 4] = min(stated, 0xFFFFFFFF).to_bytes(4, "big" if data[:4] == b"RIFX" else "little")
    return Part(((wave.start, wave.start + wave.size),), bytes(head))
