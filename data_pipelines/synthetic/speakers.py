"""Text to speech: the built-in espeak engine, any command, or an OpenAI-compatible HTTP endpoint.

A synthesiser is chosen by a text: ``espeak``; ``command:PROGRAM ARGUMENTS`` with ``{voice}``, ``{speed}``, ``{out}``
and ``{text}`` in the arguments (without ``{text}``, the text is its standard input; without ``{out}``, the sound file
is its standard output); or the address of an endpoint such as ``http://HOST/v1/audio/speech``. A command is run as it
is, by no shell, and only when the user names one.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.clips.picks import between, pick
from data_pipelines.synthetic.synth import Espeak, draw_voice
from qa_train.data.audio.waveform import BadAudio, read_clip
from qa_train.utils.retry import retried

log = logging.getLogger(__name__)

SPEEDS = (0.85, 1.2)
_MAX_ANSWER_BYTES = 64 << 20
_WAIT_S = 1.0


@dataclass(frozen=True)
class Speech:
    """One utterance: mono float32 [n] at 16 kHz, and how it was made."""

    wave: np.ndarray
    voice: str
    speed: float


Speaker = Callable[[str, int, bool], Speech]


@dataclass(frozen=True)
class SpeakerOptions:
    """How to speak; ``voices`` are names that the command or endpoint knows (espeak has its own)."""

    tts: str = "espeak"
    voices: tuple[str, ...] = ()
    model: str = "tts-1"
    # Name of the environment variable that holds the endpoint's key; the key itself is written nowhere.
    key_env: str = ""
    timeout_s: float = 120.0
    retries: int = 3

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> SpeakerOptions:
        """From the settings of a builder."""
        return cls(settings["tts"], tuple(settings["voices"]), settings["tts_model"], settings["key_env"])


def open_speaker(options: SpeakerOptions) -> Speaker:
    """A function (text, seed, held out) -> Speech. The voice and speed depend on (seed, text) alone.

    Raises:
        ValueError: an unknown kind of synthesiser, or one that cannot be used.
    """
    if options.tts == "espeak":
        return _espeak()
    if not options.voices:
        raise ValueError(f"tts={options.tts.split(':')[0]} needs voices=[NAME,...] that it knows")
    if options.tts.startswith("command:"):
        words = shlex.split(options.tts.removeprefix("command:"))
        if not words:
            raise ValueError("tts=command: needs a program, e.g. tts='command:piper --model {voice} -f {out}'")
        return _other(options, lambda text, voice, speed: _run(words, text, voice, speed, options.timeout_s))
    if options.tts.startswith(("http://", "https://")):
        return _other(options, lambda text, voice, speed: _ask(options, text, voice, speed))
    raise ValueError(f"tts={options.tts!r}: use espeak, command:PROGRAM ..., or the address of an HTTP endpoint")


def _espeak() -> Speaker:
    engine = Espeak()

    def speak(text: str, seed: int, held_out: bool) -> Speech:
        voice = draw_voice(text, seed=seed, held_out=held_out)
        # 160 words a minute is its usual pace.
        return Speech(engine.speak(text, voice), f"espeak {voice.name}", round(voice.rate_wpm / 160, 3))

    return speak


def _other(options: SpeakerOptions, make: Callable[[str, str, float], bytes]) -> Speaker:
    # A fifth of the voices, at least one of two, are kept for tests.
    kept = max(1, len(options.voices) // 5) if len(options.voices) > 1 else 0
    groups = (options.voices[kept:], options.voices[:kept])

    def speak(text: str, seed: int, held_out: bool) -> Speech:
        voices = groups[held_out]
        if not voices:
            raise ValueError("split=test needs a voice of its own: give at least two voices=")
        voice = pick(voices, seed, text, "voice")
        speed = round(between(SPEEDS, seed, text, "speed"), 2)
        try:
            return Speech(read_clip(make(text, voice, speed)), voice, speed)
        except BadAudio as error:
            raise ValueError(f"the synthesiser gave no sound file for {text!r} in voice {voice!r}: {error}") from error

    return speak


def _run(words: list[str], text: str, voice: str, speed: float, timeout_s: float) -> bytes:
    """The bytes of the sound file that the command makes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speech.wav"
        values = {"{voice}": voice, "{speed}": str(speed), "{out}": str(out), "{text}": text}
        command = [_filled(word, values) for word in words]
        try:
            done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=timeout_s, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ValueError(f"tts command {words[0]}: {error}") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            raise ValueError(f"tts command {words[0]} ended with {done.returncode} for {text!r}: {said}")
        if not any("{out}" in word for word in words):
            return done.stdout
        if not out.is_file():
            raise ValueError(f"tts command {words[0]} ended with code 0 but wrote no {{out}} for {text!r}")
        return out.read_bytes()


def _filled(word: str, values: dict[str, str]) -> str:
    # In one pass over the word: braces inside the text stay what they are.
    for name, value in values.items():
        if name in word:
            before, _, after = word.partition(name)
            return _filled(before, values) + value + _filled(after, values)
    return word


def _ask(options: SpeakerOptions, text: str, voice: str, speed: float) -> bytes:
    """The bytes that the endpoint answers with; failures of the line and of the server are tried again."""
    body: dict[str, Any] = {"model": options.model, "input": text, "voice": voice, "speed": speed}
    body["response_format"] = "wav"
    headers = {"Content-Type": "application/json"}
    if options.key_env:
        if options.key_env not in os.environ:
            raise ValueError(f"key_env={options.key_env}: no such environment variable")
        headers["Authorization"] = f"Bearer {os.environ[options.key_env]}"
    request = urllib.request.Request(options.tts, json.dumps(body).encode(), headers)

    def once() -> bytes:
        with urllib.request.urlopen(request, timeout=options.timeout_s) as response:
            return bytes(response.read(_MAX_ANSWER_BYTES))

    try:
        return retried(
            once,
            may_pass=_may_pass,
            attempts=options.retries + 1,
            first_wait_s=_WAIT_S,
            longest_wait_s=60.0,
            what=f"speech from {options.tts}",
            tell=log.info,
        )
    except urllib.error.HTTPError as error:
        said = error.read(300).decode(errors="replace")
        raise ValueError(f"{options.tts} answers {error.code} for {text!r}: {said}") from error
    except OSError as error:
        raise ValueError(f"{options.tts} cannot be asked: {error}") from error


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 429, 500, 502, 503, 504)
    return isinstance(error, OSError)
