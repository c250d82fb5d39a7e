"""Tasks as the prompt files (YAML) state them: wordings, a target, and how lists become text.

A file holds tasks by name. Each has

- ``prompts``: wordings by language, ``target``: one format string, or several of which the first that
  the record can fill is taken. Both may name record fields: ``{text}``, ``{translation[en]}``.
- ``requires`` (fields a record must have), ``clips`` (how many clips it must have), ``family`` (for tables).
- ``lists``: for a field that is a list of objects or a mapping, the text of one ``item`` and the ``join``
  between items, e.g. ``words: {item: "[{start}-{end}] {word}", join: " "}``. Seconds get two decimals. The items
  of a mapping have ``name`` and ``value``. A list of texts needs none of this: it is joined by ", ".
- ``hotwords``: words that may be spoken, for wordings that name ``{hotwords}`` (``qa_train.data.text.hotwords``).
- ``variants``: one task per entry; ``@code`` in the task's name and texts is the entry's name, and other
  ``@words`` are its values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from qa_train.data.text.hotwords import FIELD as HOTWORDS
from qa_train.data.text.hotwords import Hotwords, read_hotwords
from qa_train.data.text.records import LANGUAGES
from qa_train.data.text.sample import TextPart
from qa_train.utils.safe_yaml import read_yaml

MAX_FILE_BYTES = 1 << 20
_TASK_KEYS = {"family", "requires", "clips", "target", "prompts", "lists", "variants", HOTWORDS}
_FIELD = re.compile(r"([a-z_]+)(?:\[([A-Za-z_\-]+)\])?")
_VARIABLE = re.compile(r"@([a-z_]+)")


@dataclass(frozen=True)
class Piece:
    """Literal text, then an optional record field, with an optional key into it."""

    literal: str
    field: str | None = None
    key: str | None = None


Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class ListForm:
    """How a list of objects becomes text: the text of one item, and the separator."""

    item: Pieces
    join: str


@dataclass(frozen=True)
class Task:
    """One task of the bank; ``targets`` in order of preference."""

    name: str
    family: str
    requires: tuple[str, ...]
    clips: int | None
    targets: tuple[Pieces, ...]
    prompts: tuple[Pieces, ...]
    lists: dict[str, ListForm] = field(default_factory=dict)
    # Not in the repr, on which digests of earlier versions rest.
    hotwords: Hotwords | None = field(default=None, repr=False)

    @cached_property
    def asked(self) -> tuple[Piece, ...]:
        """The fields that the wordings name, each once."""
        return tuple(dict.fromkeys(replace(p, literal="") for prompt in self.prompts for p in prompt if p.field))

    def complete(self, pieces: Pieces, known: dict[str, Any]) -> bool:
        """Whether the record has every field that these pieces name."""
        return all(piece.field is None or self.value(piece, known) for piece in pieces)

    def fill(self, pieces: Pieces, known: dict[str, Any]) -> tuple[TextPart, ...]:
        """Trusted literals and untrusted values; a language code inside a tag joins its literal."""
        parts: list[TextPart] = []
        trusted = ""
        for piece in pieces:
            trusted += piece.literal
            value = self.value(piece, known)
            if not value:
                continue
            if piece.field == "language" and trusted.endswith("<|"):
                trusted += value if value in LANGUAGES else "unknown"
                continue
            parts += [TextPart(trusted, trusted=True)] if trusted else []
            parts.append(TextPart(value))
            trusted = ""
        return (*parts, TextPart(trusted, trusted=True)) if trusted else tuple(parts)

    def value(self, piece: Piece, known: dict[str, Any]) -> str | None:
        """The text of a piece's field; None or empty when the record lacks it."""
        value = known.get(piece.field) if piece.field else ""
        if piece.field in self.lists:
            return _listed(self.lists[piece.field], value)
        return _text(value, piece.key)


def read_tasks(path: Path, languages: tuple[str, ...]) -> dict[str, Task]:
    """The tasks of one prompt file, with the wordings of ``languages``.

    Raises:
        ValueError: a fault in the file, with its path and the task's name.
    """
    tasks: dict[str, Task] = {}
    for name, spec in _read(path).items():
        try:
            for expanded, concrete in _variants(name, spec):
                if expanded in tasks:
                    raise ValueError(f"{expanded!r} is defined twice")
                tasks[expanded] = _task(expanded, concrete, languages, path.parent)
        except ValueError as error:
            raise ValueError(f"prompt file {path}, task {name}: {error}") from error
    return tasks


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML in which a key given twice is an error: the first of two tasks would be dropped silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"keys given twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        raw = _parsed(path, path.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"prompt file {path} cannot be read: {error}") from error
    if not isinstance(raw, dict) or not all(isinstance(n, str) and isinstance(s, dict) for n, s in raw.items()):
        raise ValueError(f"prompt file {path}: expected tasks by name, each with {sorted(_TASK_KEYS)}")
    return raw


@lru_cache(maxsize=64)
def _parsed(path: Path, content: bytes) -> Any:
    """What a file with this content says, for reading only. The shipped files take 30 ms, often once a shard."""
    return read_yaml(path, _UniqueKeys)


def _check(spec: dict[str, Any]) -> None:
    """Types of a task's keys."""
    if unknown := set(spec) - _TASK_KEYS:
        raise ValueError(f"unknown keys {sorted(map(str, unknown))}; use {sorted(_TASK_KEYS)}")
    target, prompts = spec.get("target"), spec.get("prompts")
    if not (isinstance(target, str) or _texts(target)) or not isinstance(prompts, dict):
        raise ValueError("'target' (text, or several) and 'prompts' (by language) are needed")
    for language, wordings in prompts.items():
        if not _texts(wordings):
            raise ValueError(f"'prompts' of {language!r} must be a list of texts, at least one")
        if len(set(wordings)) != len(wordings):
            raise ValueError(f"'prompts' of {language!r} repeat a wording")
    if not _texts(spec.get("requires", ["-"])):
        raise ValueError("'requires' must be a list of field names")
    if not isinstance(spec.get("family", ""), str):
        raise ValueError("'family' must be text")
    clips = spec.get("clips", 1)
    if not isinstance(clips, int) or isinstance(clips, bool) or clips < 1:
        raise ValueError("'clips' must be a number of 1 or more")
    lists = spec.get("lists", {})
    if not isinstance(lists, dict) or not all(
        isinstance(form, dict) and set(form) == {"item", "join"} and all(isinstance(t, str) for t in form.values())
        for form in lists.values()
    ):
        raise ValueError("'lists' must give 'item' and 'join' (texts) for each field")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _variants(name: str, spec: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The task itself, or one per variant with its words put in."""
    if "variants" not in spec:
        _check(spec)
        return [(name, spec)]
    variants = spec["variants"]
    if not isinstance(variants, dict) or not variants or not all(isinstance(v, dict) for v in variants.values()):
        raise ValueError("'variants' must map names to the words that replace @word")
    if "@code" not in name:
        raise ValueError("the name of a task with variants must hold @code")
    out = []
    for code, words in variants.items():
        known = {**words, "code": code}
        if not all(isinstance(v, str) for v in known.values()):
            raise ValueError(f"variant {code!r}: names and words must be texts (quote no, yes and numbers)")
        concrete = {key: _replace(value, known) for key, value in spec.items() if key != "variants"}
        _check(concrete)
        out.append((_replace(name, known), concrete))
    return out


def _replace(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replace(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replace(inner, words) for inner in value]
    if not isinstance(value, str):
        return value
    missing = [name for name in _VARIABLE.findall(value) if name not in words]
    if missing:
        raise ValueError(f"{value!r}: no variant word {missing}; there are {sorted(words)}")
    return _VARIABLE.sub(lambda match: words[match[1]], value)


def _task(name: str, spec: dict[str, Any], languages: tuple[str, ...], folder: Path) -> Task:
    wordings = [text for language in languages for text in spec["prompts"].get(language, [])]
    if not wordings:
        raise ValueError(
            f"no wording in {list(languages)}, only in {sorted(map(str, spec['prompts']))}: "
            "add one, or change data.prompt_languages"
        )
    targets = [spec["target"]] if isinstance(spec["target"], str) else spec["target"]
    # A wording that is the same in two languages, such as "{question}", counts once.
    prompts = tuple(parse(text) for text in dict.fromkeys(wordings))
    hotwords = read_hotwords(spec[HOTWORDS], folder) if HOTWORDS in spec else None
    if hotwords is not None:
        naming = {names(prompt, HOTWORDS) for prompt in prompts}
        if naming != ({True, False} if hotwords.none else {True}):
            raise ValueError(
                f"with '{HOTWORDS}', wordings name {{{HOTWORDS}}}; others are needed if none is above 0, and are not "
                f"used if it is 0 (it is {hotwords.none:g})"
            )
    return Task(
        name,
        spec.get("family", ""),
        (*spec.get("requires", ()), *(["text"] if hotwords else [])),
        spec.get("clips"),
        tuple(map(parse, targets)),
        prompts,
        {key: ListForm(parse(form["item"]), form["join"]) for key, form in spec.get("lists", {}).items()},
        hotwords,
    )


def names(pieces: Pieces, name: str) -> bool:
    """Whether the pieces name that field."""
    return any(piece.field == name for piece in pieces)


def parse(template: str) -> Pieces:
    """A wording or target in its pieces. ValueError for what is no record field in braces."""
    pieces = []
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{template!r}: {error}; write {{name}} for a field, {{{{ for a brace") from error
    for literal, name, spec, conversion in parsed:
        match = _FIELD.fullmatch(name) if name is not None else None
        if name is not None and (match is None or spec or conversion):
            raise ValueError(f"{template!r}: {name!r} is not a record field; write {{name}} or {{name[key]}}")
        pieces.append(Piece(literal, *(match.groups() if match else ())))
    return tuple(pieces)


def _text(value: Any, key: str | None = None) -> str | None:
    """A record's value as text: numbers as written, lists of texts joined by commas."""
    if key is not None:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.12g}"
    return value if isinstance(value, str) else None


def _listed(form: ListForm, value: Any) -> str | None:
    """The items in one text; None when the record has none, or an item lacks a field."""
    if isinstance(value, dict):
        value = [{"name": name, "value": inner} for name, inner in value.items()]
    if not isinstance(value, list) or not value:
        return None
    items = []
    for entry in value:
        words = [piece.literal + _item_text(entry, piece) for piece in form.item]
        if any(piece.field is not None and not _item_text(entry, piece) for piece in form.item):
            return None
        items.append("".join(words))
    return form.join.join(items)


def _item_text(entry: Any, piece: Piece) -> str:
    value = entry.get(piece.field) if isinstance(entry, dict) and piece.field else ""
    if piece.field in ("start", "end") and isinstance(value, int | float):
        return f"{value:.2f}"
    return _text(value, piece.key) or ""
