"""Sound events with their times: tables of ``filename``, ``onset``, ``offset`` and ``event_label``, one row per event
(DESED, DCASE), and lists of one recording each, named like it (URBAN-SED, TUT: onset, offset, label, without a header).
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.corpora.base import (
    DEV,
    TEST,
    TRAIN,
    Corpus,
    Drop,
    Found,
    Item,
    Request,
    events_record,
    role_in,
    role_named,
    stem,
    words_of,
)
from data_pipelines.corpora.formats.delimited import Rows, open_table
from data_pipelines.corpora.formats.fields import AUDIO_COLUMNS
from qa_train.data.text.records import BadRecord

_LISTS = ("*.tsv", "*.csv", "*.txt", "*.ann")


def _read(request: Request) -> Found:
    tree = request.tree
    for opened in _lists(request):
        clips: dict[str, list[dict[str, Any]]] = {}
        for found in _events(opened):
            if isinstance(found, Drop):
                yield found
                continue
            file, event = found
            clips.setdefault(file, []).extend([event] if event else [])
        for file, events in clips.items():
            try:
                audio = tree.recording(request.listed_audio(file))
            except BadRecord as error:
                yield Drop(stem(file), error.reason, f"{error}; listed in {opened.name}")
                continue
            if not events:
                yield Drop(stem(file), "no events", opened.name, filter=True)
            else:
                yield Item(stem(file), (audio,), events_record(events))


@dataclass(frozen=True)
class _List:
    """An opened list; ``audio`` is the column of the clip, None where the list is of the clip of its own name."""

    name: str
    audio: str | None
    start: str
    end: str
    label: str
    rows: Rows


class _OtherFile(ValueError):
    """A table without the columns of events."""


def _lists(request: Request) -> list[_List]:
    """The lists of the split, of those that were named or else of all.

    Raises:
        ValueError: no list, or several tables that may be of other splits.
    """
    tree = request.tree
    if tree.named:
        return [_open(request, name) for name in request.lists([*tree.named])]
    names = request.lists(tree.need(*_LISTS, what="list of sound events"))
    role = role_named(request.published_split)
    told = role in (request.role_said(names[0]), *(role_in(Path(path).name) for path in request.paths))
    found, others = [], []
    for name in names:
        try:
            found.append(_open(request, name))
        except _OtherFile as error:
            others.append((name, error))
    if not found and others:
        raise others[0][1]
    if not told and sum(opened.audio is not None for opened in found) > 1:
        raise ValueError(
            f"no list says that it is of split {request.published_split} ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}): name the lists and the audio, path=[LIST,AUDIO]"
        )
    if others:
        first = ", ".join(name for name, _ in others[:3])
        request.notes.append(f"without the columns of a list, not read: {len(others)} ({first})")
    return found


def _open(request: Request, name: str) -> _List:
    with request.tree.open(name) as file:
        empty = not file.read(1 << 12).strip(codecs.BOM_UTF8 + b" \t\r\n")
    if empty and request.tree.by_stem(stem(name)):
        # As such lists are where nothing is heard.
        return _List(name, None, "", "", "", iter(()))
    if empty:
        raise _OtherFile(f"{name} is empty")
    header, rows = open_table(request, name)
    given = request.columns
    audio = given.get("audio") or next((column for column in AUDIO_COLUMNS if column in header), None)
    label = given.get("label") or next((column for column in ("event_label", "label") if column in header), None)
    found = _List(name, audio, given.get("start", "onset"), given.get("end", "offset"), label or "event_label", rows)
    needed = (found.audio, found.start, found.end, found.label)
    if missing := [column for column in needed if column is not None and column not in header]:
        raise _OtherFile(
            f"{name}: no column {missing}; it has {list(header)}: expected filename, onset, offset, event_label. "
            "columns.start=, columns.end=, columns.label= and columns.audio= name others; for lists without a line of "
            "names: header=[onset,offset,event_label]"
        )
    return found


def _events(opened: _List) -> Iterator[tuple[str, dict[str, Any] | None] | Drop]:
    """(file, event) of each row; None for a row that lists a clip in which nothing is heard, and for an empty list."""
    line = 0
    for line, row in opened.rows:
        if isinstance(row, str):
            yield Drop(f"{opened.name}-{line}", "row that does not fit", row)
            continue
        file = opened.name if opened.audio is None else row[opened.audio]
        cells = [row[column].strip() for column in (opened.label, opened.start, opened.end)]
        try:
            yield file, _event(*cells) if any(cells) else None
        except ValueError as error:
            yield Drop(f"{opened.name}-{line}", "bad cell", str(error))
    if not line and opened.audio is None:
        yield opened.name, None


def _event(label: str, start: str, end: str) -> dict[str, Any]:
    name, first, last = words_of(label), round(float(start), 3), round(float(end), 3)
    if not name or not 0 <= first <= last < math.inf:
        raise ValueError(f"{label!r} from {start} s to {end} s; expected a label, and 0 <= start <= end")
    return {"label": name, "start": first, "end": last}


CORPORA = (
    Corpus("strong_labels", "sound events with their times: tables of DESED and DCASE, lists of URBAN-SED and TUT",
           "not stated: set fields.license=", "", {"train": TRAIN, "validation": DEV, "test": TEST}, _read,
           ("events", "labels"),
           "filename, onset, offset, event_label; header=[onset,offset,event_label] where each recording has a list; "
           "clips are found by name", generic=True),
)  # fmt: skip
