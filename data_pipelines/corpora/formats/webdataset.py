"""Foreign WebDataset tars: the other members of a key become columns for record fields.

Tars whose members are ours already (KEY.flac, KEY.json, KEY.txt) need no import: `qa-train data index`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Recording, Request
from data_pipelines.corpora.formats.fields import mapping, note_untaken, record_of, untaken
from qa_train.data.shards import storage
from qa_train.data.shards.tar import AUDIO_EXTENSIONS, OTHER_AUDIO_EXTENSIONS, TEXT_EXTENSIONS, Member, members
from qa_train.data.text.records import MAX_JSON_BYTES, BadRecord, decode_text, parse_object

_AUDIO = (*AUDIO_EXTENSIONS, *OTHER_AUDIO_EXTENSIONS)


def _webdataset(request: Request) -> Found:
    left: Counter[str] = Counter()
    for path in storage.expand(request.paths):
        with Path(path).open("rb") as file:
            for key, group in groups(file, path):
                name = f"{Path(path).stem}-{key}"
                try:
                    row = row_of(file, key, group)
                    columns = mapping({n: c for n, c in request.columns.items() if n != "audio"}, row)
                    record = record_of(row, columns)
                    clip = clip_of(key, group, request.columns.get("audio"))
                except ValueError as error:
                    reason = getattr(error, "reason", "bad record")
                    yield Drop(name, reason, f"{path}, {key}: {error}")
                    continue
                left.update(untaken(columns, row))
                if "split" not in record:
                    request.without_split(path)
                if record.pop("split", request.published_split) == request.published_split:
                    audio = Recording(path, member=clip.name, offset=clip.offset, size=clip.size)
                    yield Item(name, (audio,), record)
    note_untaken(request, left)


def groups(file: IO[bytes], path: str) -> Iterator[tuple[str, list[Member]]]:
    """(key, members) of what follows one another up to the first dot of its name, as the webdataset library groups."""
    plain = (member for member in members(file, path, Path(path).stat().st_size) if not member.of_macos)
    for key, group in groupby(plain, key=lambda member: member.key):
        yield key, list(group)


def row_of(file: IO[bytes], key: str, group: list[Member]) -> dict[str, Any]:
    """Fields of KEY.json, and the content of every other text of the key, under the rest of its name.

    KEY.cls is the column ``cls``; KEY.caption.txt is ``caption``; the fields of KEY.metadata.json are
    ``metadata.FIELD``.
    """
    row: dict[str, Any] = {}
    for member in group:
        if member.kind in _AUDIO:
            continue
        column = member.extension.lower().removesuffix(f".{member.kind}").replace(".", "_")
        file.seek(member.offset)
        raw = file.read(min(member.size, MAX_JSON_BYTES + 1))
        if member.kind == "json":
            found = parse_object(raw, MAX_JSON_BYTES)
            row = found | row if column == "json" else row | {column: found}
            continue
        try:
            row[column] = decode_text(raw, f"member {member.name!r}").strip()
        except BadRecord:
            if member.kind in TEXT_EXTENSIONS:
                raise
            # An image, an array.
            row[column] = None
    return row


def clip_of(key: str, group: list[Member], wanted: str | None) -> Member:
    """The audio of a key: the one with the wanted extension, or the only one (not a video next to its sound)."""
    sounds = [member for member in group if member.kind in _AUDIO]
    if wanted is not None:
        sounds = [member for member in sounds if member.extension.lower() == wanted.lower()]
    clips = [member for member in sounds if member.kind in AUDIO_EXTENSIONS] or sounds
    if len(clips) != 1:
        found = ", ".join(f".{member.extension}" for member in group)
        several = "several clips: say which, e.g. columns.audio=" + clips[0].extension if clips else "no audio"
        raise BadRecord(f"{several} (it has {found})", "several clips" if clips else "missing sibling")
    return clips[0]


CORPORA = (
    Corpus("webdataset", "WebDataset tars whose texts and labels have other names", "not stated: say fields.license=",
           "https://github.com/webdataset/webdataset", {"train": TRAIN, "dev": DEV, "test": TEST}, _webdataset,
           ("as mapped by columns.FIELD=COLUMN",),
           "columns.label=cls, columns.scene=metadata.place; tars of our own members and fields need data index alone",
           generic=True),
)  # fmt: skip
