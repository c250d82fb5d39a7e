"""Talk with a checkpoint in the terminal: one question, or a conversation that remembers its clips."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

import numpy as np

from qa_train.config import ChatConfig
from qa_train.data.audio.waveform import SAMPLE_RATE, BadAudio, audio_tokens, read_clip
from qa_train.data.text.content import user_message
from qa_train.data.text.sample import Message, Sample, TextPart
from qa_train.infer.generate import Answer, Decoding, Generator, Item
from qa_train.infer.prompt_format import template_for
from qa_train.model import load_answering_model

HELP = """Type a question and press Enter. Commands:
  /audio FILE   add a recording to the next question (wav, flac, ogg, opus, mp3)
  /record SEC   record SEC seconds from the microphone for the next question
  /clear        start a new conversation
  /help         this text
  /quit         leave (also Ctrl-D)
With a recording attached, an empty line sends it alone: a spoken question needs no text."""


class Conversation:
    """A chat with one model; every turn sees the turns before it, clips included."""

    def __init__(self, generator: Generator, decoding: Decoding, template: str = "chat") -> None:
        """template: "chat", or "base" for a model that only had pretraining (no history there)."""
        self.generator = generator
        self.decoding = decoding
        self.template = template
        self.clear()

    def clear(self) -> None:
        """Forget all turns."""
        self.messages: tuple[Message, ...] = ()
        self.waves: tuple[np.ndarray, ...] = ()

    def ask(self, waves: Iterable[np.ndarray], text: str, write: Callable[[str], None]) -> Answer:
        """Send one user turn; the answer is handed to ``write`` as it appears, and remembered.

        A text may mark the positions of its clips (``<audio>``); else they come first.

        Raises:
            ValueError: neither a clip nor text, or marks of other clips than those given.
        """
        waves = tuple(waves)
        if not waves and not text:
            raise ValueError("nothing to send: give text, a recording, or both")
        if self.template == "base":
            self.clear()
        # Only the base format has prompts with language tags; what a chat user types stays text.
        asked = user_message(text, len(waves), trusted=self.template == "base", first=len(self.waves))
        messages = (*self.messages, asked)
        heard = (*self.waves, *waves)
        sample = Sample("chat", messages, len(heard), "chat", None, self.template)
        answer = self.generator.stream(Item(sample, heard), write, self.decoding)
        self.messages = (*messages, Message("assistant", (TextPart(answer.text),)))
        self.waves = heard
        return answer


def read_recording(path: Path | str) -> np.ndarray:
    """A recording as a 16 kHz mono waveform.

    Raises:
        ValueError: no such file, a format that cannot be read, or a clip too short to hear.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"no recording at {path}: check the path (relative to {Path.cwd()})")
    try:
        wave = read_clip(path)
    except BadAudio as error:
        raise ValueError(f"{path}: {error}; use WAV, FLAC, Ogg, Opus or MP3 of at most 10 minutes") from error
    try:
        audio_tokens(len(wave))
    except BadAudio as error:
        raise ValueError(f"{path} is too short ({len(wave) / SAMPLE_RATE:.3f} s): {error}") from error
    return wave


def record(seconds: float) -> np.ndarray:
    """Record the default microphone for this many seconds, 16 kHz mono.

    Raises:
        ValueError: the length is not sensible, or there is no library or microphone to record with.
    """
    if not 0.1 <= seconds <= 600:
        raise ValueError(f"/record takes 0.1 to 600 seconds, not {seconds:g}")
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        # OSError: the Python package is there and the system's library is not.
        raise ValueError(
            f"cannot record ({error}): pip install 'qa-train[microphone]', and on Linux the system's PortAudio "
            "(libportaudio2); or give a file with /audio"
        ) from error
    frames = round(seconds * SAMPLE_RATE)
    try:
        wave = sounddevice.rec(frames, samplerate=SAMPLE_RATE, channels=1, dtype="float32", blocking=True)
    except sounddevice.PortAudioError as error:
        raise ValueError(f"no microphone to record from ({error}): give a file with /audio") from error
    return np.ascontiguousarray(wave[:, 0])


def chat(options: ChatConfig, *, lines: TextIO | None = None, out: TextIO | None = None) -> int:
    """Answer one question (``audio`` and/or ``text`` given), or converse line by line until the end.

    Raises:
        ValueError: unreadable checkpoint or recording.
    """
    out = out or sys.stdout
    # Report a wrong path before minutes of loading.
    template = template_for(options.checkpoint, options.template)
    paths = [options.audio] if isinstance(options.audio, str) else list(options.audio or ())
    waves = [read_recording(path) for path in paths]
    model, processor = load_answering_model(
        options.checkpoint, device=options.device, verify=options.verify, allow_missing=options.allow_missing
    )
    decoding = Decoding(max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    talk = Conversation(Generator(model, processor), decoding, template)
    if waves or options.text:
        _answer(talk, waves, options.text or "", out)
    else:
        _converse(talk, lines or sys.stdin, out)
    return 0


def _answer(talk: Conversation, waves: Iterable[np.ndarray], text: str, out: TextIO) -> None:
    def write(piece: str) -> None:
        out.write(piece)
        out.flush()

    answer = talk.ask(waves, text, write)
    if not answer.text:
        out.write("(empty answer)")
    out.write("\n(cut off: raise max_new_tokens)\n" if answer.truncated else "\n")
    out.flush()


def _converse(talk: Conversation, lines: TextIO, out: TextIO) -> None:
    """Read lines until the end of input; a wrong line is explained and the conversation goes on."""
    out.write(HELP + "\n")
    waiting: list[np.ndarray] = []
    while True:
        out.write(f"\n[{len(waiting)} recording] > " if waiting else "\n> ")
        out.flush()
        line = lines.readline()
        if not line or line.strip() == "/quit":
            out.write("\n")
            return
        try:
            waiting = _turn(talk, line.strip(), waiting, out)
        except ValueError as error:
            out.write(f"{error}\n")


def _recorded(seconds: str, out: TextIO) -> np.ndarray:
    try:
        length = float(seconds)
    except ValueError as error:
        raise ValueError(f"/record takes a number of seconds, not {seconds!r}: /record 5") from error
    out.write("recording ... ")
    out.flush()
    return record(length)


def _turn(talk: Conversation, line: str, waiting: list[np.ndarray], out: TextIO) -> list[np.ndarray]:
    """Act on one line; returns the recordings that still wait for their question."""
    command, _, rest = line.partition(" ")
    if command in ("/audio", "/record"):
        wave = read_recording(rest.strip().strip("'\"")) if command == "/audio" else _recorded(rest, out)
        out.write(f"{len(wave) / SAMPLE_RATE:.1f} s; now type a question, or press Enter to send only the recording\n")
        return [*waiting, wave]
    if command == "/clear":
        talk.clear()
        out.write("new conversation\n")
        return []
    if command.startswith("/") and command != "/help":
        raise ValueError(f"unknown command {command}; /help lists them")
    if command == "/help" or not (line or waiting):
        out.write(HELP + "\n")
        return waiting
    _answer(talk, waiting, line, out)
    return []
