"""A task's target read backwards: from a model's answer to the fields of a record."""

from __future__ import annotations

import re
from typing import Any

from data_pipelines.importing.import_shard import LeftOut
from qa_train.data.text.records import LANGUAGE_CODES, LANGUAGES
from qa_train.data.text.tasks import Piece, Task

# Lists of texts, which a target joins by commas.
_LISTS = ("labels", "keywords")
# Characters of an answer in a message.
_SHOWN = 100


class AnswerForm:
    """The form of a task's answers: text around fields, as ``<|{language}|>{text}``."""

    def __init__(self, task: Task) -> None:
        """ValueError for a task whose answers are no plain fields."""
        self.pieces = task.targets[0]
        self.fields = tuple(piece.field for piece in self.pieces if piece.field)
        if task.hotwords or not self.fields or {*self.fields} & {*task.lists}:
            raise ValueError(
                f"task={task.name} cannot be labelled: use one whose target is made of single fields, as asr, lid or "
                "sound_caption"
            )
        form = "".join(re.escape(piece.literal) + ("(.+?)" if piece.field else "") for piece in self.pieces)
        self._pattern = re.compile(form, re.DOTALL)

    def missing(self, record: dict[str, Any]) -> bool:
        """Whether a record lacks a field that the answers fill."""
        return not all(_held(record, piece) for piece in self.pieces if piece.field)

    def filled(self, record: dict[str, Any], answer: str) -> dict[str, Any]:
        """The record with the fields of an answer. Raises LeftOut if the answer has another form."""
        match = self._pattern.fullmatch(answer)
        if match is None:
            raise LeftOut(f"{answer[:_SHOWN]!r} is not of the form of the task", "answer of another form")
        filled = dict(record)
        for piece, value in zip([piece for piece in self.pieces if piece.field], match.groups(), strict=True):
            value = value.strip()
            if not value or "<|" in value or "<audio>" in value:
                raise LeftOut(f"{answer[:_SHOWN]!r} has special text in it", "answer of another form")
            _fill(filled, piece, value)
        return filled


def _held(record: dict[str, Any], piece: Piece) -> bool:
    value = record.get("language" if piece.field == "language_name" else str(piece.field))
    return bool((value or {}).get(piece.key) if piece.key else value)


def _fill(record: dict[str, Any], piece: Piece, value: str) -> None:
    name = str(piece.field)
    if name == "language_name":
        named = {code for each, code in LANGUAGE_CODES.items() if re.search(rf"\b{each}\b", value, re.IGNORECASE)}
        if len(named) != 1:
            raise LeftOut(f"{value[:_SHOWN]!r} names {len(named)} known languages, expected one", "no language")
        record["language"] = named.pop()
    elif name == "language" and value not in LANGUAGES:
        raise LeftOut(f"{value[:_SHOWN]!r} is no code of a known language, such as en", "no language")
    elif piece.key:
        record[name] = {**(record.get(name) or {}), piece.key: value}
    else:
        record[name] = [part.strip() for part in value.split(",")] if name in _LISTS else value
