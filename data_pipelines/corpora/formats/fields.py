"""Rows of foreign tables as records: which columns are record fields, and what their cells mean."""

from __future__ import annotations

import ast
import base64
import contextlib
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.corpora.base import Recording, Request, present
from data_pipelines.corpora.recordings import WHOLE
from data_pipelines.corpora.tree import Tree
from qa_train.data.shards.clip_files import located
from qa_train.data.text.content import source_of
from qa_train.data.text.records import BadRecord, language_code, number_text

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
PART = ("start", "end")
PLACES = ("audio", "key", *PART, "target_lang")
AUDIO_COLUMNS = (
    "audio", "file_name", "audio_filepath", "audio_path", "path", "file", "filename", "wav", "sound", "speech",
    "audio_id",
)  # fmt: skip
# Names by which others know a field.
_OTHER_NAMES = {
    "audio": AUDIO_COLUMNS,
    "text": ("sentence", "transcript", "transcription", "txt"),
    "language": ("lang", "source_lang"),
    "speaker": ("speaker_id",),
    "question": ("context",),
}
# Lengths, which are measured, where a segment lies, which is read with the audio, and NeMo's marks.
_MEASURES = ("duration", "offset", "num_samples", "sampling_rate", "shard_id", "_skipme")
# numpy prints lists of texts without commas, which Python would join.
_UNPARTED = re.compile(r"""['"]\s+['"]""")
# The field for a column of translations into one language.
_TRANSLATED = re.compile(r"translation_([a-z]{2,3})")
# A label such as "[laughter]", which is no list.
_BRACKETED = re.compile(r"\s*\[[\w-]+\]\s*")


def mapping(columns: dict[str, str], available: Iterable[str], *, parts: bool = False) -> dict[str, str]:
    """Record field -> column: the given ones, and the others that are named like a field, or as everybody names them,
    in capitals or not, with spaces or underscores.

    ``parts``: rows name recordings, of which columns ``start`` and ``end`` (or ``duration``) are a part. A given column
    that is empty leaves the field out.

    Raises ValueError for a field that no record has, a column that is not there, or when nothing but audio is known.
    """
    have = list(available)
    if not have:
        raise ValueError("it is empty: expected audio and a text, label or other field")
    translated = {name for name in columns if _TRANSLATED.fullmatch(name)}
    if unknown := sorted(set(columns) - {*FIELDS, *PLACES} - translated):
        known = ", ".join((*PLACES, *FIELDS, "translation_de (and so on)"))
        raise ValueError(f"columns: {unknown} are not record fields; known are {known}")
    tops = {column.split(".")[0] for column in columns.values() if column}
    if missing := sorted(tops - set(have)):
        raise ValueError(f"columns: there is no column {missing}; the table has {have}")
    free = [column for column in have if column not in tops]
    # Spreadsheets write "Text " and "File Name"; the exact name comes first.
    spelt = {column.strip().lower().replace(" ", "_"): column for column in reversed(free)} | {c: c for c in free}
    part = PART if {*PART} <= {*spelt} else ("start",) if {"start", "duration"} <= {*have} else ()
    names = (*FIELDS, "key", "target_lang", *(part if parts else ()))
    found = {name: spelt[name] for name in names if name in spelt} | columns
    for name, others in _OTHER_NAMES.items():
        other = next((spelt[other] for other in others if other in spelt), None)
        if name not in found and other is not None:
            found[name] = other
    found = {name: column for name, column in found.items() if column}
    if not translated and not set(found) & set(FIELDS) - {"split", "license", "task"}:
        # What names a file, an item or a length is no transcript.
        places = {found.get("audio"), *AUDIO_COLUMNS, *_MEASURES, *PLACES, "id", "task"}
        example = next((name for name in have if name not in places), "COLUMN")
        raise ValueError(
            f"no column of {have} is a record field: map them, e.g. columns.text={example} for "
            f"transcripts or columns.label={example} for classes"
        )
    return found


def untaken(columns: dict[str, str], available: Iterable[str]) -> list[str]:
    """Columns that no field of the record comes from."""
    return sorted({*available} - {column.split(".")[0] for column in columns.values()} - {*_MEASURES})


def note_parts(request: Request, columns: dict[str, str]) -> None:
    """Say once in the report that rows are parts of recordings because of their columns' names."""
    if "start" in columns and not {*PART} & {*request.columns}:
        end = "end" if "end" in columns else "duration"
        note = f"start and {end} of a row are the part of the recording that it is about, in seconds"
        request.notes.append(f"{note}; {WHOLE}")


def note_untaken(request: Request, counts: Counter[str]) -> None:
    """Say once in the report which columns, or fields of rows, were left behind."""
    if counts:
        names = ", ".join(f"{name} ({count})" for name, count in counts.most_common(12))
        request.notes.append(f"columns that were not used: {names}; columns.FIELD=COLUMN maps one")


def record_of(
    row: dict[str, Any], columns: dict[str, str], classes: dict[str, list[str]] | None = None
) -> dict[str, Any]:
    """The record of a row. Class numbers become their names, cells of lists and objects are parsed.

    Of NeMo: a ``text`` whose ``target_lang`` is not the language spoken is a translation; a ``context`` is a question,
    and the text next to it the answer. Raises ValueError when a cell does not hold what its field needs.
    """
    record: dict[str, Any] = {}
    for name, column in columns.items():
        if name in PLACES:
            continue
        value = cell_at(row, column)
        if (language := _TRANSLATED.fullmatch(name)) and isinstance(value, str) and value.strip():
            record.setdefault("translation", {})[language_code(language[1])] = value.strip()
        if language:
            continue
        if classes and column in classes:
            value = _named(value, classes[column])
        if name == "caption" and isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            texts = list(filter(None, map(str.strip, value)))
            value, record["captions"] = texts[0] if texts else None, texts if len(texts) > 1 else None
        # A table writes NaN for a number that is missing, which is not equal to itself.
        if value is not None and value != "" and value == value:
            record[name] = _typed(name, value)
    if "language" in record:
        record["language"] = language_code(record["language"])
    if columns.get("question") == "context" and "question" in record and "answer" not in record and "text" in record:
        record["answer"] = record.pop("text")
    target = cell_at(row, columns["target_lang"]) if "target_lang" in columns else None
    if target and "text" in record and language_code(str(target)) != record.get("language"):
        record["translation"] = {language_code(str(target)): record.pop("text")}
    return present(**record)


def _named(value: Any, names: list[str]) -> Any:
    """The name of a class, or the names of several; None for a number that no class has."""
    if isinstance(value, list):
        return [name for each in value if (name := _named(each, names)) is not None]
    return (names[value] if 0 <= value < len(names) else None) if isinstance(value, int) else value


def cell_at(row: dict[str, Any], column: str) -> Any:
    """The cell of a column, or of an object in it: "metadata.place"; None where there is none."""
    value: Any = row
    for part in column.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _typed(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        raise ValueError(f"{name!r} holds bytes; map it to a column of text")
    if name in TEXTS:
        if isinstance(value, list | dict | bool):
            raise ValueError(f"{name!r} must be text, found {type(value).__name__}")
        return number_text(value) if isinstance(value, float) and math.isfinite(value) else str(value).strip()
    if name in LISTS:
        parts = value if isinstance(value, list) else _parsed(value)
        if parts is None:
            parts = str(value).split(";" if ";" in str(value) else ",")
            if str(value).lstrip().startswith(("[", "{")) and not all(map(_BRACKETED.fullmatch, parts)):
                raise ValueError(f"{name!r} must be a list, as JSON or in Python's spelling, found {str(value)[:80]!r}")
        return [str(part).strip() for part in parts if str(part).strip()]
    if name in NUMBERS:
        if not (number := float(value)).is_integer():
            raise ValueError(f"{name!r} must be a whole number, found {value!r}")
        return int(number)
    found = value if isinstance(value, list | dict) else _parsed(value)
    if found is None and name == "translation":
        raise ValueError(
            f"'translation' is a text, found {str(value)[:80]!r}: say of which language, columns.translation_de=COLUMN"
        )
    if found is None:
        raise ValueError(f"{name!r} must be a list or an object (as JSON in a table), found {str(value)[:80]!r}")
    # A column of objects has all keys in each row.
    return {key: part for key, part in found.items() if part is not None} if isinstance(found, dict) else found


def _parsed(value: Any) -> Any:
    """A cell that holds a list or an object, as JSON or as Python prints it (pandas); None for any other text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return None
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(value)
    if _UNPARTED.search(value):
        return None
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        found = ast.literal_eval(value.strip())
        return found if isinstance(found, list | dict) else None
    return None


def recording_of(
    request: Request, given: Any, folder: Path, origin: str = "", start_s: float = 0.0, end_s: float | None = None
) -> Recording:
    """Where the clip lies that a list gives: a path, an address, a data URL or base64.

    Relative paths start at the ``folder`` of the list, else where path= leads to, else where the program runs;
    ``origin`` names the row of a clip that lies in the list itself. The request's ``extension``, ``prefix`` and
    ``by_name`` are followed.

    Raises:
        BadRecord: nothing has the path of the clip, or several folders of path= have one of that name.
    """
    source = source_of(given)
    if source is None:
        raise BadRecord("it names no audio")
    if isinstance(source, bytes):
        data = base64.b64encode(source).decode()
        return Recording(origin, data=data, start_s=start_s, end_s=end_s)
    # Names may begin with a space; more often a space was typed before one. Lists of Windows have its separators.
    spelt = (source, source.strip(), source.strip().replace("\\", "/"))
    names = list(dict.fromkeys(map(partial(_renamed, request), spelt)))
    places = [located(name, folder) for name in names]
    found = next((Recording(str(place)) for place in places if isinstance(place, Path) and place.is_file()), None)
    if found is None:
        free = [path for path in map(located, names) if isinstance(path, Path)]
        here = (Recording(str(path)) for path in free if path.is_file())
        found = next(filter(None, (_below(request.tree, path) for path in free)), None) or next(here, None)
    if found is None and request.by_name and isinstance(places[-1], Path):
        found = request.tree.by_name(places[-1].name)
    return replace(found or Recording(str(places[-1])), start_s=start_s, end_s=end_s)


def _below(tree: Tree, path: Path) -> Recording | None:
    """The file that a relative ``path`` of a list means in what path= gives; None where there is none."""
    if path.is_absolute():
        return None
    try:
        found = tree.recording(str(path))
    except BadRecord:
        raise
    except ValueError:
        # It leaves the folders, as a list may: "../wavs/a.wav".
        beside = [place for root in tree.folders if (place := Path(root) / path).is_file()]
        return Recording(str(beside[0])) if len(beside) == 1 else None
    return found if found.member or Path(found.path).is_file() else None


def _renamed(request: Request, name: str) -> str:
    """A name of a list with its missing extension, and its prefix on this machine."""
    extension = f".{request.table.extension.lstrip('.')}" if request.table.extension else ""
    if not name.endswith(extension):
        name += extension
    old, new = request.prefix or ("", "")
    return new + name.removeprefix(old) if name.startswith(old) else name


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
