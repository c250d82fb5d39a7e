"""Audio as it comes out of pipes, recorders, phones and downloads: what must be read whole, and what is refused how.

The files in ``fixtures/audio`` were made by FFmpeg 5.1 and sox from 0.7 s of sound: a loud sweep of 0.35 s, then almost
silence, so that variable bit rates vary. The lengths beside them are those of FFmpeg's own decoder.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from qa_train.data.audio.structure.mpeg import mpeg_frame

FOLDER = Path(__file__).parent / "fixtures" / "audio"
MEDIA = ("aac.m4a", "adts.aac", "alac.m4a", "cut_copy.opus", "flac.oga", "fragments.mp4", "opus.caf", "speex.spx",
         "video.mp4", "webm.webm", "webm_pipe.webm", "wma.wma")  # fmt: skip
# Samples (per channel) and rate that FFmpeg decodes.
FFMPEG = {
    "aac.m4a": (31744, 44100),
    "adts.aac": (32768, 44100),
    "aiff.aiff": (5600, 8000),
    "alac.m4a": (11200, 16000),
    "au.au": (5600, 8000),
    "caf.caf": (5600, 8000),
    "cbr_pipe_mpeg25.mp3": (6912, 8000),
    "cut_copy.opus": (23688, 48000),
    "flac.oga": (11200, 16000),
    "fragments.mp4": (32768, 44100),
    "id.flac": (11200, 16000),
    "ima.wav": (12246, 16000),
    "layer2.mp2": (11520, 16000),
    "mp3_in_riff.wav": (12672, 16000),
    "opus.caf": (34560, 48000),
    "opus.opus": (33600, 48000),
    "pipe.flac": (11200, 16000),
    "pipe.wav": (5600, 8000),
    "rf64.wav": (5600, 8000),
    "speex.spx": (11200, 16000),
    "sphere.sph": (5600, 8000),
    "vbr_pipe.mp3": (32256, 44100),
    "vbr_pipe_mpeg2.mp3": (18432, 24000),
    "video.mp4": (11264, 16000),
    "vorbis.ogg": (11264, 16000),
    "w64.w64": (5600, 8000),
    "webm.webm": (33600, 48000),
    "webm_pipe.webm": (33600, 48000),
    "wma.wma": (10752, 16000),
    "xing_id3.mp3": (30870, 44100),
}
# FFmpeg leaves the last 64 samples of a Vorbis stream in; an Opus stream without its end's mark has up to 312 more.
SLACK_S = 0.0066
ID3V2 = b"ID3\x03\0\0\0\0\0\x0a" + bytes(10)
ID3V1 = b"TAG" + bytes(125)
# A header, an item, a footer; the size counts item and footer.
_APE = b"APETAGEX" + struct.pack("<IIII", 2000, 72, 1, 0xA0000000) + bytes(48) + bytes(32)


def raw(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def seconds(name: str) -> float:
    samples, rate = FFMPEG[name]
    return samples / rate


def _wav(data_size: int | None = None, extra: bytes = b"", samples: int = 5600) -> bytes:
    buffer = io.BytesIO()
    wave = np.random.default_rng(0).normal(0, 0.1, samples)
    soundfile.write(buffer, wave, 8000, format="WAV", subtype="PCM_16")
    made = bytearray(buffer.getvalue() + extra)
    at = made.index(b"data") + 4
    if data_size is not None:
        made[at : at + 4] = struct.pack("<I", data_size)
    return bytes(made)


def _unsized(name: str, chunk: bytes, place: int, width: int, size: bytes) -> bytes:
    """The file with another size, ``place`` bytes behind the name of its chunk."""
    made = bytearray(raw(name))
    at = made.index(chunk) + place
    made[at : at + width] = (size * width)[:width]
    return bytes(made)


def _ogg(rate: int, duration_s: float = 0.5) -> bytes:
    buffer = io.BytesIO()
    wave = np.random.default_rng(0).normal(0, 0.1, int(rate * duration_s))
    soundfile.write(buffer, wave, rate, format="OGG", subtype="VORBIS")
    return buffer.getvalue()


def _gsm() -> bytes:
    """13 blocks, an odd number of an odd size."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).normal(0, 0.1, 4160), 8000, format="WAV", subtype="GSM610")
    return buffer.getvalue()


def _tagged(tag: bytes) -> bytes:
    """An MP3 without a Xing header, behind a frame that holds an encoder's tag instead of sound."""
    whole = raw("vbr_pipe.mp3")
    whole = whole[whole.index(b"\xff\xfb") :]
    first = mpeg_frame(whole[:4])
    assert first is not None
    return (whole[:4] + bytes(32) + tag + bytes(first.size))[: first.size] + whole


def _flac(total: int) -> bytes:
    made = bytearray(raw("id.flac"))
    made[21:26] = (made[21] >> 4 << 36 | total).to_bytes(5, "big")
    return bytes(made)


def _counted() -> bytes:
    """A FLAC that states frames of 576 to 4608 samples, and numbers them as those of one size."""
    made = bytearray(raw("id.flac"))
    made[8:12] = struct.pack(">HH", 576, 4608)
    return bytes(made)


def _two_rates() -> bytes:
    """Two frames of 4096 samples: one of 16 kHz, one of 8 kHz."""
    wave, made = np.random.default_rng(0).normal(0, 0.1, 8192), []
    for rate in (16_000, 8_000):
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, rate, format="FLAC")
        made.append(buffer.getvalue())
    second = made[1].index(b"\xff\xf8\xc4\x08\1")
    return made[0][:second] + made[1][second:]


# name -> (bytes, seconds): made of the files, and still read whole.
WHOLE: dict[str, tuple[bytes, float]] = {
    **{name: (raw(name), seconds(name)) for name in FFMPEG if name not in MEDIA},
    "two Ogg Opus streams": (2 * raw("opus.opus"), 2 * 0.7),
    "Vorbis of several pages": (_ogg(44_100, 2.3), 2.3),
    "three Ogg Vorbis streams": (3 * raw("vorbis.ogg"), 3 * 0.7),
    "two FLAC files in one": (raw("id.flac") + raw("pipe.flac"), 2 * 0.7),
    "FLAC of unknown length with an ID3v2 tag": (ID3V2 + raw("pipe.flac"), 0.7),
    "FLAC of unknown length with an ID3v1 tag": (raw("pipe.flac") + ID3V1, 0.7),
    "FLAC whose header says too little": (_flac(4000), 0.7),
    "FLAC that counts frames of several sizes": (_counted(), 0.7),
    "MP3 with tags before and behind": (ID3V2 + raw("vbr_pipe.mp3") + ID3V1, seconds("vbr_pipe.mp3")),
    "two MP3 files in one": (raw("vbr_pipe.mp3") + ID3V2 + raw("vbr_pipe.mp3"), 2 * seconds("vbr_pipe.mp3")),
    "two MP3 files with Xing headers in one": (2 * raw("xing_id3.mp3"), 2 * 28 * 1152 / 44100),
    "MP3 from the middle of a broadcast": (raw("vbr_pipe.mp3")[700:], 0.0),
    "MP3 with a VBRI header": (_tagged(b"VBRI\0\x01" + bytes(30)), seconds("vbr_pipe.mp3")),
    "MP3 with a Xing header without a count": (_tagged(b"Xing\0\0\0\0"), seconds("vbr_pipe.mp3")),
    "MP3 whose header counts itself": (_tagged(b"Xing\0\0\0\1\0\0\0\x1d"), seconds("vbr_pipe.mp3")),
    "MP3 whose header says too little": (_tagged(b"Info\0\0\0\1\0\0\0\x09"), seconds("vbr_pipe.mp3")),
    "MP3 with APE tags between": (
        raw("vbr_pipe.mp3") + _APE + ID3V1 + ID3V2 + raw("vbr_pipe.mp3") + _APE, 2 * seconds("vbr_pipe.mp3")
    ),
    "MP3 with a tag longer than the file": (b"ID3\x03\0\0\0\x10\0\0" + raw("vbr_pipe.mp3"), seconds("vbr_pipe.mp3")),
    "MP3 with zeros behind it": (raw("vbr_pipe.mp3") + bytes(5000), seconds("vbr_pipe.mp3")),
    "WAV of size 0": (_wav(0), 0.7),
    "WAV of size 0x7fffffdb": (_wav(0x7FFFFFDB), 0.7),
    "WAV of size 0xffffffff": (_wav(0xFFFFFFFF), 0.7),
    "RF64 from a pipe": (_unsized("rf64.wav", b"ds64", 8, 24, b"\0"), 0.7),
    "AIFF from sox into a pipe": (_unsized("aiff.aiff", b"SSND", 4, 4, b"\x7f\0\0\x08"), 0.7),
    "WAV with a chunk behind the audio": (_wav(extra=b"LIST" + struct.pack("<I", 4000) + bytes(4000)), 0.7),
    "GSM of an odd size": (_gsm(), 4160 / 8000),
    "GSM of size 0, from a pipe": (_gsm()[:56] + bytes(4) + _gsm()[60:], 4160 / 8000),
    "AIFF with an ID3v2 tag": (ID3V2 + raw("aiff.aiff"), 0.7),
    "WAV with zeros behind the audio": (_wav(extra=bytes(9000)), 0.7),
}  # fmt: skip

_HALF: Callable[[str], bytes] = lambda name: raw(name)[: int(len(raw(name)) * 0.6)]  # noqa: E731
# name -> (bytes, part of the message)
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", r"empty file \(0 bytes\)"),
    "a WAV without samples": (_wav(samples=0), "no samples|empty"),
    "a WAV that ends early": (_wav()[:6000], r"WAV: its header states 11200 bytes of audio, the file has 5956.*ffmpeg"),
    "a WAV with more samples than it says": (_wav(6000), r"WAV: its header states 6000 bytes of audio, and 5200 bytes.*"
                                                         r"ffmpeg -ignore_length 1"),
    "ten channels": (b"".join([_wav()[:22], struct.pack("<H", 10), _wav()[24:]]), "10 channels.*ffmpeg"),
    "AIFF": (_HALF("aiff.aiff"), "AIFF: its header states .* bytes of audio.*damaged or cut.*ffmpeg"),
    "AU": (_HALF("au.au"), "AU: its header states .* bytes of audio.*damaged or cut.*ffmpeg"),
    "CAF": (_HALF("caf.caf"), "CAF: its header states .* bytes of audio.*damaged or cut.*ffmpeg"),
    "Wave64": (_HALF("w64.w64"), "Wave64: its header states .* bytes of audio.*damaged or cut.*ffmpeg"),
    "RF64": (_HALF("rf64.wav"), r"WAV \(RF64\): its header states .* bytes of audio.*damaged or cut.*ffmpeg"),
    "SPHERE": (_HALF("sphere.sph"), "NIST SPHERE: its header states .* bytes of audio.*damaged or cut.*ffmpeg"),
    "MP3 with a Xing header": (_HALF("xing_id3.mp3"), r"MP3: its header states 28 frames, the file has \d+.*ffmpeg"),
    "MP3 without one": (raw("vbr_pipe.mp3")[:-100], r"MP3: it ends inside its frame \d+.*ffmpeg"),
    "MP3 in a WAV": (_HALF("mp3_in_riff.wav"), "WAV: its header states .* bytes of audio.*damaged or cut.*ffmpeg"),
    "an MP3 with a hole": (raw("vbr_pipe.mp3")[:3000] + bytes(900) + raw("vbr_pipe.mp3")[3900:], "MP3: .*not frames"),
    "two MP3 of unequal rates": (raw("vbr_pipe.mp3") + raw("vbr_pipe_mpeg2.mp3"), "MP3: .*44100.*several record"),
    "Ogg Opus": (_HALF("opus.opus"), "Ogg Opus: it ends inside a page.*ffmpeg"),
    "Ogg Vorbis": (_HALF("vorbis.ogg"), "Ogg Vorbis: it ends inside a page.*ffmpeg"),
    "Ogg with a hole": (raw("vorbis.ogg")[:4000] + b"x" * 99 + raw("vorbis.ogg")[4000:] * 2, "Ogg Vorbis: .*ffmpeg"),
    "two Ogg of unequal rates": (raw("vorbis.ogg") + _ogg(8000), "Ogg Vorbis: its stream 2 has 8000 Hz.*ffmpeg"),
    "FLAC": (_HALF("id.flac"), "FLAC: it ends inside its last frame.*ffmpeg"),
    "FLAC without frames": (raw("id.flac")[:8288], "FLAC: its header states 11200 samples"),
    "FLAC of unknown length": (_HALF("pipe.flac"), "FLAC: it ends inside its last frame.*ffmpeg"),
    "FLAC that says too much": (_flac(99_999), "FLAC: its header states 99999 samples, its frames have 11200.*ffmpeg"),
    "FLAC of two rates": (_two_rates(), "FLAC: .*changes rate or channels.*ffmpeg"),
    "AC-3": (raw("ac3.ac3"), "AC-3: .*ffmpeg"),
    "True Audio behind a tag": (ID3V2 + b"TTA1" + bytes(60), "True Audio: .*ffmpeg"),
    "AMR": (b"#!AMR\n" + bytes(64), "AMR: .*ffmpeg"),
    "AVI": (b"RIFF\0\0\0\0AVI LIST" + bytes(64), "AVI: .*ffmpeg"),
    "raw samples": (np.random.default_rng(0).integers(-99, 99, 4000, np.int16).tobytes(), "no known.*ffmpeg -f s16le"),
    "zeros": (bytes(4000), "zeros only"),
    "AppleDouble": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(100), "AppleDouble.*remove it"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(60), "gzip: .*gunzip"),
    "a zip archive": (b"PK\x03\x04" + bytes(60), "zip archive: .*unzip"),
    "a page": (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML page.*fetch"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
    "an MP3 cut inside its tag": (b"ID3\x03\0\0\0\x10\0\0" + bytes(range(1, 200)), "ID3 tag, and no sound.*fetch"),
    "MP3 of a free bit rate": (bytes.fromhex("fffb0064") + bytes(200), "lame --decode"),
    "MIDI": (b"MThd\0\0\0\x06" + bytes(60), "MIDI"),
}  # fmt: skip
