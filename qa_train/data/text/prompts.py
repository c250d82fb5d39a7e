"""The prompt bank: tasks in YAML turn a record into a chat sample.

A task names a target (a format string over the record) and pools of wordings. The wording is a
keyed hash of (seed, epoch, key, task): it does not depend on the order in which samples are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qa_train.config import config_dir
from qa_train.data.text.content import content_parts, turn_loss
from qa_train.data.text.records import BadRecord, fields
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.data.text.tasks import HOTWORDS, Pieces, Task, names, read_tasks
from qa_train.utils import draws
from qa_train.utils.closest import did_you_mean
from qa_train.utils.plugins import packaged

CHAT = "chat"
# A wording, and the list of words that it names.
Wording = tuple[Pieces, str]


class Unqualified(ValueError):
    """The record lacks a field that the task needs; it is counted and not an error of the data."""


class PromptBank:
    """The tasks of the given YAML files, with the wordings of the chosen languages."""

    def __init__(self, tasks: dict[str, Task]) -> None:
        self.tasks = tasks

    @staticmethod
    def load(files: Iterable[str | Path] = (), languages: Iterable[str] = ("en",)) -> PromptBank:
        """Read the built-in bank and then ``files``, whose tasks replace those of the same name.

        A file may be inside an installed package: ``package:folder/file.yaml`` (no code of it is run).
        """
        chosen = tuple(languages)
        tasks: dict[str, Task] = {}
        for path in [*sorted((config_dir() / "prompts").glob("*.yaml")), *map(packaged, files)]:
            tasks |= read_tasks(path, chosen)
        return PromptBank(tasks)

    def task(self, name: str) -> Task:
        """The task of that name; ValueError lists the known ones."""
        if name not in self.tasks:
            known = [CHAT, *sorted(self.tasks)]
            raise ValueError(f"task {name!r} is unknown: {did_you_mean(name, known)}there are {', '.join(known)}")
        return self.tasks[name]

    def digest(self, name: str) -> str:
        """Depends only on what ``sample`` makes of a record for this task, not on the rest of the bank."""
        if name == CHAT:
            return CHAT
        # The family only names a row of tables.
        task = replace(self.task(name), family="")
        return hashlib.sha256(f"{task}{task.hotwords or ''}".encode()).hexdigest()

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
            try:
                messages, clips = chat_messages(record)
            except BadRecord as error:
                # Of shards that were indexed by an earlier version.
                raise Unqualified(f"{key}: {error}") from error
            if messages[-1].role != "assistant" and "chosen" in record:
                messages += (Message("assistant", (TextPart(record["chosen"]),)),)
        else:
            messages, clips = self._prompted(record, task, key, seed, epoch, pair)
        answered = messages[-1].role == "assistant"
        language = record.get("language")
        if not pair:
            if not answered:
                raise Unqualified(f"{key}: the messages end without an answer")
            if all(message.learned is False for message in messages if message.role == "assistant"):
                raise Unqualified(f"{key}: every answer is marked as not learned (loss: false)")
            return Sample(key, messages, clips, task, language, template)
        chosen, rejected = (TextPart(record["chosen"]),), (TextPart(record["rejected"]),)
        return Sample(key, messages[:-1] if answered else messages, clips, task, language, template, chosen, rejected)

    def _prompted(
        self, record: dict[str, Any], name: str, key: str, seed: int, epoch: int, pair: bool
    ) -> tuple[tuple[Message, ...], int]:
        asked = self.question(record, name, pair=pair, key=key)
        options = asked.options()
        if not options:
            raise Unqualified(f"{key}: task {name} needs fields of its prompts that the record lacks")
        user = asked.user(options[draw(seed, epoch, key, name, len(options))])
        if pair or asked.target is None:
            return (user,), asked.clips
        return (user, Message("assistant", asked.target)), asked.clips

    def question(self, record: dict[str, Any], name: str, *, pair: bool = False, key: str = "") -> Question:
        """What a task makes of a record before a wording is drawn; raises Unqualified when it lacks a field."""
        task = self.task(name)
        known = fields(record)
        missing = [field for field in task.requires if field not in known]
        if missing:
            raise Unqualified(f"{key}: task {name} needs {missing}")
        clips = 1 if record.get("audios") is None else len(record["audios"])
        if not clips:
            raise Unqualified(f"{key}: task {name} needs a clip, the record is text only")
        if task.clips not in (None, clips):
            raise Unqualified(f"{key}: task {name} needs {task.clips} clips, the record has {clips}")
        target = next((target for target in task.targets if task.complete(target, known)), None)
        if not (pair or target):
            raise Unqualified(f"{key}: task {name} needs fields of its target that the record lacks")
        return Question(task, known, clips, task.fill(target, known) if target else None)


@dataclass(frozen=True)
class Question:
    """A task on one record: its fields, clips and answer; the wording is open."""

    task: Task
    known: dict[str, Any]
    clips: int
    target: tuple[TextPart, ...] | None

    def options(self) -> list[Wording]:
        """Wordings to draw from: one with a field that the record lacks (e.g. a language tag) is none."""
        if self.task.hotwords is None:
            return [(prompt, "") for prompt in self.task.prompts if self.task.complete(prompt, self.known)]
        known = self.known | {HOTWORDS: "-"}
        complete = [prompt for prompt in self.task.prompts if self.task.complete(prompt, known)]
        made: list[Wording] = []
        for way, words in enumerate(self.task.hotwords.lists(self.known["text"])):
            fitting = [prompt for prompt in complete if names(prompt, HOTWORDS) == bool(words)]
            made += [(fitting[way % len(fitting)], words)] if fitting else []
        return made

    def asks(self) -> tuple[Any, ...]:
        """All that the wordings depend on: equal for records that are asked the same."""
        heard = self.known["text"] if self.task.hotwords else None
        return self.clips, heard, *(self.task.value(piece, self.known) for piece in self.task.asked)

    def user(self, wording: Wording) -> Message:
        """The user's turn in that wording."""
        prompt, words = wording
        clips = (AudioPart(i) for i in range(self.clips))
        return Message(
            "user", (*clips, *self.task.fill(prompt, self.known | {HOTWORDS: words} if words else self.known))
        )


def draw(seed: int, epoch: int, key: str, task: str, count: int) -> int:
    """A number below ``count``, the same for the same arguments on every machine."""
    return draws.below(count, [seed, epoch, key, task])


def chat_messages(record: dict[str, Any]) -> tuple[tuple[Message, ...], int]:
    """The record's own turns and their number of clips (``qa_train.data.text.content`` defines a content).

    Every clip in the messages is the next one of the record. A single clip without a mark is put at the start of the
    first user turn. Raises BadRecord when texts and clips do not match, or an answer has an unknown loss mark.
    """
    turns = record.get("messages")
    if not turns:
        raise Unqualified("task chat needs 'messages'")
    for name in ("chosen", "rejected"):
        if any(not isinstance(part, str) for part in content_parts(record.get(name, ""))):
            raise BadRecord(f"the {name} answer contains a clip or a clip marker: an answer must be text")
    placed = 0
    messages: list[Message] = []
    for turn in turns:
        content: list[TextPart | AudioPart] = []
        for part in content_parts(turn["content"]):
            content.append(TextPart(part) if isinstance(part, str) else AudioPart(placed))
            placed += not isinstance(part, str)
        messages.append(Message(turn["role"], tuple(content), turn_loss(turn)))
    clips = 1 if record.get("audios") is None else len(record["audios"])
    if placed == 0 and clips == 1:
        first = next((i for i, m in enumerate(messages) if m.role == "user"), 0)
        messages[first] = replace(messages[first], content=(AudioPart(0), *messages[first].content))
        placed = 1
    if placed != clips:
        raise BadRecord(f"the messages place {placed} clips, 'audios' lists {clips}: make them agree")
    return tuple(messages), clips
