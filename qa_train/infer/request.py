"""OpenAI's chat-completions requests: JSON in, settings, and a sample with its waveforms (`request_messages`) out.

An unknown setting that would change the answer is refused, not ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qa_train.config import ServeConfig
from qa_train.data.audio.waveform import read_clip
from qa_train.data.text.sample import Sample
from qa_train.infer.generate import LEAST_TEMPERATURE
from qa_train.infer.protocol import ApiError, BadRequest
from qa_train.infer.request_messages import Decode, conversation

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


def parse(body: bytes, options: ServeConfig, templates: Mapping[str, str], decode: Decode = read_clip) -> Request:
    """Read a request within the limits of ``options``; ``decode``s its audio (slow: not for an event loop).

    ``templates``: the models by name, with the form in which each is asked ("chat", "base").

    Raises:
        ApiError: malformed JSON, an unknown model or setting, unreadable, empty or too long audio.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON ({error})", code="invalid_json") from error
    if not isinstance(found, dict):
        raise BadRequest(f"the body is a JSON {type(found).__name__}; expected an object with model and messages")
    model = found.get("model")
    if not isinstance(model, str) or model not in templates:
        raise ApiError(404, f"there is no model {model!r}; served are {', '.join(templates)}", code="model_not_found",
                       param="model")  # fmt: skip
    _check_settings(found)
    sample, waves = conversation(found.get("messages"), templates[model], options, decode)
    stream_options = found.get("stream_options") or {}
    temperature = _temperature(found)
    return Request(
        model=model,
        sample=sample,
        waves=waves,
        max_new_tokens=_max_new_tokens(found, options.max_new_tokens),
        temperature=temperature,
        top_p=_number(found, "top_p", 1.0, 1e-6, 1.0),
        seed=_whole(found, "seed", -(2**63), 2**63 - 1, "a whole number of 64 bits"),
        n=_answers(found, temperature),
        stop=_stop(found.get("stop")),
        stream=_flag(found, "stream"),
        include_usage=isinstance(stream_options, dict) and stream_options.get("include_usage") is True,
    )


def _check_settings(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if name in _FIXED and value not in _FIXED[name]:
            raise BadRequest(f"{name}={value!r} is not supported here; remove it", name)
        if name not in _KNOWN and name not in _FIXED and name not in _HARMLESS:
            raise BadRequest(f"unknown setting {name!r}; known are {', '.join(_KNOWN)}", name)


def _number(found: dict[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = found.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"{name} is {value!r}; expected a number from {low:g} to {high:g}", name)
    return float(value)


def _temperature(found: dict[str, Any]) -> float:
    value = _number(found, "temperature", 0.0, 0.0, 2.0)
    if 0 < value < LEAST_TEMPERATURE:
        raise BadRequest(f"temperature is {value!r}; expected 0, or {LEAST_TEMPERATURE:g} to 2", "temperature")
    return value


def _flag(found: dict[str, Any], name: str) -> bool:
    value = found.get(name)
    if value not in (None, True, False):
        raise BadRequest(f"{name} is {value!r}; expected true or false", name)
    return bool(value)


def _whole(found: dict[str, Any], name: str, low: int, high: int, expected: str = "") -> int | None:
    value = found.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
        return value
    expected = expected or f"a whole number from {low} to {high}"
    raise BadRequest(f"{name} is {value!r}; expected {expected}", name)


def _answers(found: dict[str, Any], temperature: float) -> int:
    count = _whole(found, "n", 1, _MOST_ANSWERS) or 1
    if count > 1 and temperature == 0:
        message = f"n is {count}, and at temperature 0 all answers are the same: set a temperature"
        raise BadRequest(message, "n")
    return count


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if (
        isinstance(texts, list)
        and len(texts) <= _MOST_STOPS
        and all(isinstance(text, str) and 1 <= len(text) <= _STOP_CHARACTERS for text in texts)
    ):
        return tuple(texts)
    raise BadRequest(
        f"stop is {value!r}; expected a text of 1 to {_STOP_CHARACTERS} characters, or a list of at most {_MOST_STOPS}",
        "stop",
    )


def _max_new_tokens(found: dict[str, Any], most: int) -> int:
    name = "max_completion_tokens" if found.get("max_completion_tokens") is not None else "max_tokens"
    return _whole(found, name, 1, most, f"a whole number from 1 to {most} (the server's max_new_tokens)") or most
