"""The true length of a FLAC: the last frame's header has its start and its size.

Source: RFC 9639, sections 8.2 (STREAMINFO) and 9.1 (frame header).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from qa_train.data.audio.structure.containers import Data, Part, damaged

_NAME = "FLAC"
_SIGNATURE = b"fLaC\0\0\0\x22"
_STREAMINFO = 34
_MAX_TOTAL = 1 << 36
# Frame headers that are looked at from the end; a byte pattern in a frame's data may look like one.
_LAST = 16
# Rates of frames in Hz by their code; those written behind it: unit and bytes.
_RATES = (0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)
_WRITTEN_RATES = {12: (1000, 1), 13: (1, 2), 14: (10, 2)}


def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    """The checksum of each byte."""
    values = []
    for value in range(256):
        value <<= bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) else 0)
        values.append(value)
    return tuple(values)


_CRC8, _CRC16 = _crc_table(0x107, 8), _crc_table(0x18005, 16)


@dataclass(frozen=True)
class _Info:
    """From STREAMINFO: least and largest block size in samples, rate in Hz, channels, bits."""

    block: int
    largest: int
    rate: int
    channels: int
    bits: int


def flac_parts(data: Data) -> tuple[Part, ...]:
    """The FLAC and those joined to it, each with its true length; () if the stated length is correct.

    Raises BadAudio when frames are missing at the end.
    """
    # From the end: Python's rfind takes half as long as its find.
    bounds = [len(data)]
    while (found := data.rfind(_SIGNATURE, len(_SIGNATURE), bounds[-1])) >= 0:
        bounds.append(found)
    parts = [_part(data, a, b) for a, b in itertools.pairwise([0, *reversed(bounds)])]
    return tuple(parts) if len(parts) > 1 or parts[0].head else ()


def _part(data: Data, start: int, stop: int) -> Part:
    whole = Part(((start, stop),))
    raw = data[start + 8 : start + 8 + _STREAMINFO]
    if data[start : start + 8] != _SIGNATURE or len(raw) < _STREAMINFO:
        return whole  # the decoder reports the fault
    word = int.from_bytes(raw[10:18], "big")
    blocks = int.from_bytes(raw[:2], "big"), int.from_bytes(raw[2:4], "big")
    info = _Info(*blocks, word >> 44, (word >> 41 & 7) + 1, (word >> 36 & 31) + 1)
    stated = word & _MAX_TOTAL - 1
    first = _first_frame(data, start, stop)
    if first >= stop:
        raise damaged(_NAME, f"its header states {stated or 'an unknown number of'} samples, no frame follows")
    # Frames of old encoders (Flake to 0.11) are of several sizes and counted: no header has its place.
    counted = info.block < info.largest and data[first : first + 2] == b"\xff\xf8"
    if stated and (counted or _ends_at(data, first, stop, info, stated)):
        return whole
    total = _count(data, first, stop, info)
    if total is None:
        return whole
    if total < stated:
        raise damaged(_NAME, f"its header states {stated} samples, its frames have {total}")
    # A file written to a pipe does not state its length.
    head = data[start : start + 18] + (word >> 36 << 36 | total).to_bytes(8, "big")
    return Part(((start + 26, stop),), head)


def _first_frame(data: Data, start: int, stop: int) -> int:
    """Where the frames begin: behind the metadata blocks."""
    at, last = start + 4, False
    while not last and at + 4 <= stop:
        last = bool(data[at] & 0x80)
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return at


def _ends_at(data: Data, first: int, stop: int, info: _Info, total: int) -> bool:
    """Whether one of the last frame headers ends the stream at ``total`` samples."""
    at, sync = stop, data[first : first + 2]
    for _ in range(_LAST):
        if (at := data.rfind(sync, first, at)) < 0:
            return False
        frame = _frame(data[at : at + 16], info)
        if frame is not None and frame[0] + frame[1] == total:
            return True
    return False


def _count(data: Data, first: int, stop: int, info: _Info) -> int | None:
    """Samples of all frames, from the first on, each following the previous one; None without a first one.

    Raises BadAudio when the frames end long before the file.
    """
    at = header = first
    frame = _frame(data[at : at + 16], info)
    if frame is None:
        return None
    begin = last = frame[0]
    end, most = frame[0] + frame[1], max(frame[1], info.block)
    sync = data[at : at + 2]
    while (at := data.find(sync, at + 2, stop)) >= 0:
        frame = _frame(data[at : at + 16], info)
        # Data of a frame may look like a header; its number would be any.
        if frame is None or not end <= frame[0] <= end + 8 * most:
            continue
        if frame[0] > end:
            raise damaged(_NAME, f"samples {end} to {frame[0]} are missing")
        last, end, header = end, end + frame[1], at
    # No frame is longer than its samples are without compression.
    longest = 64 + info.channels * (info.bits + 1) * most // 8
    if not _ends_whole(data[header : min(stop, header + longest)]):
        raise damaged(_NAME, f"it ends inside its last frame, or changes rate or channels, behind {last} samples")
    return end - begin


def _ends_whole(rest: bytes) -> bool:
    """Whether bytes that start with a frame have all of it, by its CRC-16; zeros and an ID3v1 tag may follow."""
    least = len((rest[:-128] if rest[-128:-125] == b"TAG" else rest).rstrip(b"\0"))
    value = 0
    for at, byte in enumerate(rest, start=1):
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
        if value == 0 and at >= least:
            return True
    return False


def _frame(head: bytes, info: _Info) -> tuple[int, int] | None:
    """(first sample, samples) of the frame with this header; None if it is not part of this stream."""
    if len(head) < 6 or head[0] != 0xFF or head[1] not in (0xF8, 0xF9) or head[3] & 1:
        return None
    size, rate, bits = head[2] >> 4, head[2] & 15, head[3] >> 1 & 7
    channels = head[3] >> 4
    if size == 0 or rate == 15 or bits == 3 or channels > 10 or (channels + 1 if channels < 8 else 2) != info.channels:
        return None
    ones = 8 - (head[4] ^ 0xFF).bit_length()
    if ones == 1 or ones > 7:
        return None
    at = 4 + max(1, ones)
    number = head[4] & (0x7F if ones == 0 else 0xFF >> (ones + 1))
    for byte in head[5:at]:
        number = number << 6 | byte & 0x3F
    explicit = {6: 1, 7: 2}.get(size, 0)
    samples = int.from_bytes(head[at : at + explicit], "big") + 1 if explicit else _block(size)
    at += explicit
    # Without a rate of its own a frame has that of the stream.
    unit, width = _WRITTEN_RATES.get(rate, (0, 0))
    hertz = unit * int.from_bytes(head[at : at + width], "big") if unit else _RATES[rate] or info.rate
    at += width
    if at >= len(head) or hertz != info.rate or _crc8(head[:at]) != head[at]:
        return None
    return (number if head[1] & 1 else number * info.block), samples


def _block(code: int) -> int:
    if code == 1:
        return 192
    return 576 << (code - 2) if code <= 5 else 256 << (code - 8)


def _crc8(raw: bytes) -> int:
    value = 0
    for byte in raw:
        value = _CRC8[value ^ byte]
    return value
