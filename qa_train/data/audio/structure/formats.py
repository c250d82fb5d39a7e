"""Format detection by first bytes, and the contents of a file of each format: see ``containers``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qa_train.data.audio.structure.boxes import check_boxes, check_elements
from qa_train.data.audio.structure.chunks import GSM, MP3_IN_WAV, W64, check_size, wav_chunks, wav_part
from qa_train.data.audio.structure.containers import CONVERT, BadAudio, Container, Data, Part, syncsafe
from qa_train.data.audio.structure.flac import flac_parts
from qa_train.data.audio.structure.mpeg import adts_frame, adts_seconds, find_frames, mpeg_frame, mpeg_part
from qa_train.data.audio.structure.ogg import ogg_parts


@dataclass(frozen=True)
class _Sign:
    """Bytes at a place of a file, and the format that they mean."""

    raw: bytes
    name: str
    kind: str
    demuxer: str
    native: bool = False
    at: int = 0


_SIGNS = (
    _Sign(b"fLaC", "FLAC", "flac", "flac", True),
    _Sign(b"OggS", "Ogg", "ogg", "ogg", True),
    _Sign(b"FORM", "AIFF", "aiff", "aiff", True),
    _Sign(W64, "Wave64", "w64", "w64", True),
    _Sign(b"caff", "CAF", "caf", "caf", True),
    _Sign(b".snd", "AU", "au", "au", True),
    _Sign(b"NIST_1A", "NIST SPHERE", "sph", "nistsphere", True),
    _Sign(b"Creative Voice File", "VOC", "voc", ""),
    _Sign(b"\x1a\x45\xdf\xa3", "WebM or Matroska", "webm", "matroska"),
    _Sign(b"ftyp", "MP4 (m4a)", "m4a", "mov", at=4),
    _Sign(b"moov", "QuickTime", "mov", "mov", at=4),
    _Sign(b"mdat", "QuickTime", "mov", "mov", at=4),
    _Sign(b"wide", "QuickTime", "mov", "mov", at=4),
    _Sign(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA (ASF)", "wma", "asf"),
    _Sign(b"#!AMR", "AMR", "amr", ""),
    _Sign(b"\x0b\x77", "AC-3", "ac3", ""),
    _Sign(b"FLV\x01", "FLV", "flv", ""),
    _Sign(b"AVI ", "AVI", "avi", "", at=8),
    _Sign(b"MAC ", "Monkey's Audio", "ape", ""),
    _Sign(b"wvpk", "WavPack", "wv", ""),
    _Sign(b"TTA1", "True Audio", "tta", ""),
)
# Files that are not audio, and the remedy: by their first bytes, and texts in any case after spaces.
_NO_AUDIO = {
    b"\0\x05\x16\x07": "an AppleDouble file, which macOS adds next to others ('._NAME'): remove it",
    b"\x1f\x8b": "gzip: unpack it (gunzip)",
    b"PK\x03\x04": "a zip archive: unpack it (unzip)",
    b"\xfd7zXZ\0": "xz: unpack it (unxz)",
    **{b"BZh%d1AY&SY" % level: "bzip2: unpack it (bunzip2)" for level in range(1, 10)},
    b"\x28\xb5\x2f\xfd": "zstd: unpack it (unzstd)",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: unpack it (7z x)",
    b"MThd": "MIDI: notes, not sound",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF",
}
_TEXTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file: git lfs pull fetches it",
    b"<!doctype": "an HTML page, as of a failed download: fetch the file again",
    b"<html": "an HTML page, as of a failed download: fetch the file again",
    b"<?xml": "XML, as of a failed download: fetch the file again",
}
_WAVES = {b"RIFF": "WAV", b"RIFX": "WAV (RIFX)", b"RF64": "WAV (RF64)", b"BW64": "WAV (RF64)"}


def examine(data: Data) -> Container:
    """The format of the file, by its content; its name does not matter. Raises BadAudio when it is not audio, empty,
    truncated, or damaged as far as its structure shows.
    """
    if not len(data):
        raise BadAudio("an empty file (0 bytes): fetch it again, or remove it")
    start = 0
    while size := syncsafe(data, start):
        start += size
    if start and _named(data[start : start + 64]):
        # Tags before formats that have none.
        return _moved(_signed(bytes(data[start:])), start, len(data))
    if found := _signed(data):
        return found
    return _frames(data) or _refused(data)


def other_file(head: bytes) -> str | None:
    """The format of a file that is neither audio nor a tar, by its first bytes, with the remedy; None if unknown."""
    text = head[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    found = (name for signs, start in ((_NO_AUDIO, head), (_TEXTS, text)) for raw, name in signs.items()
             if start.startswith(raw))  # fmt: skip
    return next(found, None)


def _named(head: bytes) -> _Sign | str | None:
    """What these first bytes name: a sign, or the kind of WAV."""
    if head[8:12] == b"WAVE" and head[:4] in _WAVES:
        return _WAVES[head[:4]]
    return next((sign for sign in _SIGNS if head[sign.at : sign.at + len(sign.raw)] == sign.raw), None)


def _signed(data: Data) -> Container | None:
    """The format that the first bytes name."""
    sign = _named(data[:64])
    if sign is None:
        return None
    if isinstance(sign, str):
        return _wave(data, sign)
    if sign.name == "FLAC":
        return Container("FLAC", "flac", "flac", parts=flac_parts(data))
    if sign.name == "Ogg":
        parts, codec = ogg_parts(data)
        kind = "opus" if codec == "Opus" else "ogg"
        return Container(f"Ogg {codec}".strip(), kind, "ogg", native=codec != "Speex", parts=parts)
    if sign.native:
        check_size(data, sign.name)
    elif sign.demuxer == "mov":
        check_boxes(data, sign.name)
    elif sign.demuxer == "matroska":
        check_elements(data, sign.name)
    return Container(sign.name, sign.kind, sign.demuxer, sign.native)


def _wave(data: Data, name: str) -> Container:
    wave = wav_chunks(data, name)
    if wave.format == MP3_IN_WAV:
        inner = data[wave.start : wave.start + wave.size]
        at = find_frames(inner, mpeg_frame, 4)
        if at is not None:
            found = Container("MP3 in a WAV", "wav", "wav", parts=(mpeg_part("MP3 in a WAV", inner, at),))
            return _moved(found, wave.start, wave.start + wave.size)
    as_it_is = wave.known and (wave.format != GSM or not wave.size)
    return Container(name, "wav", "wav", parts=() if as_it_is else (wav_part(data, wave),))


def _frames(data: Data) -> Container | None:
    """Formats without a signature: AAC in ADTS, MPEG audio."""
    at = find_frames(data, adts_frame, 7)
    if at is not None:
        return Container("AAC (ADTS)", "aac", "aac", native=False, seconds=adts_seconds(data, at))
    at = find_frames(data, mpeg_frame, 4)
    if at is None:
        return None
    frame = mpeg_frame(data[at : at + 4])
    name = f"MP{frame.layer}" if frame else "MPEG"
    return Container(name, "mp3", "mp3", parts=(mpeg_part(name, data, at),))


def _moved(found: Container | None, by: int, size: int) -> Container:
    """The container of bytes that start at ``by``, by their places in the whole file."""
    assert found is not None
    parts = found.parts or (Part(((0, size - by),)),)
    moved = [replace(part, spans=tuple((start + by, stop + by) for start, stop in part.spans)) for part in parts]
    return replace(found, parts=tuple(moved))


def _refused(data: Data) -> Container:
    """BadAudio for a file that is of no format with sound."""
    if what := other_file(data[:64]):
        raise BadAudio(f"not a readable audio file: {what}")
    if not data[:65536].strip(b"\0"):
        raise BadAudio("not a readable audio file: it begins with zeros only, as a download that did not finish")
    if data[:3] == b"ID3":
        raise BadAudio("not a readable audio file: an ID3 tag, and no sound behind it: fetch it again")
    raise BadAudio(
        f"not a readable audio file: its first bytes ({data[:8].hex(' ')}) are of no known format; convert it "
        f"({CONVERT}; MP3 of a free bit rate: lame --decode IN OUT.wav); samples without a header: "
        "ffmpeg -f s16le -ar RATE -ac 1 -i IN OUT.flac"
    )
