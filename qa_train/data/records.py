"""The JSON member of a record: strict reading, and the fields that prompts and targets are built from."""

from __future__ import annotations

import json
import re
from typing import Any

LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "yue": "Cantonese",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ru": "Russian",
    "de": "German",
    "ja": "Japanese",
    "ko": "Korean",
    "cs": "Czech",
    "nl": "Dutch",
}
MAX_JSON_BYTES = 1 << 20
_TEXT_FIELDS = ("text", "language", "label", "caption", "split", "speaker", "source", "license", "task")
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
# One character each: scripts written without spaces between words.
_UNSPACED = ("zh", "yue", "ja")


class BadRecord(ValueError):
    """A record that cannot be used; the message says why, ``reason`` in two words for the counts."""

    def __init__(self, message: str, reason: str = "bad record") -> None:
        super().__init__(message)
        self.reason = reason


def parse_record(raw: bytes) -> dict[str, Any]:
    """Read a record's JSON strictly: UTF-8, one object, no NaN, no repeated keys, known field types."""
    if len(raw) > MAX_JSON_BYTES:
        raise BadRecord(f"{len(raw)} bytes of JSON; at most {MAX_JSON_BYTES} are accepted")
    try:
        record = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise BadRecord("JSON nested too deeply") from error
    except json.JSONDecodeError as error:
        raise BadRecord(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadRecord(f"expected a JSON object, found {type(record).__name__}")
    check_record(record)
    return record


def check_record(record: dict[str, Any]) -> None:
    """Check the types of the fields that this library reads; other fields are free."""
    for name in _TEXT_FIELDS:
        if not isinstance(record.get(name, ""), str | None):
            raise BadRecord(f"{name!r} must be text, found {type(record[name]).__name__}")
    for name in ("chosen", "rejected"):
        if not isinstance(record.get(name, ""), str):
            raise BadRecord(f"{name!r} must be text, found {type(record[name]).__name__}")
    if ("chosen" in record) != ("rejected" in record):
        raise BadRecord("a preference pair needs both 'chosen' and 'rejected'")
    for name in ("labels", "audios"):
        values = record.get(name) or []
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise BadRecord(f"{name!r} must be a list of texts")
    translation = record.get("translation") or {}
    if not isinstance(translation, dict) or not all(isinstance(v, str) for v in translation.values()):
        raise BadRecord("'translation' must map language codes to texts")
    _check_messages(record.get("messages"))


def fields(record: dict[str, Any]) -> dict[str, Any]:
    """The record plus what can be said about it, for format strings; absent or empty fields are left out.

    Adds ``language_name`` (English name of a known code), ``num_words``, ``first_word``,
    ``last_word``, ``has_speech`` ("Yes" with a transcript, "No" with only a label or caption),
    ``labels_text`` (joined labels).
    """
    out = {name: value for name, value in record.items() if value not in (None, "", [], {})}
    language = out.get("language")
    if language in LANGUAGES:
        out["language_name"] = LANGUAGES[language]
    text = out.get("text")
    words = _WORD.findall(text) if text else []
    if words and language not in _UNSPACED:
        out |= {"num_words": str(len(words)), "first_word": words[0].lower(), "last_word": words[-1].lower()}
    if text:
        out["has_speech"] = "Yes"
    elif "label" in out or "caption" in out:
        out["has_speech"] = "No"
    if "labels" in out:
        out["labels_text"] = ", ".join(out["labels"])
    return out


def _check_messages(messages: Any) -> None:
    if messages is None:
        return
    if not isinstance(messages, list) or not messages:
        raise BadRecord("'messages' must be a list with at least one turn")
    for turn in messages:
        content = turn.get("content") if isinstance(turn, dict) else None
        parts = content if isinstance(content, list) else [content]
        if not all(isinstance(p, str) or (isinstance(p, dict) and "type" in p) for p in parts):
            raise BadRecord("each turn needs a 'role' and a 'content': text, or a list of typed parts")
        if turn.get("role") not in ("system", "user", "assistant"):
            raise BadRecord(f"role {turn.get('role')!r}: use system, user or assistant")


def _no_constant(name: str) -> None:
    raise BadRecord(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadRecord(f"repeated key {next(n for n in names if names.count(n) > 1)!r}")
    return out
