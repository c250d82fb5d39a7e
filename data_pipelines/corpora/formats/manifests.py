"""Generic lists of audio files: tables, JSONL or JSON (chats or rows), and Kaldi's data folders.

A list may name files anywhere on the machine; it can never run a program: of Kaldi's pipes those that only
decode one file are read as that file, the others refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from data_pipelines.corpora.base import (
    DEV,
    TEST,
    TRAIN,
    Corpus,
    Drop,
    Found,
    Item,
    Recording,
    Request,
    gender_of,
    present,
)
from data_pipelines.corpora.formats.delimited import open_table
from data_pipelines.corpora.formats.fields import (
    PART,
    cell_at,
    decoded_file,
    mapping,
    note_parts,
    note_untaken,
    record_of,
    recording_of,
    untaken,
)
from data_pipelines.corpora.recordings import WHOLE
from data_pipelines.corpora.tree import unbroken
from qa_train.data.shards.tar import DamagedShard
from qa_train.data.text.chat_rows import TURNS, chat_record, is_chat, parts_of, unknown_fields
from qa_train.data.text.records import BadRecord, language_code
from qa_train.data.tools.interchange import said_of

_ANY = {"train": TRAIN, "dev": DEV, "test": TEST}


def _tables(request: Request) -> Iterator[tuple[str, Path]]:
    """(name, folder) of the tables: the files named in path=, or the one at the top of the folder."""
    tree = request.tree
    listed = [*tree.named]
    if not listed:
        top = [name for name in tree.names if "/" not in name and name.lower().endswith((".csv", ".tsv"))]
        listed = [name for name in top if name.lower().startswith("metadata.")] or top
    if len(listed) != 1 and not tree.named:
        raise ValueError(
            f"expected one .csv or .tsv at the top of {', '.join(tree.paths)}, found {listed}: name it in path="
        )
    for name in listed:
        yield name, Path(tree.named[name]).parent if tree.named else Path(tree.paths[0])


def _table(request: Request) -> Found:
    left: Counter[str] = Counter()
    for listed, folder in _tables(request):
        header, found = open_table(request, listed)
        columns = _columns(request, listed, header)
        note_parts(request, columns)
        if "split" not in columns:
            request.without_split(listed)
        for number, (line, row) in enumerate(found, 1):
            if isinstance(row, str):
                yield Drop(f"{listed}-{line}", "row that does not fit", row)
                continue
            left.update(name for name in untaken(columns, row) if row[name])
            if "split" in columns and row[columns["split"]] != request.published_split:
                continue
            path = cell_at(row, columns["audio"]) or ""
            name = row[columns["key"]] if "key" in columns else f"{number:08d}-{Path(path[-80:]).stem}"
            try:
                record = record_of(row, columns)
                start, end = _part(row, columns)
                audio = recording_of(request, path, folder, f"{listed}:{line}", start_s=start, end_s=end)
            except ValueError as error:
                yield Drop(name, "bad cell", str(error))
                continue
            record.pop("split", None)
            yield Item(name, (audio,), record)
    note_untaken(request, left)


def _columns(request: Request, listed: str, header: tuple[str, ...]) -> dict[str, str]:
    try:
        columns = mapping(request.columns, header, parts=True)
        if "audio" not in columns:
            raise ValueError(f"no column of {list(header)} names the audio: set columns.audio=COLUMN")
    except ValueError as error:
        if {"onset", "offset"} <= {*header}:
            raise ValueError(
                f"{listed}: {error}; sound events are read by qa-train data import strong_labels"
            ) from error
        names = "; if its first line is not a header, give the names: header=[audio,text], and delimiter='|' if need be"
        raise ValueError(f"{listed}: {error}{'' if request.table.header else names}") from error
    return columns


def _part(row: dict[str, Any], columns: dict[str, str]) -> tuple[float, float | None]:
    """``start`` and ``end`` of a row, or NeMo's ``offset`` and ``duration``, as the segment that they cut (seconds).

    A ``duration`` alone cuts in NeMo's own rows, those of an ``audio_filepath``; elsewhere it is a measure of the file.
    In rows with an ``onset``, perhaps an empty one, an ``offset`` is the end of an event (DCASE).
    """
    place = columns.get("start", "offset" if "onset" not in row else "")
    # Column "" is pandas' row numbers.
    cells = (cell_at(row, column) if column else None for column in (place, columns.get("end"), "duration"))
    start, end, duration = (None if cell == "" else cell for cell in cells)
    cuts = start is not None or "audio_filepath" in row
    try:
        if end is None and cuts and duration is not None:
            end = float(start or 0.0) + float(duration)
        return float(start or 0.0), None if end is None else float(end)
    except (ValueError, TypeError) as error:
        remedy = f"; {WHOLE}" if "start" in columns else ""
        raise ValueError(f"the part of the recording must be in seconds ({error}){remedy}") from error


def _jsonl(request: Request) -> Found:
    tree = request.tree
    what = "list of rows (*.jsonl, *.json)"
    names = [*tree.named] or tree.glob("*.jsonl", "*.jsonl.gz") or tree.need("*.json", what=what)
    found = RowReader(request)
    for listed in names:
        folder = Path(tree.recording(listed).path).parent

        def place(source: Any, row: dict[str, Any], where: str, folder: Path = folder) -> Recording:
            return recording_of(request, source, folder, where)

        with tree.open(listed) as file:
            yield from found.items(listed, file, place)
    found.note()


class RowReader:
    """Rows of lists as items: chats and pairs, or fields of a record next to ``audio_filepath`` and the like."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._left: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._parts: dict[str, str] = {}

    def items(
        self, listed: str, file: IO[bytes], place: Callable[[Any, dict[str, Any], str], Recording], prefix: str = ""
    ) -> Found:
        """The items of an open list, named by ``prefix`` (default: the list) and their numbers.

        ``place(source, row, "FILE:3")`` is the clip that a row names, as a whole; it may raise BadRecord.
        """
        for number, where, row in unbroken(listed, file):
            name = f"{prefix or Path(listed).stem}-{number:08d}"
            try:
                if isinstance(row, BadRecord):
                    raise row
                if _skipped(row):
                    yield Drop(name, "marked _skipme", filter=True)
                    continue
                record, clips = self._record(row)
                audio = tuple(
                    replace(place(source, row, f"{listed}:{number}"), start_s=start, end_s=end)
                    for source, start, end in clips
                )
            except DamagedShard:
                raise
            except (ValueError, KeyError, TypeError) as error:
                reason = getattr(error, "reason", "bad record")
                yield Drop(name, "bad line" if reason == "bad record" else reason, f"{listed}, {where}: {error}")
                continue
            if self._request.takes(record, listed):
                yield Item(name, audio, record)

    def _record(self, row: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[Any, float, float | None]]]:
        """The record of a row, and (source, start, end) of its clips, in seconds."""
        columns = self._request.columns
        if is_chat(row) and not (self._request.field_columns and not {*row} & {*TURNS}):
            if (column := columns.get("audio")) is not None:
                if (source := cell_at(row, column)) is None:
                    raise BadRecord(f"it has no {column!r}, the field of columns.audio=")
                row = {name: value for name, value in row.items() if name != column} | {"audios": source}
            record, sources = chat_record(row, cuts=True)
            self._kept.update(unknown_fields(record))
            parts = zip(sources, parts_of(row, len(sources)), strict=True)
            return record, [(s, start, None if length is None else start + length) for s, (start, length) in parts]
        # A list of times is a field, not the place of the row.
        listed = (isinstance(value, list | dict) for name, value in row.items() if name.strip().lower() in PART)
        columns = mapping(columns, row, parts=not any(listed))
        self._parts |= columns
        self._left.update(untaken(columns, row))
        source = cell_at(row, columns["audio"]) if "audio" in columns else None
        if source is None:
            raise BadRecord(f"none of {', '.join(row)} names the audio: set columns.audio=FIELD")
        return record_of(row, columns), [(source, *_part(row, columns))]

    def note(self) -> None:
        """Add to the report which fields were left behind, or kept without a use, and whether rows were parts."""
        note_parts(self._request, self._parts)
        note_untaken(self._request, self._left)
        if self._kept:
            self._request.notes.append(said_of(self._kept))


def _skipped(row: dict[str, Any]) -> bool:
    """Whether NeMo's mark to leave a row out is set, in the row or among its own fields."""
    custom = row.get("custom")
    return bool(row.get("_skipme") or (isinstance(custom, dict) and custom.get("_skipme")))


def _kaldi(request: Request) -> Found:
    """``wav.scp`` and ``text``, with ``segments``, ``utt2spk``, ``spk2gender`` and ``utt2lang`` where they exist."""
    tree = request.tree
    (listed, *_) = tree.need("wav.scp", what="Kaldi data folder")
    request.without_split(listed)

    def lines(name: str) -> dict[str, str]:
        path = tree.beside(listed, name)
        return dict(_once(path, tree.pairs(path))) if path in tree.names else {}

    recordings = _kaldi_recordings(request, listed)
    texts, speakers, genders, languages = (lines(n) for n in ("text", "utt2spk", "spk2gender", "utt2lang"))
    segments = lines("segments") or {name: name for name in recordings}
    for name, cut in segments.items():
        recording, *times = cut.split()
        if recording not in recordings or not texts.get(name):
            yield Drop(name, "no text" if recording in recordings else "unknown recording", cut)
            continue
        place = recordings[recording]
        if isinstance(place, BadRecord):
            yield Drop(name, place.reason, str(place))
            continue
        speaker = speakers.get(name)
        language = language_code(languages[name]) if name in languages else None
        record = present(text=texts[name], language=language, speaker=speaker,
                         gender=gender_of(genders.get(speaker or "")))  # fmt: skip
        try:
            start, end = (float(times[0]), float(times[1])) if len(times) >= 2 else (0.0, None)
        except ValueError as error:
            yield Drop(name, "bad line", f"segments: {error}")
            continue
        # Kaldi writes -1 for "to the end".
        audio = replace(place, start_s=start, end_s=None if end is not None and end < 0 else end)
        yield Item(name, (audio,), record)


def _kaldi_recordings(request: Request, listed: str) -> dict[str, Recording | BadRecord]:
    """The recordings of a ``wav.scp`` by their names, or what is wrong with one.

    Raises ValueError for commands and archives.
    """
    folder = Path(request.tree.recording(listed).path).parent
    recordings: dict[str, Recording | BadRecord] = {}
    for number, (name, place) in enumerate(_once(listed, request.tree.pairs(listed)), 1):
        channel = None
        if place.endswith("|") or place.startswith("|"):
            if (known := decoded_file(place)) is None:
                raise ValueError(
                    f"{listed}, line {number}: {name!r} is a command ({place[:60]}): commands in data are never run. "
                    "Run it yourself, and list the audio files it makes"
                )
            place, channel = known
        if ".ark:" in place:
            raise ValueError(
                f"{listed}, line {number}: {name!r} lies in a Kaldi archive ({place}); list audio files instead"
            )
        try:
            recordings[name] = replace(recording_of(request, place, folder), channel=channel)
        except BadRecord as error:
            recordings[name] = error
    return recordings


def _once(name: str, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The pairs; ValueError for a second one of the same id."""
    seen: set[str] = set()
    for first, rest in pairs:
        if first in seen:
            raise ValueError(f"{name}: {first!r} is listed twice: Kaldi's ids are unique (utils/validate_data_dir.sh)")
        seen.add(first)
        yield first, rest


CORPORA = (
    Corpus("table", "a folder of audio with a CSV or TSV", "not stated: set fields.license=", "", _ANY, _table,
           ("as mapped by columns.FIELD=COLUMN",),
           "metadata.csv, or the table named in path=; a column split, if there is one, selects rows", generic=True),
    Corpus("jsonl", "JSONL or JSON: chats and pairs of other tools, or rows (audio_filepath + fields)",
           "not stated: set fields.license=", "", _ANY, _jsonl, ("messages", "chosen", "rejected", "or as mapped"),
           "docs/coming-from.md lists the rows that are read", generic=True),
    Corpus("kaldi", "Kaldi data folder: wav.scp, text, segments, utt2spk", "not stated: set fields.license=", "", _ANY,
           _kaldi, ("text", "language", "speaker", "gender"),
           "flac and sph2pipe pipes of one file are read without being run, others refused", generic=True),
)  # fmt: skip
