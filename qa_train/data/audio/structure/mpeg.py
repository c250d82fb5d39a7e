"""Walking the frames of MPEG audio (MP3, MP2) and of AAC in ADTS: their number is the true length.

Sources: ISO/IEC 11172-3 and 13818-3 (headers; MPEG 2.5 as its decoders agree on), 14496-3 (ADTS), and the tags that
encoders write into a silent first frame: Xing, Info, VBRI.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from qa_train.data.audio.structure.containers import CONVERT, BadAudio, Data, Part, damaged, syncsafe

_V1, _V2, _V25 = 3, 2, 0
_KBITS = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {_V1: (44100, 48000, 32000), _V2: (22050, 24000, 16000), _V25: (11025, 12000, 8000)}
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
# A stream may begin inside a frame. After a tag, which some programs write with a wrong size, much more is searched.
_LEAD, _LEAD_BEHIND_TAG = 4096, 1 << 20
_ID3V1 = 128
# Tags of encoders, in place of a frame's sound, and their distance from its start (2 more with a checksum).
_ENCODER = re.compile(rb"Xing|Info|VBRI")
_PLACES = (13, 15, 21, 23, 36, 38)


@dataclass(frozen=True)
class Frame:
    """One frame by its header: bytes, samples (per channel), and what all frames of a stream share."""

    size: int
    samples: int
    rate: int
    channels: int
    layer: int
    version: int

    @property
    def stream(self) -> tuple[int, int, int, int]:
        """Equal for all frames that one decoder reads in a row."""
        return self.rate, self.channels, self.layer, self.version


@dataclass
class Walk:
    """The frames with sound: how many, and where, as few spans of bytes; and what encoders' tags among them state."""

    first: Frame
    count: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)
    # Frames that each Xing, Info or VBRI tag states; None where it states none.
    stated: list[int | None] = field(default_factory=list)
    # The file ends inside a frame.
    cut: bool = False


@lru_cache(maxsize=4096)
def mpeg_frame(head: bytes) -> Frame | None:
    """The frame with these four header bytes; None if they are not a header (or have a free-format bit rate)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    hertz = _RATES[version][rate]
    per_second = _KBITS[version == _V1, layer][bits - 1] * 1000
    if layer == 1:
        size, samples = (12 * per_second // hertz + padding) * 4, 384
    else:
        samples = 576 if layer == 3 and version != _V1 else 1152
        size = samples // 8 * per_second // hertz + padding
    return Frame(size, samples, hertz, 1 if head[3] >> 6 == 3 else 2, layer, version)


def adts_frame(head: bytes) -> Frame | None:
    """The same for the first seven bytes of an ADTS frame of AAC."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    rate, channels = head[2] >> 2 & 15, (head[2] & 1) << 2 | head[3] >> 6
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    if rate >= len(_AAC_RATES) or size < 7:
        return None
    return Frame(size, 1024 * ((head[6] & 3) + 1), _AAC_RATES[rate], channels, 0, head[1] >> 3 & 1)


def find_frames(data: Data, parse: Callable[[bytes], Frame | None], header: int) -> int | None:
    """Where the stream's first frame begins: three of one kind in a row, or all up to the end; None without such."""
    start = 0
    while size := syncsafe(data, start):
        start += size
    last = min(len(data), start + (_LEAD_BEHIND_TAG if start else _LEAD))
    zeros = data[start : start + _LEAD_BEHIND_TAG]
    at = start + len(zeros) - len(zeros.lstrip(b"\0"))
    last += at - start
    while (at := data.find(b"\xff", at, last)) >= 0:
        if _agree(data, at, parse, header):
            return at
        at += 1
    return None


def _agree(data: Data, at: int, parse: Callable[[bytes], Frame | None], header: int) -> bool:
    """Whether a frame starts at ``at`` and the two after it are of its stream, or the data end."""
    first = frame = parse(data[at : at + header])
    for _ in range(2):
        if frame is None or first is None or frame.stream != first.stream:
            return False
        at += frame.size
        if at == len(data) or data[at : at + 3] == b"TAG":
            return True
        frame = parse(data[at : at + header])
    return frame is not None and first is not None and frame.stream == first.stream


def walk(name: str, data: Data, start: int, parse: Callable[[bytes], Frame | None], header: int) -> Walk:
    """Count the frames from ``start`` to the end; tags between and after them are skipped.

    Raises BadAudio when there are other bytes between frames, or the format changes.
    """
    first = parse(data[start : start + header])
    assert first is not None
    found, at, begin, end = Walk(first), start, start, len(data)
    stream = first.stream
    # Where a frame would start that is an encoder's tag.
    encoders = (
        {hit.start() - place for hit in _ENCODER.finditer(data) for place in _PLACES} if first.layer == 3 else set()
    )
    while at + header <= end:
        frame = parse(data[at : at + header])
        if frame is not None and frame.stream == stream:
            if at + frame.size > end:
                found.cut = True
                break
            if at in encoders:
                found.spans += [(begin, at)] if at > begin else []
                found.stated.append(_stated_frames(data[at : at + frame.size]))
                begin = at + frame.size
            else:
                found.count += 1
            at += frame.size
            continue
        if at > begin:
            found.spans.append((begin, at))
        tag = _tag(data, at)
        if not tag:
            _only_the_end(name, data, at, parse, header, first)
            return found
        at += tag
        begin = at
    if begin < at <= end:
        found.spans.append((begin, at))
    return found


def _tag(data: Data, at: int) -> int:
    """Bytes of the tag at ``at`` (ID3v2, ID3v1, APEv2); 0 if there is no tag."""
    if data[at : at + 3] == b"TAG":
        return _ID3V1
    if data[at : at + 8] == b"APETAGEX":
        return 32 + int.from_bytes(data[at + 12 : at + 16], "little")
    return syncsafe(data, at)


def _only_the_end(
    name: str, data: Data, at: int, parse: Callable[[bytes], Frame | None], header: int, first: Frame
) -> None:
    """BadAudio when frames follow the non-frame bytes at ``at``: such bytes are harmless only at the end."""
    behind = at
    while (behind := data.find(b"\xff", behind)) >= 0:
        if _agree(data, behind, parse, header):
            found = parse(data[behind : behind + header])
            assert found is not None
            if behind == at and found.stream != first.stream:
                raise BadAudio(
                    f"{name}: from byte {at} on it has {found.rate} Hz and {found.channels} channels, before "
                    f"{first.rate} and {first.channels}: several recordings in one file; convert it: {CONVERT}"
                )
            raise damaged(name, f"the {behind - at} bytes at byte {at} are not frames")
        behind += 1


def mpeg_part(name: str, data: Data, start: int) -> Part:
    """What libsndfile must be given to decode every frame. Raises BadAudio where frames are missing.

    A Xing header that states the number of frames that are there is kept, with the exact cut that it describes. Any
    other stream is put behind a silent frame of the lowest bit rate: libsndfile guesses the length by the first frame's
    bit rate and never reads on, so this guess is always too long; the silent frame's samples are dropped.
    """
    found = walk(name, data, start, mpeg_frame, 4)
    count, stated = found.count, sum(frames or 0 for frames in found.stated)
    # Some encoders count their tag as well.
    if stated > count + len(found.stated):
        raise damaged(name, f"its header states {stated} frames, the file has {count}")
    if not count:
        raise BadAudio(f"{name}: it holds no samples: empty")
    if stated == count and len(found.stated) == len(found.spans) == 1 and found.spans[0][0] > start:
        return Part(((start, found.spans[0][1]),))
    if found.cut and stated != count:
        raise damaged(name, f"it ends inside its frame {count + 1}")
    samples = found.first.samples
    return Part(tuple(found.spans), _silent(data[start : start + 4]), samples, count * samples)


def _stated_frames(frame: bytes) -> int | None:
    """The number of frames that a Xing or Info tag states; None where it states none (VBRI is not read)."""
    hit = _ENCODER.search(frame)
    assert hit is not None
    at = hit.start()
    if hit[0] == b"VBRI" or len(frame) < at + 12 or not frame[at + 7] & 1:
        return None
    return int.from_bytes(frame[at + 8 : at + 12], "big")


def _silent(head: bytes) -> bytes:
    """A silent frame of the lowest bit rate for the stream of this header. Zeros mean: nothing is coded."""
    lowest = bytes([0xFF, head[1] | 1, head[2] & 0x0C | 0x10, head[3]])
    frame = mpeg_frame(lowest)
    assert frame is not None
    return lowest + bytes(frame.size - 4)


def adts_seconds(data: Data, start: int) -> float:
    """Length of AAC in ADTS frames from the one at ``start``. Raises BadAudio when it was cut."""
    found = walk("AAC (ADTS)", data, start, adts_frame, 7)
    if found.cut:
        raise damaged("AAC (ADTS)", f"it ends inside its frame {found.count + 1}")
    return found.count * found.first.samples / found.first.rate
