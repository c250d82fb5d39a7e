"""Fluent Speech Commands and SLURP: spoken commands with intent, slots and entities."""

from __future__ import annotations

import re
from typing import Any

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Request, gender_of, present, stem
from data_pipelines.corpora.tree import Tree
from qa_train.data.text.records import MAX_JSON_BYTES, parse_object


def _demographics(tree: Tree) -> dict[str, dict[str, str]]:
    (name, *_) = tree.glob("speaker_demographics.csv") or [""]
    return {row["speakerId"]: row for row in tree.table(name, ("speakerId",))} if name else {}


def _fluent(request: Request) -> Found:
    """``data/{split}_data.csv``: path, speakerId, transcription, action, object, location."""
    tree = request.tree
    (listed, *_) = tree.need(f"data/{request.split}_data.csv", what="Fluent Speech Commands list")
    speakers = _demographics(tree)
    for row in tree.table(listed, ("path", "speakerId", "transcription", "action", "object", "location")):
        about = speakers.get(row["speakerId"], {})
        meaning = {name: row[name] for name in ("action", "object", "location") if row[name] != "none"}
        record = present(
            text=row["transcription"].strip(),
            language="en",
            intent=" ".join(meaning.values()),
            slots={name: value for name, value in meaning.items() if name != "action"},
            speaker=f"fsc-{row['speakerId']}",
            gender=gender_of(about.get("Gender")),
            age=about.get("ageRange"),
        )
        audio = tree.recording(tree.beside(listed, "..", row["path"]))
        yield Item(f"{row['speakerId']}-{stem(row['path'])}", (audio,), record)


_ENTITY = re.compile(r"\[\s*([^:\]]+?)\s*:\s*([^\]]+?)\s*\]")


def _slurp_record(row: dict[str, Any]) -> dict[str, Any]:
    """The record of a line. Entities are read from ``sentence_annotation``, as they stand in the transcript.

    The line's own ``entities`` are the same ones as spans of tokens ("jean 's" for "jean's"). The intent is
    ``scenario_action`` (59 of them), as SLURP's evaluation has it: the field ``intent`` has 71 to 77 raw names.
    """
    entities = [{"type": kind, "value": value} for kind, value in _ENTITY.findall(row["sentence_annotation"])]
    slots: dict[str, str] = {}
    for entity in entities:
        kind, value = entity["type"], entity["value"]
        slots[kind] = f"{slots[kind]}, {value}" if kind in slots else value
    return present(
        text=str(row["sentence"]),
        language="en",
        intent=f"{row['scenario']}_{row['action']}",
        entities=entities,
        slots=slots,
        scenario=row["scenario"],
    )


def _slurp(request: Request) -> Found:
    """``{split}.jsonl``, and the recordings in ``slurp_real/`` or ``slurp_synth/``; one record per recording."""
    tree = request.tree
    folder = "slurp_synth" if request.split == "train_synthetic" else "slurp_real"
    (listed, *_) = tree.need(f"{request.split}.jsonl", what="SLURP list")
    homes = sorted({name[: f"/{name}".index(f"/{folder}/")] for name in tree.audio_names(f"{folder}/")})
    if not homes:
        raise ValueError(f"no {folder}/*.flac under {', '.join(tree.paths)}: unpack SLURP's audio next to its lists")
    for number, line in enumerate(tree.lines(listed), 1):
        try:
            row = parse_object(line.encode(), MAX_JSON_BYTES)
            record, names = _slurp_record(row), [str(recording["file"]) for recording in row["recordings"]]
        except (ValueError, KeyError, TypeError) as error:
            yield Drop(f"line-{number}", "bad line", f"{listed}, line {number}: {error}")
            continue
        for name in names:
            audio = tree.recording(f"{homes[0]}{folder}/{name}")
            yield Item(stem(name), (audio,), record, (f"slurp:{row.get('slurp_id')}",))


CORPORA = (
    Corpus("fluent_speech_commands", "Fluent Speech Commands", "research (unverified)",
           "https://fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research/",
           {"train": TRAIN, "valid": DEV, "test": TEST}, _fluent,
           ("text", "language", "intent", "slots", "speaker", "gender", "age"),
           tasks=("intent", "slots", "asr", "gender", "age")),
    Corpus("slurp", "SLURP", "text CC-BY-4.0, audio CC-BY-NC-4.0", "https://github.com/pswietojanski/slurp",
           {"train": TRAIN, "train_synthetic": TRAIN, "devel": DEV, "test": TEST}, _slurp,
           ("text", "language", "intent", "slots", "entities"),
           tasks=("intent", "slots", "entities", "asr")),
)  # fmt: skip
