"""OpenAI's chat-completions requests: JSON in, a sample with its waveforms out.

Audio comes as ``input_audio`` parts ({"data": base64, "format": "wav"}), or as data URLs in parts that mean sound
(``qa_train.data.text.content``). Nothing is fetched from an address.
An assistant message at the end is the beginning of the answer. An unknown setting that would change the answer is
refused, not ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qa_train.data.audio.waveform import SAMPLE_RATE, BadAudio, audio_tokens, read_clip
from qa_train.data.text.content import NOT_BASE64, PLACEHOLDER, Heard, content_parts
from qa_train.data.text.records import MAX_TEXT_CHARACTERS, BadRecord, check_text
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.infer.generate import LEAST_TEMPERATURE
from qa_train.infer.protocol import ApiError, Limits

FORMATS = ("wav", "flac", "mp3", "ogg", "opus")
_MOST_ANSWERS, _MOST_STOPS, _STOP_CHARACTERS = 4, 4, 200
_KNOWN = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "n", "stop",
          "stream", "stream_options")  # fmt: skip
# Settings whose only value here is what they mean when absent.
_FIXED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "logprobs": (None, False),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
# Information about a request, without influence on its answer.
_HARMLESS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)


@dataclass(frozen=True)
class Request:
    """A request that can be answered."""

    model: str
    sample: Sample
    waves: tuple[np.ndarray, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    # How many answers.
    n: int
    # Texts that end an answer and do not belong to it.
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse(
    body: bytes,
    limits: Limits,
    models: list[str],
    template: str = "chat",
    given_up: Callable[[], bool] = lambda: False,
) -> Request:
    """Read a request; decodes its audio (slow: not for an event loop), until ``given_up``.

    Raises:
        ApiError: malformed JSON, an unknown model or setting, unreadable, empty or too long audio.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({error})", code="invalid_json") from error
    if not isinstance(found, dict):
        raise ApiError(400, f"the body is a JSON {type(found).__name__}; expected an object with model and messages")
    model = found.get("model")
    if model not in models:
        raise ApiError(404, f"no model {model!r} here; there are {', '.join(models)}", code="model_not_found",
                       param="model")  # fmt: skip
    _check_settings(found)
    sample, waves = _conversation(found.get("messages"), limits, template, given_up)
    stream_options = found.get("stream_options") or {}
    temperature = _temperature(found)
    return Request(
        model=str(model),
        sample=sample,
        waves=waves,
        max_new_tokens=_max_new_tokens(found, limits),
        temperature=temperature,
        top_p=_number(found, "top_p", 1.0, 1e-6, 1.0),
        seed=_seed(found.get("seed")),
        n=_answers(found.get("n"), temperature),
        stop=_stop(found.get("stop")),
        stream=_flag(found, "stream"),
        include_usage=isinstance(stream_options, dict) and stream_options.get("include_usage") is True,
    )


def _check_settings(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if name in _FIXED and value not in _FIXED[name]:
            raise ApiError(400, f"{name}={value!r} is not supported here; remove it", param=name)
        if name not in _KNOWN and name not in _FIXED and name not in _HARMLESS:
            raise ApiError(400, f"unknown setting {name!r}; known are {', '.join(_KNOWN)}", param=name)


def _number(found: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = found.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(400, f"{name} is {value!r}; expected a number from {low:g} to {high:g}", param=name)
    return float(value)


def _temperature(found: dict[str, Any]) -> float:
    value = _number(found, "temperature", 0.0, 0.0, 2.0)
    if 0 < value < LEAST_TEMPERATURE:
        raise ApiError(400, f"temperature is {value!r}; expected 0, or {LEAST_TEMPERATURE:g} to 2", param="temperature")
    return value


def _flag(found: dict[str, Any], name: str) -> bool:
    value = found.get(name)
    if value not in (None, True, False):
        raise ApiError(400, f"{name} is {value!r}; expected true or false", param=name)
    return bool(value)


def _seed(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ApiError(400, f"seed is {value!r}; expected a whole number of 64 bits", param="seed")
    return value


def _answers(value: Any, temperature: float) -> int:
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_ANSWERS:
        raise ApiError(400, f"n is {value!r}; expected a whole number from 1 to {_MOST_ANSWERS}", param="n")
    if value > 1 and temperature == 0:
        raise ApiError(400, f"n is {value}, and without a temperature all answers are the same: set it", param="n")
    return value


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if (
        isinstance(texts, list)
        and len(texts) <= _MOST_STOPS
        and all(isinstance(text, str) and 1 <= len(text) <= _STOP_CHARACTERS for text in texts)
    ):
        return tuple(texts)
    raise ApiError(
        400,
        f"stop is {value!r}; expected a text of 1 to {_STOP_CHARACTERS} characters, or a list of at most {_MOST_STOPS}",
        param="stop",
    )


def _max_new_tokens(found: dict[str, Any], limits: Limits) -> int:
    name = "max_completion_tokens" if found.get("max_completion_tokens") is not None else "max_tokens"
    value = found.get(name)
    if value is None:
        return limits.max_new_tokens
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limits.max_new_tokens:
        raise ApiError(
            400,
            f"{name} is {value!r}; expected a whole number from 1 to {limits.max_new_tokens} (the server's "
            "max_new_tokens)",
            param=name,
        )
    return value


def _conversation(
    messages: Any, limits: Limits, template: str, given_up: Callable[[], bool]
) -> tuple[Sample, tuple[np.ndarray, ...]]:
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list with at least one message", param="messages")
    waves: list[np.ndarray] = []
    made: list[Message] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise ApiError(
                400, f"{where} has role {role!r}; expected system, developer, user or assistant", param=where
            )
        if role in ("system", "developer") and number:
            raise ApiError(400, f"{where}: a {role} message may only come first", param=where)
        # What newer clients call the system message.
        role = "system" if role == "developer" else role
        content = _content(message.get("content"), where, str(role), waves, limits, template, given_up)
        made.append(Message(str(role), content))
    if template == "base" and len(made) > 1:
        raise ApiError(400, "a pretrained model takes one user message, without system or history", param="messages")
    if made[-1].role == "assistant":
        made[-1] = _begun(made[-1])
    asking = made[:-1] if made[-1].unfinished else made
    if not asking or asking[-1].role != "user":
        found = f"from {asking[-1].role!r}" if asking else "missing"
        raise ApiError(400, f"the last message before the answer is {found}; expected user", param="messages")
    _check_texts(made)
    return Sample("request", tuple(made), len(waves), "chat", None, template), tuple(waves)


def _begun(message: Message) -> Message:
    """The beginning of the answer, which the model goes on with."""
    text = "".join(part.text for part in message.content if isinstance(part, TextPart))
    if not text or text != text.rstrip():
        raise ApiError(
            400,
            f"the last message is the beginning of the answer and ends in {text[-1:]!r}: expected a text that does not "
            "end in white space (the model writes the space before a word), or a user message at the end",
            param="messages",
        )
    return replace(message, unfinished=True)


def _check_texts(messages: list[Message]) -> None:
    """Refuse what would take seconds to tokenize, or is not Unicode."""
    parts = [part for message in messages for part in message.content if isinstance(part, TextPart)]
    characters = sum(len(part.text) for part in parts)
    if characters > MAX_TEXT_CHARACTERS:
        raise ApiError(
            400,
            f"the texts of the conversation have {characters} characters; at most {MAX_TEXT_CHARACTERS} are accepted: "
            "start a new conversation, or send less text",
            code="context_length_exceeded",
            param="messages",
        )
    try:
        check_text([part.text for part in parts])
    except BadRecord as error:
        raise ApiError(400, f"a text of the conversation: {error}", param="messages") from error


def _content(
    content: Any,
    where: str,
    role: str,
    waves: list[np.ndarray],
    limits: Limits,
    template: str,
    given_up: Callable[[], bool],
) -> tuple[TextPart | AudioPart, ...]:
    """The parts of one message; its clips are appended to ``waves``."""
    if not isinstance(content, str | list):
        raise ApiError(
            400, f"{where}.content is {type(content).__name__}; expected text or a list of parts", param=where
        )
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
                what = f"a text holds {part.mark}, which marks sound" if part.mark else f"sound from {role!r}"
                raise ApiError(400, f"{place}: {what}: send clips as input_audio from user", param=place)
            if len(waves) == limits.max_clips:
                raise ApiError(400, f"{place}: more than {limits.max_clips} clips in one conversation", param=place)
            waves.append(_wave(part, place, limits, sum(map(len, waves)) / SAMPLE_RATE, given_up))
            made.append(AudioPart(len(waves) - 1))
    if not made and role == "user":
        raise ApiError(400, f"{where} is empty: give text, a clip, or both", param=where)
    return tuple(made)


def _parts(given: Any, place: str) -> list[str | Heard]:
    """Text and clips of one part of a message."""
    sound = given.get("input_audio") if isinstance(given, dict) else None
    kind = sound.get("format") if isinstance(sound, dict) else None
    if sound is not None and kind not in FORMATS:
        raise ApiError(
            400, f"{place} has format {kind!r}; expected input_audio {{data: base64, format: {'|'.join(FORMATS)}}}",
            code="audio_format", param=place,
        )  # fmt: skip
    try:
        return content_parts([given])
    except BadRecord as error:
        code = "audio_base64" if error.reason == NOT_BASE64 else "invalid_request"
        raise ApiError(400, f"{place}: {error}; send clips as input_audio", code=code, param=place) from error


def _wave(clip: Heard, place: str, limits: Limits, before_s: float, given_up: Callable[[], bool]) -> np.ndarray:
    """One clip as a 16 kHz mono waveform, after others of ``before_s`` seconds."""
    rest = limits.max_audio_s - before_s
    if rest <= 0:
        raise ApiError(400, f"{place}: the clips of one conversation may have {limits.max_audio_s:g} s", param=place)
    try:
        if not isinstance(clip.source, bytes):
            raise BadAudio("nothing is fetched from an address, and no path is opened: send its data as base64")
        wave = read_clip(clip.source, max_duration_s=min(limits.max_duration_s, rest), given_up=given_up)
        audio_tokens(len(wave))
    except BadAudio as error:
        raise ApiError(
            400,
            f"{place} cannot be heard: {error}. Send a {', '.join(FORMATS)} file of 0.1 to {limits.max_duration_s:g} s "
            f"(all clips of a conversation: {limits.max_audio_s:g} s)",
            code="audio_unreadable",
            param=place,
        ) from error
    return wave
