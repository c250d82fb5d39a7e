"""Recordings as data URIs, so that the page plays them without any other file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile as sf

from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.table_clip import clip_source
from qa_train.data.audio.waveform import read_clip
from qa_train.report.document import ogg_uri

MAX_SECONDS = 20.0


def opus_bytes(wave: np.ndarray) -> bytes:
    """A 16 kHz mono float waveform as an Ogg Opus file (about 3 kB per second of speech)."""
    buffer = io.BytesIO()
    sf.write(buffer, wave, FRONT_END.sample_rate, format="OGG", subtype="OPUS")
    return buffer.getvalue()


def shortened(clip: str | Path | np.ndarray) -> tuple[np.ndarray, bool]:
    """(The waveform [n] of a clip at 16 kHz, at most ``MAX_SECONDS`` of it; whether that is not all)."""
    wave = clip if isinstance(clip, np.ndarray) else read_clip(clip_source(clip), max_duration_s=3600.0)
    limit = int(MAX_SECONDS * FRONT_END.sample_rate)
    return wave[:limit], len(wave) > limit


def data_uri(clip: str | Path | np.ndarray) -> tuple[str, bool]:
    """(``data:`` URI, whether the clip was shortened to ``MAX_SECONDS`` for the page)."""
    wave, cut = shortened(clip)
    return ogg_uri(opus_bytes(wave)), cut
