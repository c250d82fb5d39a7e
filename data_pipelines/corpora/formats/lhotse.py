"""Lhotse: cut manifests (``cuts.jsonl.gz``, ``cuts.json``), recordings with supervisions, and Shar folders
(``cuts.000000.jsonl.gz`` + ``recording.000000.tar``).

Padded cuts are read without their padding, appended ones are joined again. Mixed and transformed ones are dropped, and
those with the text of a supervision that reaches beyond its cut, as windows and truncation leave it. The manifests are
read as plain JSON, without lhotse; sources of type "command" are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
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
    present,
)  # fmt: skip
from data_pipelines.corpora.formats.fields import FIELDS, decoded_file, recording_of
from data_pipelines.corpora.tree import AUDIO, Tree, unbroken
from qa_train.data.shards.tar import members
from qa_train.data.text.records import BadRecord, language_code

# Lists round to a hundredth of a second: so far apart are cuts that follow one another.
_SEAM_S = 0.02
# So far may a supervision go on beyond its cut: lists round, and aligners end words late.
_BEYOND_S = 0.1
# A file of a Shar: its field, and the number of its part.
_PART = re.compile(r"([^.]+)\.(\d+)\.(?:tar|jsonl|jsonl\.gz)")


class _Unreadable(ValueError):
    """A cut that cannot be imported; the message is the reason for the counts."""


def _shar_members(path: str) -> dict[str, Recording]:
    """Cut id -> its audio in the tar (ids may hold dots and folders)."""
    found: dict[str, Recording] = {}
    with Path(path).open("rb") as file:
        for member in members(file, path, Path(path).stat().st_size):
            stem, dot, extension = member.name.rpartition(".")
            # "original": written with the formats of the files.
            if f"{dot}{extension}".lower() in (*AUDIO, ".original"):
                found[stem] = Recording(path, member=member.name, offset=member.offset, size=member.size)
    return found


def _fields(tar: Path) -> set[str]:
    """The other fields of a part of a Shar: target_recording.000000.tar, features.000000.tar, name.000000.jsonl.gz."""
    number = tar.name.partition(".")[2].removesuffix(".tar")
    return _listed(tar.parent).get(number, set()) - {tar.name.partition(".")[0], "cuts"}


@lru_cache(maxsize=1)
def _listed(folder: Path) -> dict[str, set[str]]:
    """Number of a part -> the names of its fields; a Shar may have thousands of parts in a folder."""
    found: dict[str, set[str]] = {}
    for path in folder.iterdir():
        if match := _PART.fullmatch(path.name):
            found.setdefault(match[2], set()).add(match[1])
    return found


def _audio(request: Request, cut: dict[str, Any], folder: Path, shar: dict[str, Recording]) -> Recording:
    recording = cut.get("recording")
    kind = cut.get("type", "MonoCut")
    # "Cut": its name before version 0.8.
    if kind not in ("MonoCut", "Cut", "MultiCut") or recording is None:
        raise _Unreadable(f"{kind} without one recording" if recording is None else f"type {kind}")
    if recording.get("transforms"):
        raise _Unreadable("transformed recording")
    sources = recording.get("sources", [])
    several = len(sources) == 1 and len(sources[0].get("channels", [0])) > 1
    if isinstance(cut.get("channel"), list) and set(cut["channel"]) != {c for s in sources for c in s["channels"]}:
        raise _Unreadable("MultiCut of some of the channels")
    kind = sources[0].get("type") if len(sources) == 1 else f"{len(sources)} sources"
    if kind == "shar":
        if cut["id"] not in shar:
            raise _Unreadable("missing audio")
        return shar[cut["id"]]
    if kind not in ("file", "command"):
        raise _Unreadable(f"source of type {kind}")
    source = str(sources[0]["source"])
    # The id of a channel is not its place in the file, if not all are listed.
    channels = sources[0].get("channels", [0])
    channel = None
    if several and isinstance(cut.get("channel"), int):
        if cut["channel"] not in channels:
            raise _Unreadable("channel that its recording lacks")
        channel = channels.index(cut["channel"])
    if kind == "command":
        if (known := decoded_file(source)) is None:
            raise ValueError(
                f"cut {cut['id']}: its source is a command: commands in data are never run. Save the audio as files"
            )
        source, channel = known[0], known[1] if known[1] is not None else channel
    start, length = float(cut["start"]), float(cut["duration"])
    whole = start == 0.0 and abs(length - float(recording["duration"])) < 1e-3
    end = None if whole else round(start + length, 6)
    return replace(recording_of(request, source, folder, start_s=start, end_s=end), channel=channel)


def _record(cut: dict[str, Any]) -> dict[str, Any]:
    """Text and facts of the cut's supervisions, whose alignments are in its time; several also become ``turns``."""
    heard = sorted(cut.get("supervisions", []), key=lambda supervision: float(supervision["start"]))
    length = float(cut["duration"])

    def place(start: Any, duration: Any) -> dict[str, float]:
        first, last = (min(max(float(start) + more, 0.0), length) for more in (0.0, float(duration)))
        return {"start": round(first, 3), "end": round(last, 3)}

    free: dict[str, Any] = {}
    for custom in (cut.get("custom"), *(supervision.get("custom") for supervision in heard)):
        free |= {name: value for name, value in (custom or {}).items() if name in FIELDS}

    def common(name: str) -> str | None:
        values = {supervision.get(name) for supervision in heard}
        return str(values.pop()) if len(values) == 1 and None not in values else None

    turns = [present(speaker=s.get("speaker"), **place(s["start"], s["duration"]), text=s.get("text")) for s in heard]
    words = [
        {"word": item[0], **place(item[1], item[2])}
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
        turns=turns if len(turns) > 1 and all(turn.get("speaker") for turn in turns) else [],
        # Of all the text, or of none.
        words=words if all((s.get("alignment") or {}).get("word") for s in heard if s.get("text")) else [],
    )


def _tracks(cut: dict[str, Any], lost: Counter[str]) -> list[dict[str, Any]]:
    """The cuts that follow one another in a cut, their supervisions in the time of the first; padding is skipped.

    Raises _Unreadable for cuts that sound together, or with a gap, and for text that is not in them.
    """
    if cut.get("type", "MonoCut") != "MixedCut":
        return [cut | {"supervisions": _in_its_time(cut, lost)}]
    if cut.get("transforms"):
        raise _Unreadable("transformed cut")
    tracks = [track for track in cut["tracks"] if track.get("type") != "PaddingCut" and "cut" in track]
    tracks = [track for track in tracks if track["cut"].get("type", "MonoCut") != "PaddingCut"]
    tracks.sort(key=lambda track: float(track.get("offset", 0.0)))
    if not tracks:
        raise _Unreadable("MixedCut without one recording")
    parts, start = [], 0.0
    first = float(tracks[0].get("offset", 0.0))
    for track in tracks:
        part = track["cut"]
        if abs(float(track.get("offset", 0.0)) - first - start) > _SEAM_S:
            raise _Unreadable("mixed cut")
        heard = [s | {"start": float(s["start"]) + start} | _later(s, start) for s in _in_its_time(part, lost)]
        parts.append(part | {"supervisions": heard})
        start += float(part["duration"])
    return parts


def _in_its_time(cut: dict[str, Any], lost: Counter[str]) -> list[dict[str, Any]]:
    """The supervisions of a cut, with alignments in the time of the cut: lhotse leaves those in the recording's.

    Alignments that are in neither are left out and counted in ``lost``. Raises _Unreadable for text that is not in it.
    """
    found = []
    for heard in cut.get("supervisions", []):
        start, end = float(heard["start"]), float(heard["start"]) + float(heard["duration"])
        if heard.get("text") and (start < -_BEYOND_S or end > float(cut["duration"]) + _BEYOND_S):
            raise _Unreadable("text of a supervision that reaches beyond its cut")
        alignment = heard.get("alignment") or {}
        times = [(float(item[1]), float(item[1]) + float(item[2])) for item in alignment.get("word", [])]
        for shift in (-float(cut.get("start", 0.0)), 0.0):
            if all(start - _BEYOND_S <= a + shift and b + shift <= end + _BEYOND_S for a, b in times):
                found.append(heard | _later(heard, shift))
                break
        else:
            lost[str(cut.get("id"))] += 1
            found.append(heard | {"alignment": {}})
    return found


def _later(supervision: dict[str, Any], by: float) -> dict[str, Any]:
    """Its alignment, so much later."""
    alignment = supervision.get("alignment") or {}
    moved = {name: [[item[0], float(item[1]) + by, *item[2:]] for item in items] for name, items in alignment.items()}
    return {"alignment": moved} if by and moved else {}


def _cuts(tree: Tree) -> Iterator[tuple[str, int, Any]]:
    """(file, row, cut or why there is none) of all manifests; without cuts, one for each supervision."""
    names = [*tree.named] or tree.glob("cuts*.json*")
    recordings = [name for name in names or tree.glob("recordings*.json*") if "recordings" in PurePosixPath(name).name]
    if not recordings:
        names = names or tree.need("cuts*.json*", "recordings*.json*", what="Lhotse manifest (cuts*.jsonl.gz)")
        for name in names:
            yield from ((name, number, cut) for number, cut in _rows(tree, name))
        return
    known: dict[str, dict[str, Any]] = {}
    for name in recordings:
        for number, recording in _rows(tree, name):
            if isinstance(recording, BadRecord) or "id" not in recording:
                yield name, number, recording if isinstance(recording, BadRecord) else KeyError("id")
            else:
                known[str(recording["id"])] = recording
    listed = [name for name in names if "supervisions" in PurePosixPath(name).name]
    for name in listed or tree.need("supervisions*.json*", what="Lhotse supervisions next to the recordings"):
        for number, heard in _rows(tree, name):
            try:
                if isinstance(heard, BadRecord):
                    raise heard
                kept = ("id", "start", "duration", "channel")
                cut: dict[str, Any] = {field: heard[field] for field in kept if field in heard}
                cut |= {"recording": known[str(heard["recording_id"])], "supervisions": [heard | {"start": 0.0}]}
                yield name, number, cut
            except (BadRecord, KeyError) as error:
                yield name, number, error


def _rows(tree: Tree, name: str) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    with tree.open(name) as file:
        yield from ((number, row) for number, _, row in unbroken(name, file))


def _read(request: Request) -> Found:
    tree = request.tree
    shar: dict[str, Recording] = {}
    others: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    opened = ""
    for listed, number, found in _cuts(tree):
        place = Path(tree.recording(listed).path)
        if listed != opened:
            tar = place.with_name(place.name.replace("cuts", "recording", 1).split(".jsonl")[0] + ".tar")
            shar, opened = (_shar_members(str(tar)) if tar.is_file() else {}), listed
            others.update(_fields(tar) if shar else ())
        name = f"{listed}-{number}"
        try:
            if isinstance(found, Exception):
                raise found
            name = str(found["id"])
            parts = _tracks(found, lost)
            audio = tuple(_audio(request, part, place.parent, shar) for part in parts)
            heard = [s for part in parts for s in part.get("supervisions", [])]
            length = sum(float(part["duration"]) for part in parts)
            record = _record(found | {"supervisions": heard, "duration": length})
        except _Unreadable as error:
            yield Drop(name, str(error))
            continue
        except (BadRecord, KeyError, TypeError, IndexError) as error:
            yield Drop(name, "bad line", f"{listed}, line {number}: {error!r}")
            continue
        yield Item(name, audio, record, joined=len(audio) > 1)
    if others:
        names = ", ".join(f"{name} ({number})" for name, number in sorted(others.items()))
        request.notes.append(f"fields of the Shar that were not read, with the number of their files: {names}")
    if lost:
        request.notes.append(f"word times outside their supervisions: {lost.total()}, e.g. of {next(iter(lost))}")


CORPORA = (
    Corpus("lhotse", "Lhotse cuts (cuts.jsonl.gz or .json), recordings with supervisions, or a Shar folder",
           "not stated: set fields.license=",
           "https://lhotse.readthedocs.io", {"train": TRAIN, "dev": DEV, "test": TEST}, _read,
           ("text", "language", "speaker", "gender", "turns", "words"),
           "padded and appended cuts are read, mixed and transformed ones dropped",
           generic=True),
)  # fmt: skip
