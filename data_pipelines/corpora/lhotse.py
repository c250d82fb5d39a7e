"""Lhotse: cut manifests (``cuts.jsonl.gz``) and Shar folders (``cuts.000000.jsonl.gz`` + ``recording.000000.tar``).

The manifests are read as plain JSON, without lhotse; sources of type "command" are refused.
"""

from __future__ import annotations

from dataclasses import replace
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
    Recording,
    Request,
    gender_of,
    language_code,
    present,
)  # fmt: skip
from data_pipelines.corpora.fields import FIELDS, recording_of
from data_pipelines.corpora.tree import AUDIO
from qa_train.data.shards.tar import members
from qa_train.data.text.records import BadRecord, parse_record


class _Unreadable(ValueError):
    """A cut that cannot be imported; the message is the reason for the counts."""


def _shar_members(path: str) -> dict[str, Recording]:
    """Cut id -> its audio in the tar (ids may hold dots and folders)."""
    found: dict[str, Recording] = {}
    with Path(path).open("rb") as file:
        for member in members(file, path, Path(path).stat().st_size):
            stem, dot, extension = member.name.rpartition(".")
            if f"{dot}{extension}".lower() in AUDIO:
                found[stem] = Recording(path, member=member.name, offset=member.offset, size=member.size)
    return found


def _audio(request: Request, cut: dict[str, Any], bases: tuple[Path, ...], shar: dict[str, Recording]) -> Recording:
    recording = cut.get("recording")
    if cut.get("type", "MonoCut") != "MonoCut" or recording is None:
        raise _Unreadable(f"{cut.get('type')} without one recording" if recording is None else f"type {cut['type']}")
    if recording.get("transforms"):
        raise _Unreadable("transformed recording")
    sources = recording.get("sources", [])
    kind = sources[0].get("type") if len(sources) == 1 else f"{len(sources)} sources"
    if kind == "command":
        raise ValueError(
            f"cut {cut['id']}: its source is a command: commands in data are never run. Save the audio as files"
        )
    if kind == "shar":
        if cut["id"] not in shar:
            raise _Unreadable("missing audio")
        return shar[cut["id"]]
    if kind != "file":
        raise _Unreadable(f"source of type {kind}")
    start, length = float(cut["start"]), float(cut["duration"])
    several = len(sources[0].get("channels", [0])) > 1
    channel = int(cut["channel"]) if several and isinstance(cut.get("channel"), int) else None
    whole = start == 0.0 and abs(length - float(recording["duration"])) < 1e-3
    end = None if whole else round(start + length, 6)
    return replace(recording_of(request, sources[0]["source"], *bases, start_s=start, end_s=end), channel=channel)


def _record(cut: dict[str, Any]) -> dict[str, Any]:
    """Text and facts of the cut's supervisions; several of them also become ``turns``."""
    heard = sorted(cut.get("supervisions", []), key=lambda supervision: float(supervision["start"]))
    free: dict[str, Any] = {}
    for custom in (cut.get("custom"), *(supervision.get("custom") for supervision in heard)):
        free |= {name: value for name, value in (custom or {}).items() if name in FIELDS}

    def common(name: str) -> str | None:
        values = {supervision.get(name) for supervision in heard}
        return str(values.pop()) if len(values) == 1 and None not in values else None

    turns = [
        present(speaker=s.get("speaker"), start=round(float(s["start"]), 3),
                end=round(float(s["start"]) + float(s["duration"]), 3), text=s.get("text"))
        for s in heard
    ]  # fmt: skip
    words = [
        {"word": item[0], "start": round(float(item[1]), 3), "end": round(float(item[1]) + float(item[2]), 3)}
        for supervision in heard
        for item in (supervision.get("alignment") or {}).get("word", [])
        if item[0]
    ]
    language = common("language")
    return free | present(
        text=" ".join(s["text"].strip() for s in heard if s.get("text")),
        language=language_code(language) if language else None,
        speaker=common("speaker"),
        gender=gender_of(common("gender")),
        turns=turns if len(turns) > 1 else [],
        words=words,
    )


def _read(request: Request) -> Found:
    tree = request.tree
    names = [Path(path).name for path in tree.files] or tree.need(
        "cuts*.jsonl*", what="Lhotse manifest (cuts*.jsonl.gz)"
    )
    for listed in names:
        place = Path(tree.recording(listed).path)
        tar = place.with_name(place.name.replace("cuts", "recording", 1).split(".jsonl")[0] + ".tar")
        shar = _shar_members(str(tar)) if tar.is_file() else {}
        for number, line in enumerate(tree.lines(listed), 1):
            try:
                cut = parse_record(line.encode())
                name = str(cut["id"])
                audio, record = _audio(request, cut, (place.parent, Path()), shar), _record(cut)
            except _Unreadable as error:
                yield Drop(name, str(error))
                continue
            except (BadRecord, KeyError, TypeError, IndexError) as error:
                yield Drop(f"{listed}-{number}", "bad line", f"{listed}, line {number}: {error!r}")
                continue
            yield Item(name, (audio,), record)


CORPORA = (
    Corpus("lhotse", "Lhotse cuts (cuts.jsonl.gz) or a Shar folder", "not stated: say fields.license=",
           "https://lhotse.readthedocs.io", {"train": TRAIN, "dev": DEV, "test": TEST}, _read,
           ("text", "language", "speaker", "gender", "turns", "words"), "mixed and transformed cuts are dropped",
           generic=True),
)  # fmt: skip
