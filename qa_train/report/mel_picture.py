"""The log-mel spectrogram of a clip as a small picture, with what its axes mean."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np

from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.mel import bin_hertz, decibels, log_mel
from qa_train.data.audio.waveform import BadAudio

_BINS = 80
# Columns of 40 ms, each the loudest of its frames.
_FRAMES = 4
# Of the range below the loudest point, in dB: what the front end itself keeps.
_RANGE, _STEP = 80, 2
_HERTZ = (500, 1000, 2000, 4000)
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def mel_picture(wave: np.ndarray) -> dict[str, Any] | None:
    """``src`` (PNG as ``data:`` URI), ``hertz`` [(Hz, percent of the height)], ``seconds``, ``range`` in dB, ``ramp``.

    0 dB is the loudest point. wave: float [n] at 16 kHz, at most 30 s. None where it is too short for the front end.
    """
    try:
        mel = log_mel(wave, _BINS)[:, : FRONT_END.frames(len(wave))].numpy()
    except BadAudio:
        return None
    level = decibels(mel)
    level = np.pad(level - level.max(), ((0, 0), (0, -level.shape[1] % _FRAMES)), mode="edge")
    level = level.reshape(_BINS, -1, _FRAMES).max(axis=2)
    steps = np.clip((level + _RANGE) / _STEP, 0, _RANGE // _STEP).round().astype(np.uint8)
    at = np.interp(_HERTZ, bin_hertz(_BINS), np.arange(_BINS) + 0.5)
    ramp = ", ".join(f"rgb{colour}" for colour in _COLOURS)
    return {
        "src": "data:image/png;base64," + base64.b64encode(_png(steps[::-1])).decode("ascii"),
        "hertz": [(f"{hertz:,}", round(100 * float(up) / _BINS, 1)) for hertz, up in zip(_HERTZ, at, strict=True)],
        "seconds": f"{len(wave) / FRONT_END.sample_rate:.1f}",
        "range": _RANGE,
        "ramp": f"linear-gradient(90deg, {ramp})",
    }


def _png(pixels: np.ndarray) -> bytes:
    """uint8 [height, width], numbers of the palette's colours, as a PNG file."""
    height, width = pixels.shape
    at = np.linspace(0, len(_COLOURS) - 1, _RANGE // _STEP + 1)
    parts = [np.interp(at, range(len(_COLOURS)), part) for part in zip(*_COLOURS, strict=True)]
    palette = np.stack(parts, axis=1).round().astype(np.uint8).tobytes()
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
