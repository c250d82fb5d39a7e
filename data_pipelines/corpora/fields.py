"""Rows of foreign tables as records: which columns are record fields, and what their cells mean."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.corpora.base import language_code, present

# The fields that prompts are built from, and those of chats and pairs.
LISTS = ("labels", "keywords", "choices")
OBJECTS = ("translation", "words", "slots", "entities", "turns", "events", "messages")
NUMBERS = ("pitch", "velocity")
TEXTS = (
    "text", "language", "dialect", "speaker", "gender", "age", "emotion", "intent", "vocal_sound", "caption",
    "scene", "label", "question", "answer", "genre", "instrument", "mood", "singer", "note", "chosen", "rejected",
    "task", "split", "license",
)  # fmt: skip
FIELDS = (*TEXTS, *LISTS, *OBJECTS, *NUMBERS)
# Not fields of the record, but known to every table: where the audio is, and the item's name.
PLACES = ("audio", "key", "start", "end")
AUDIO_COLUMNS = (
    "audio",
    "file_name",
    "audio_filepath",
    "audio_path",
    "path",
    "file",
    "filename",
    "wav",
    "sound",
    "speech",
)


def mapping(columns: dict[str, str], available: Iterable[str]) -> dict[str, str]:
    """Record field -> column: the given ones, and the columns that are named like a field.

    Raises ValueError for a field that no record has, a column that is not there, or when nothing but audio is known.
    """
    have = list(available)
    if not have:
        raise ValueError("it holds nothing: expected audio and a text, label or other field")
    if unknown := sorted(set(columns) - {*FIELDS, *PLACES}):
        raise ValueError(f"columns: {unknown} are not record fields; known are {', '.join((*PLACES, *FIELDS))}")
    tops = {column.split(".")[0] for column in columns.values()}
    if missing := sorted(tops - set(have)):
        raise ValueError(f"columns: there is no column {missing}; the table has {have}")
    found = {name: name for name in (*FIELDS, "key") if name in have and name not in columns} | columns
    if "audio" not in found:
        named = next((name for name in AUDIO_COLUMNS if name in have), None)
        if named is not None:
            found["audio"] = named
    if not set(found) & set(FIELDS) - {"split", "license"}:
        raise ValueError(f"no column of {have} is a record field: say which is what, e.g. columns.text={have[0]}")
    return found


def record_of(
    row: dict[str, Any], columns: dict[str, str], classes: dict[str, list[str]] | None = None
) -> dict[str, Any]:
    """The record of a row. Class numbers become their names, cells of lists and objects are parsed.

    Raises ValueError when a cell does not hold what its field needs.
    """
    record: dict[str, Any] = {}
    for name, column in columns.items():
        if name in PLACES:
            continue
        value = _at(row, column)
        if classes and column in classes and isinstance(value, int):
            value = classes[column][value] if 0 <= value < len(classes[column]) else None
        if value is not None and value != "":
            record[name] = _typed(name, value)
    if "language" in record:
        record["language"] = language_code(record["language"])
    return present(**record)


def _at(row: dict[str, Any], column: str) -> Any:
    value: Any = row
    for part in column.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _typed(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        raise ValueError(f"{name!r} holds bytes; map it to a column of text")
    if name in TEXTS:
        if isinstance(value, list | dict):
            raise ValueError(f"{name!r} must be text, found {type(value).__name__}")
        return str(value).strip()
    if name in LISTS:
        parts = (
            value if isinstance(value, list) else _parsed(value) or re.split(";" if ";" in value else ",", str(value))
        )
        return [str(part).strip() for part in parts if str(part).strip()]
    if name in NUMBERS:
        return int(float(value))
    found = value if isinstance(value, list | dict) else _parsed(value)
    if found is None:
        raise ValueError(f"{name!r} must be a list or an object (as JSON in a table), found {str(value)[:80]!r}")
    return found


def _parsed(value: Any) -> Any:
    """A cell that holds a JSON list or object; None for any other text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        return None


def local_path(text: str, *bases: Path) -> str:
    """A path in a manifest: absolute, or relative to the first of ``bases`` where it exists."""
    path = Path(text).expanduser()
    if path.is_absolute():
        return str(path)
    return str(next((base / path for base in bases if (base / path).exists()), bases[0] / path))


# Programs of Kaldi's pipes that do nothing but decode one file, with the flags that change nothing about it.
_DECODERS: dict[str, frozenset[str]] = {
    "flac": frozenset({"-c", "-d", "-s", "-cd", "-dc", "-cds", "-dcs", "-sdc", "--stdout", "--decode", "--silent"}),
    "sph2pipe": frozenset({"-p"}),
    "cat": frozenset(),
}


def decoded_file(command: str) -> tuple[str, int | None] | None:
    """(file, its channel or None) of a command that decodes one file, so that it need not be run; None: any other."""
    try:
        program, *words = shlex.split(command.strip().removesuffix("|"))
    except ValueError:
        return None
    name = PurePosixPath(program).name
    if name not in _DECODERS:
        return None
    channel, files, rest = None, [], iter(words)
    for word in rest:
        if name == "sph2pipe" and word in ("-f", "-c"):
            value = next(rest, "")
            if (word, value) in (("-c", "1"), ("-c", "2")):
                channel = int(value) - 1
            elif (word, value) not in (("-f", "wav"), ("-f", "rif")):
                return None
        elif word not in _DECODERS[name]:
            files.append(word)
    plain = len(files) == 1 and not files[0].startswith("-") and not set(files[0]) & set("|;&<>$`")
    return (files[0], channel) if plain else None
