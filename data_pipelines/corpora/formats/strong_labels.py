"""Sound events with their times: tables of ``filename``, ``onset``, ``offset`` and ``event_label``, one row per event
(DESED, DCASE), and lists of one recording each, named like it (URBAN-SED, TUT: onset, offset, label, without a header).
"""

from __future__ import annotations

from collections.abc import Iterator
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
    stem,
    words_of,
)
from data_pipelines.corpora.formats.delimited import open_table
from data_pipelines.corpora.formats.fields import AUDIO_COLUMNS

_LISTS = ("*.tsv", "*.csv", "*.txt", "*.ann")


def _read(request: Request) -> Found:
    tree = request.tree
    names = [Path(path).name for path in tree.files] or tree.need(*_LISTS, what="list of sound events")
    for listed in names:
        request.without_split(listed)
        clips: dict[str, list[dict[str, Any]]] = {}
        for found in _events(request, listed):
            if isinstance(found, Drop):
                yield found
                continue
            file, event = found
            clips.setdefault(file, []).extend([event] if event else [])
        for file, events in clips.items():
            audio = tree.by_stem(stem(file))
            if audio is None:
                yield Drop(stem(file), "missing audio", f"listed in {listed}")
            elif not events:
                yield Drop(stem(file), "no events", listed, filter=True)
            else:
                yield Item(stem(file), (tree.recording(audio),), events_record(events))


def _events(request: Request, listed: str) -> Iterator[tuple[str, dict[str, Any] | None] | Drop]:
    """(file, event) of each row; None for a row that lists a clip in which nothing is heard."""
    header, rows = open_table(request, listed)
    given = request.columns
    named = {
        "audio": given.get("audio") or next((name for name in AUDIO_COLUMNS if name in header), None),
        "start": given.get("start", "onset"),
        "end": given.get("end", "offset"),
        "label": given.get("label")
        or next((name for name in ("event_label", "label") if name in header), "event_label"),
    }
    if missing := [name for name in named.values() if name is not None and name not in header]:
        raise ValueError(
            f"{listed}: no column {missing}; it has {list(header)}: expected filename, onset, offset, event_label. "
            "columns.start=, columns.end=, columns.label= and columns.audio= name others; for lists without a line of "
            "names: header=[onset,offset,event_label]"
        )
    for line, row in rows:
        if isinstance(row, str):
            yield Drop(f"{listed}-{line}", "row that does not fit", row)
            continue
        file = listed if named["audio"] is None else row[named["audio"]]
        start, end, label = (row[str(named[name])].strip() for name in ("start", "end", "label"))
        if not (start or end or label):
            yield file, None
            continue
        try:
            event = {"label": words_of(label), "start": round(float(start), 3), "end": round(float(end), 3)}
        except ValueError as error:
            yield Drop(f"{listed}-{line}", "bad cell", str(error))
            continue
        yield file, event


CORPORA = (
    Corpus("strong_labels", "sound events with their times: tables of DESED and DCASE, lists of URBAN-SED and TUT",
           "not stated: set fields.license=", "", {"train": TRAIN, "validation": DEV, "test": TEST}, _read,
           ("events", "labels"),
           "filename, onset, offset, event_label; header=[onset,offset,event_label] where each recording has a list; "
           "clips are found by name", generic=True),
)  # fmt: skip
