"""Synthetic speech in many voices by espeak-ng, from the ``espeakng-loader`` package (no system install).

Voice, speed, pitch and intonation range of an utterance are drawn from (seed, text). The engine keeps
the phase of its oscillators from one utterance to the next and offers no reset, so samples repeat
exactly only when a fresh process speaks the same list of texts: `data_pipelines.clips.make_shards` therefore
makes each shard in a process of its own, and the result does not depend on the number of processes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from data_pipelines.clips.picks import draw, pick
from qa_train.data.audio.waveform import SAMPLE_RATE

# File names of espeak-ng's English accents and of its speaker variants. The held-out ones are voices
# for tests: no training utterance uses them, so a test voice is new in accent and in timbre.
# Chosen by measurement among 60 variants: those that Whisper tiny.en understands best (its word error
# rate on eight sentences in en-us: .31 to .5, female voices up to .66), without those that breathe with
# the C library's random numbers and never sound the same twice (f2, f3, f5, sandro, victor).
TRAIN_ACCENTS = ("en-us", "en", "en-us-nyc", "en-gb-scotland")
TRAIN_VARIANTS = (
    *("m1", "m2", "m4", "m5", "m6", "m7", "m8", "Alex", "Denis", "Diogo", "Hugo", "Mike", "Gene"),
    *("michel", "rob", "marcelo", "max", "quincy", "gustave", "f1", "f4", "steph", "belinda", "Annie"),
)
HELD_OUT_ACCENTS = ("en-gb-x-rp",)
HELD_OUT_VARIANTS = ("m3", "robert", "john", "linda")

_RATE_WPM = (130, 200)
_PITCH = (30, 65)
_RANGE = (35, 65)

# Constants of espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_PARAMETER_RATE, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 3, 4
_POSITION_CHARACTER = 1
_CHARS_UTF8 = 1


@dataclass(frozen=True)
class Voice:
    """Settings of one utterance: espeak voice name, words per minute, pitch and range (0-99)."""

    name: str
    rate_wpm: int
    pitch: int
    range: int


def _between(bounds: tuple[int, int], *names: object) -> int:
    return bounds[0] + int(draw(*names) * (bounds[1] - bounds[0] + 1))


def draw_voice(text: str, *, seed: int, held_out: bool = False) -> Voice:
    """The voice of ``text``; ``held_out`` draws from the voices kept for testing."""
    accents = HELD_OUT_ACCENTS if held_out else TRAIN_ACCENTS
    variants = HELD_OUT_VARIANTS if held_out else TRAIN_VARIANTS
    return Voice(
        name=f"{pick(accents, seed, text, 'accent')}+{pick(variants, seed, text, 'variant')}",
        rate_wpm=_between(_RATE_WPM, seed, text, "rate"),
        pitch=_between(_PITCH, seed, text, "pitch"),
        range=_between(_RANGE, seed, text, "range"),
    )


class Espeak:
    """One espeak-ng engine; the library keeps global state, so use one per process."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ValueError(
                "speech synthesis needs the package espeakng-loader: pip install espeakng-loader"
            ) from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data_path = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate: int = self._library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data_path, 0)
        if self.sample_rate <= 0:
            raise ValueError(
                f"espeak-ng does not start with its data in {data_path.decode()}: reinstall espeakng-loader"
            )
        # An unknown variant is ignored by the library: check the names ourselves.
        self._variants = {path.name for path in (Path(data_path.decode()) / "voices/!v").iterdir()}
        self._chunks: list[np.ndarray] = []
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        # The library holds a bare pointer: the callback must live as long as the engine.
        self._callback = callback_type(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, num_samples: int, _events) -> int:  # type: ignore[no-untyped-def]
        if samples and num_samples > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(num_samples,)).copy())
        return 0

    def speak(self, text: str, voice: Voice) -> np.ndarray:
        """``text`` in ``voice``: mono float32 [num_samples] at 16 kHz."""
        library = self._library
        variant = voice.name.partition("+")[2]
        if (variant and variant not in self._variants) or library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice.name!r}")
        library.espeak_SetParameter(_PARAMETER_RATE, voice.rate_wpm, 0)
        library.espeak_SetParameter(_PARAMETER_PITCH, voice.pitch, 0)
        library.espeak_SetParameter(_PARAMETER_RANGE, voice.range, 0)
        self._chunks = []
        data = text.encode() + b"\0"
        library.espeak_Synth(data, len(data), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        library.espeak_Synchronize()
        if not self._chunks:
            raise ValueError(f"espeak-ng gave no sound for {text!r}")
        wave = np.concatenate(self._chunks).astype(np.float32) / 32768.0
        return np.asarray(soxr.resample(wave, self.sample_rate, SAMPLE_RATE), dtype=np.float32)
