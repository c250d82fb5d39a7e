"""Signs that a model invents words: loops, too many words, another model that hears others. And where clips are cut."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

from qa_train.data.audio.waveform import SAMPLE_RATE
from qa_train.eval.scores.normalise import transcript_words
from qa_train.eval.scores.task_metrics import word_edits

_PHRASE = 8
_QUIET = SAMPLE_RATE // 10


def compression_ratio(text: str) -> float:
    """Bytes in UTF-8 per byte of their zlib stream, as Whisper takes it to recognise loops (openai/whisper)."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw))


def repeats(units: Sequence[str]) -> int:
    """How often the most repeated phrase of up to 8 units occurs in a row; 1 if none is repeated, 0 without units."""
    most = min(1, len(units))
    for size in range(1, _PHRASE + 1):
        run = 0
        for before, now in zip(units, units[size:], strict=False):
            run = run + 1 if before == now else 0
            most = max(most, run // size + 1)
    return most


def word_difference(one: str, other: str, language: str | None) -> float:
    """Wrong words per word of the longer of two transcripts (of zh, yue and ja: characters): 0 to 1."""
    units = [transcript_words(text, language) for text in (one, other)]
    longest = max(map(len, units))
    return float(word_edits(units[:1], units[1:])[0, 0]) / longest if longest else 0.0


def windows(wave: np.ndarray, longest_s: float) -> list[tuple[int, int]]:
    """[start, stop) in samples of windows of at most ``longest_s``, which together are the whole clip.

    Each ends in the middle of the quietest 0.1 s of its last third. None is shorter than a quarter of the longest.
    """
    longest, start, found = math.floor(longest_s * SAMPLE_RATE), 0, []
    while (room := len(wave) - start) > longest:
        last = start + min(longest, room * 3 // 4)
        first = last - (last - start) // 3
        frames = wave[first : first + (last - first) // _QUIET * _QUIET].reshape(-1, _QUIET)
        quietest = int(np.square(frames, dtype=np.float64).mean(axis=1).argmin())
        stop = first + quietest * _QUIET + _QUIET // 2
        found.append((start, stop))
        start = stop
    return [*found, (start, len(wave))]
