"""The prompt bank: tasks in YAML turn a record into a chat sample.

A task names a target (a format string over the record) and pools of wordings. The wording is a
keyed hash of (seed, epoch, key, task): it does not depend on the order in which samples are made.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from qa_train.config import config_dir
from qa_train.data.records import LANGUAGES, BadRecord, fields
from qa_train.data.sample import AudioPart, Message, Sample, TextPart

CHAT = "chat"
PLACEHOLDER = "<audio>"
_TASK_KEYS = {"family", "requires", "target", "prompts"}
_FIELD = re.compile(r"([a-z_]+)(?:\[([A-Za-z_\-]+)\])?")


class Unqualified(ValueError):
    """The record lacks what the task needs; it is counted, not an error of the data."""


@dataclass(frozen=True)
class Task:
    """One task of the bank; ``pieces`` are parsed format strings: (literal, field, key) triples."""

    name: str
    family: str
    requires: tuple[str, ...]
    target: tuple[Piece, ...]
    prompts: tuple[tuple[Piece, ...], ...]


@dataclass(frozen=True)
class Piece:
    """Literal text, then an optional record field, with an optional key into it."""

    literal: str
    field: str | None = None
    key: str | None = None


class PromptBank:
    """The tasks of the given YAML files, with the wordings of the chosen languages."""

    def __init__(self, tasks: dict[str, Task], digest: str) -> None:
        self.tasks = tasks
        self.digest = digest

    @staticmethod
    def load(files: Iterable[str | Path] = (), languages: Iterable[str] = ("en",)) -> PromptBank:
        """Read the built-in bank and then ``files``, whose tasks replace those of the same name."""
        chosen = tuple(languages)
        raw: dict[str, dict[str, Any]] = {}
        for path in [*sorted((config_dir() / "prompts").glob("*.yaml")), *map(Path, files)]:
            raw |= _read(path)
        tasks = {name: _task(name, spec, chosen) for name, spec in raw.items()}
        text = json.dumps([raw, chosen], sort_keys=True, ensure_ascii=False)
        return PromptBank(tasks, hashlib.sha256(text.encode()).hexdigest())

    def task(self, name: str) -> Task:
        """The task of that name; ValueError lists the known ones."""
        if name not in self.tasks:
            raise ValueError(f"task {name!r} is unknown; known are {CHAT!r} and {sorted(self.tasks)}")
        return self.tasks[name]

    def qualifies(self, record: dict[str, Any], task: str, *, pair: bool = False) -> bool:
        """Whether ``sample`` can make this task of the record."""
        try:
            self.sample(record, task, "chat", "", 0, 0, pair=pair)
        except Unqualified:
            return False
        return True

    def sample(
        self,
        record: dict[str, Any],
        task: str,
        template: str,
        key: str,
        seed: int,
        epoch: int,
        *,
        pair: bool = False,
    ) -> Sample:
        """The record as one training sample; raises Unqualified when it lacks a field of the task.

        ``task="chat"`` takes the record's own messages; when these end with the user's turn, a
        "chosen" answer completes them. With ``pair`` the sample is a preference pair: its messages
        end with the user's turn, and the record's "chosen" and "rejected" follow.
        """
        if pair and "chosen" not in record:
            raise Unqualified(f"{key}: a preference pair needs 'chosen' and 'rejected'")
        if task == CHAT:
            if template != "chat":
                raise ValueError(f"{key}: task chat has its own turns; set template: chat")
            messages, clips = chat_messages(record)
            if messages[-1].role != "assistant" and "chosen" in record:
                messages += (Message("assistant", (TextPart(record["chosen"]),)),)
        else:
            messages, clips = self._prompted(record, task, key, seed, epoch, pair)
        answered = messages[-1].role == "assistant"
        language = record.get("language")
        if not pair:
            if not answered:
                raise Unqualified(f"{key}: the messages end without an answer")
            return Sample(key, messages, clips, task, language, template)
        chosen, rejected = (TextPart(record["chosen"]),), (TextPart(record["rejected"]),)
        return Sample(key, messages[:-1] if answered else messages, clips, task, language, template, chosen, rejected)

    def _prompted(
        self, record: dict[str, Any], name: str, key: str, seed: int, epoch: int, pair: bool
    ) -> tuple[tuple[Message, ...], int]:
        task = self.task(name)
        known = fields(record)
        missing = [field for field in task.requires if field not in known]
        if missing:
            raise Unqualified(f"{key}: task {name} needs {missing}")
        # A wording that names a field the record lacks (a language tag, say) is not drawn.
        options = [prompt for prompt in task.prompts if _complete(prompt, known)]
        if not options or not (pair or _complete(task.target, known)):
            raise Unqualified(f"{key}: task {name} needs fields of its prompts or target that the record lacks")
        prompt = _fill(options[draw(seed, epoch, key, name, len(options))], known)
        clips = len(record["audios"]) if "audios" in record else 1
        if not clips:
            raise Unqualified(f"{key}: task {name} needs a clip, the record is text only")
        user = Message("user", (*(AudioPart(i) for i in range(clips)), *prompt))
        if pair:
            return (user,), clips
        return (user, Message("assistant", _fill(task.target, known))), clips


def draw(seed: int, epoch: int, key: str, task: str, count: int) -> int:
    """A number below ``count``, the same for the same arguments on every machine."""
    name = json.dumps([seed, epoch, key, task]).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) % count


def chat_messages(record: dict[str, Any]) -> tuple[tuple[Message, ...], int]:
    """The record's own turns and their number of clips.

    ``<audio>`` in a text, or a part of type "audio", places the next clip. When nothing places
    the record's only clip, it opens the first user turn. Raises BadRecord when texts and clips
    do not match.
    """
    turns = record.get("messages")
    if not turns:
        raise Unqualified("task chat needs 'messages'")
    placed = 0
    messages: list[Message] = []
    for turn in turns:
        content: list[TextPart | AudioPart] = []
        parts = turn["content"] if isinstance(turn["content"], list) else [turn["content"]]
        for part in parts:
            if isinstance(part, dict) and part["type"] == "audio":
                content.append(AudioPart(placed))
                placed += 1
                continue
            text = part if isinstance(part, str) else str(part.get("text", ""))
            for i, piece in enumerate(text.split(PLACEHOLDER)):
                if i:
                    content.append(AudioPart(placed))
                    placed += 1
                if piece:
                    content.append(TextPart(piece))
        messages.append(Message(turn["role"], tuple(content)))
    clips = len(record["audios"]) if "audios" in record else 1
    if placed == 0 and clips == 1:
        first = next((i for i, m in enumerate(messages) if m.role == "user"), 0)
        messages[first] = Message(messages[first].role, (AudioPart(0), *messages[first].content))
        placed = 1
    if placed != clips:
        raise BadRecord(f"the messages place {placed} clips, 'audios' lists {clips}: make them agree")
    return tuple(messages), clips


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"prompt file {path} cannot be read: {error}") from error
    if not isinstance(raw, dict) or not all(isinstance(spec, dict) for spec in raw.values()):
        raise ValueError(f"prompt file {path}: expected tasks by name, each with {sorted(_TASK_KEYS)}")
    for name, spec in raw.items():
        if unknown := set(spec) - _TASK_KEYS:
            raise ValueError(f"{path}, task {name}: unknown keys {sorted(unknown)}; use {sorted(_TASK_KEYS)}")
        if not isinstance(spec.get("target"), str) or not isinstance(spec.get("prompts"), dict):
            raise ValueError(f"{path}, task {name}: 'target' (text) and 'prompts' (by language) are needed")
    return raw


def _task(name: str, spec: dict[str, Any], languages: tuple[str, ...]) -> Task:
    wordings = [text for language in languages for text in spec["prompts"].get(language, [])]
    if not wordings:
        raise ValueError(
            f"task {name} has no wording in {list(languages)}, only in {sorted(spec['prompts'])}: "
            "add one, or change data.prompt_languages"
        )
    prompts = tuple(_parse(text) for text in wordings)
    return Task(name, spec.get("family", ""), tuple(spec.get("requires", ())), _parse(spec["target"]), prompts)


def _parse(template: str) -> tuple[Piece, ...]:
    pieces = []
    for literal, field, _, _ in Formatter().parse(template):
        match = _FIELD.fullmatch(field) if field is not None else None
        if field is not None and match is None:
            raise ValueError(f"{template!r}: {field!r} is not a record field; write {{name}} or {{name[key]}}")
        pieces.append(Piece(literal, *(match.groups() if match else ())))
    return tuple(pieces)


def _value(piece: Piece, known: dict[str, Any]) -> str | None:
    value = known.get(piece.field) if piece.field else ""
    if piece.key is not None:
        value = value.get(piece.key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _complete(pieces: tuple[Piece, ...], known: dict[str, Any]) -> bool:
    return all(piece.field is None or _value(piece, known) for piece in pieces)


def _fill(pieces: tuple[Piece, ...], known: dict[str, Any]) -> tuple[TextPart, ...]:
    """Trusted literals and untrusted values; a language code inside a tag joins its literal."""
    parts: list[TextPart] = []
    trusted = ""
    for piece in pieces:
        trusted += piece.literal
        value = _value(piece, known)
        if not value:
            continue
        if piece.field == "language" and trusted.endswith("<|"):
            trusted += value if value in LANGUAGES else "unknown"
            continue
        parts += [TextPart(trusted, trusted=True)] if trusted else []
        parts.append(TextPart(value))
        trusted = ""
    return (*parts, TextPart(trusted, trusted=True)) if trusted else tuple(parts)
