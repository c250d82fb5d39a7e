"""The messages of a chat-completions request as a sample with its waveforms.

Audio comes as ``input_audio`` parts ({"data": base64, "format": "wav"}), or as data URLs in parts that mean sound
(``qa_train.data.text.content``). Nothing is fetched from an address. An assistant message at the end is the beginning
of the answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from qa_train.config import ServeConfig
from qa_train.data.audio.waveform import SAMPLE_RATE, BadAudio, audio_tokens
from qa_train.data.text.content import NOT_BASE64, PLACEHOLDER, Heard, content_parts
from qa_train.data.text.records import MAX_TEXT_CHARACTERS, BadRecord, check_text
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.infer.protocol import BadRequest

FORMATS = ("wav", "flac", "mp3", "ogg", "opus")


class Decode(Protocol):
    """`read_clip`, here or in another process."""

    def __call__(self, source: bytes, /, *, max_duration_s: float) -> np.ndarray:
        """The clip, float32 mono at 16 kHz, [n]; BadAudio for one that cannot be read or is longer."""


def conversation(
    messages: Any, template: str, options: ServeConfig, decode: Decode
) -> tuple[Sample, tuple[np.ndarray, ...]]:
    """The sample that is asked in the form of ``template``, and the waveform [n] of each of its clips at 16 kHz.

    Raises:
        ApiError: roles in an order that has no answer, or unreadable, empty or too long text or audio.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message", "messages")
    waves: list[np.ndarray] = []
    made: list[Message] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise BadRequest(f"{where} has role {role!r}; expected system, developer, user or assistant", where)
        if role in ("system", "developer") and number:
            raise BadRequest(f"{where}: a {role} message may only come first", where)
        # What newer clients call the system message.
        role = "system" if role == "developer" else role
        content = _content(message.get("content"), where, str(role), waves, template, options, decode)
        made.append(Message(str(role), content))
    if template == "base" and len(made) > 1:
        raise BadRequest("a pretrained model takes one user message, without system or history", "messages")
    if made[-1].role == "assistant":
        made[-1] = _begun(made[-1])
    asking = made[:-1] if made[-1].unfinished else made
    if not asking or asking[-1].role != "user":
        found = f"from {asking[-1].role!r}" if asking else "missing"
        raise BadRequest(f"the last message before the answer is {found}; expected user", "messages")
    _check_texts(made)
    return Sample("request", tuple(made), len(waves), "chat", None, template), tuple(waves)


def _begun(message: Message) -> Message:
    """The beginning of the answer, which the model goes on with."""
    text = "".join(part.text for part in message.content if isinstance(part, TextPart))
    if not text or text != text.rstrip():
        raise BadRequest(
            f"the last message is the beginning of the answer and ends in {text[-1:]!r}: expected a text that does not "
            "end in white space (the model writes the space before a word), or a user message at the end",
            "messages",
        )
    return replace(message, unfinished=True)


def _check_texts(messages: list[Message]) -> None:
    """Refuse what would take seconds to tokenize, or is not Unicode."""
    parts = [part for message in messages for part in message.content if isinstance(part, TextPart)]
    characters = sum(len(part.text) for part in parts)
    if characters > MAX_TEXT_CHARACTERS:
        raise BadRequest(
            f"the texts of the conversation have {characters} characters; at most {MAX_TEXT_CHARACTERS} are accepted: "
            "start a new conversation, or send less text",
            "messages",
            "context_length_exceeded",
        )
    try:
        check_text([part.text for part in parts])
    except BadRecord as error:
        raise BadRequest(f"a text of the conversation: {error}", "messages") from error


def _content(
    content: Any,
    where: str,
    role: str,
    waves: list[np.ndarray],
    template: str,
    options: ServeConfig,
    decode: Decode,
) -> tuple[TextPart | AudioPart, ...]:
    """The parts of one message; its clips are appended to ``waves``."""
    if not isinstance(content, str | list):
        raise BadRequest(f"{where}.content is {type(content).__name__}; expected text or a list of parts", where)
    made: list[TextPart | AudioPart] = []
    for number, given in enumerate([content] if isinstance(content, str) else content):
        place = where if isinstance(content, str) else f"{where}.content[{number}]"
        for part in _parts(given, place):
            if isinstance(part, str) or part.mark == PLACEHOLDER:
                # Only the base format knows prompts with language tags; what a chat user types stays text.
                text = part if isinstance(part, str) else part.mark
                made.append(TextPart(text, trusted=template == "base"))
                continue
            if part.mark or role != "user":
                what = f"a text holds {part.mark}, which stands for audio" if part.mark else f"sound from {role!r}"
                raise BadRequest(f"{place}: {what}: send clips as input_audio from user", place)
            if len(waves) == options.max_clips:
                raise BadRequest(f"{place}: more than {options.max_clips} clips in one conversation", place)
            waves.append(_wave(part, place, options, sum(map(len, waves)) / SAMPLE_RATE, decode))
            made.append(AudioPart(len(waves) - 1))
    if not made and role == "user":
        raise BadRequest(f"{where} is empty: give text, a clip, or both", where)
    return tuple(made)


def _parts(given: Any, place: str) -> list[str | Heard]:
    """Text and clips of one part of a message."""
    sound = given.get("input_audio") if isinstance(given, dict) else None
    kind = sound.get("format") if isinstance(sound, dict) else None
    if sound is not None and kind not in FORMATS:
        raise BadRequest(
            f"{place} has format {kind!r}; expected input_audio {{data: base64, format: {'|'.join(FORMATS)}}}",
            place,
            "audio_format",
        )
    try:
        return content_parts([given])
    except BadRecord as error:
        code = "audio_base64" if error.reason == NOT_BASE64 else "invalid_request"
        raise BadRequest(f"{place}: {error}; send clips as input_audio", place, code) from error


def _wave(clip: Heard, place: str, options: ServeConfig, before_s: float, decode: Decode) -> np.ndarray:
    """One clip as a 16 kHz mono waveform, after others of ``before_s`` seconds."""
    rest = options.max_audio_s - before_s
    if rest <= 0:
        raise BadRequest(f"{place}: the clips of one conversation may last {options.max_audio_s:g} s", place)
    try:
        if not isinstance(clip.source, bytes):
            raise BadAudio("addresses are not fetched and paths are not opened: send the data as base64")
        wave = decode(clip.source, max_duration_s=min(options.max_duration_s, rest))
        audio_tokens(len(wave))
    except BadAudio as error:
        raise BadRequest(
            f"{place} cannot be read: {error}. Send a {', '.join(FORMATS)} file of 0.1 to {options.max_duration_s:g} s "
            f"(all clips of a conversation: {options.max_audio_s:g} s)",
            place,
            "audio_unreadable",
        ) from error
    return wave
