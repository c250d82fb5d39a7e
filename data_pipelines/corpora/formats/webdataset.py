"""Foreign WebDataset tars: the other members of a key become columns for record fields.

Tars whose members are ours already (KEY.flac, KEY.json, KEY.txt) need no import: `qa-train data index`.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, takewhile
from pathlib import Path, PurePosixPath
from typing import IO, Any

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Recording, Request
from data_pipelines.corpora.formats.fields import mapping, note_untaken, record_of, untaken
from qa_train.data.shards import wds
from qa_train.data.shards.tar import AUDIO_EXTENSIONS, OTHER_AUDIO_EXTENSIONS, TEXT_EXTENSIONS, Member, members
from qa_train.data.stores import storage
from qa_train.data.text.records import MAX_JSON_BYTES, BadRecord, decode_text, parse_object, parse_value
from qa_train.utils import draws
from qa_train.utils.masking import masked, without_query

# Without a dot in its name, with nothing before it, or of the library's own.
_OF_NO_KEY = re.compile(r"(^|/)(\.[^/]*|[^/.]+\.?)$|^__[^/]*__(/|$)|\.__[^/]*$")
_AUDIO = (*AUDIO_EXTENSIONS, *OTHER_AUDIO_EXTENSIONS)


def _webdataset(request: Request) -> Found:
    left: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    paths = storage.expand(request.paths)
    folders = dict(zip(paths, folders_of([*map(without_query, paths)]), strict=True))
    for path, key, file, group in _samples(request, paths, ignored):
        name = "-".join(filter(None, (request.part or folders[path], PurePosixPath(without_query(path)).stem, key)))
        try:
            row = row_of(file, key, group)
            columns = mapping(request.field_columns, row)
            record = record_of(row, columns)
            clip = clip_of(key, group, request.columns.get("audio"))
        except ValueError as error:
            reason = getattr(error, "reason", "bad record")
            yield Drop(name, reason, f"{masked(path)}, {key}: {error}")
            continue
        left.update(untaken(columns, row))
        if request.takes(record, path):
            place = Recording(path, member=clip.name, offset=clip.offset, size=clip.size)
            if isinstance(file, io.BytesIO):
                # Without the signature of the address, which changes.
                place = Recording(masked(path), member=clip.name, raw=file.getvalue()[clip.offset :][: clip.size])
            yield Item(name, (place,), record)
    note_untaken(request, left)
    if ignored:
        request.notes.append(f"members that belong to no key: {', '.join(ignored)} ({ignored.total()})")


def apart(paths: Iterable[str]) -> list[str]:
    """The folders of each file below the one that all of them are in, by which those of one name are told apart."""
    parts = [path.split("/") if "://" in path else list(Path(path).expanduser().absolute().parts) for path in paths]
    levels = zip(*(each[:-1] for each in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    return ["-".join(each[shared:-1]).strip("/-") for each in parts]


def folders_of(tars: Sequence[str]) -> list[str]:
    """The folders of `apart` of tars whose names repeat; "" of the others."""
    stems = [PurePosixPath(tar).stem for tar in tars]
    times = Counter(stems)
    found = [folder if times[stem] > 1 else "" for folder, stem in zip(apart(tars), stems, strict=True)]
    again = Counter(zip(found, stems, strict=True))
    # a/b/x.tar and a-b/x.tar.
    return [
        f"{folder}-{draws.digest(tar).hex()[:8]}" if again[folder, stem] > 1 else folder
        for folder, stem, tar in zip(found, stems, tars, strict=True)
    ]


def _samples(
    request: Request, paths: Sequence[str], ignored: Counter[str]
) -> Iterator[tuple[str, str, IO[bytes], list[Member]]]:
    """Path, key, a file with the members' bytes, and the members of each sample.

    A tar at an address is read once, from its beginning to its end, and the file is the sample's own.
    """
    for path in paths:
        with storage.open_binary(path, request.storage, through=True) as file:
            if "://" not in path:
                yield from ((path, key, file, group) for key, group in groups(file, path, ignored))
                continue
            size = storage.size_of(path, request.storage)
            read = ((name, (member, _bytes(file, member))) for name, member in _named(file, path, size, ignored))
            for key, pairs in wds.grouped(read):
                held = io.BytesIO(b"".join(raw for _, raw in pairs))
                ends = accumulate(len(raw) for _, raw in pairs)
                group = [Member(m.name, end - len(raw), len(raw)) for (m, raw), end in zip(pairs, ends, strict=True)]
                yield path, key, held, group


def groups(file: IO[bytes], path: str, ignored: Counter[str] | None = None) -> Iterator[tuple[str, list[Member]]]:
    """(key, members) of each sample of a local tar; ``ignored`` counts what belongs to none."""
    yield from wds.grouped(_named(file, path, Path(path).stat().st_size, Counter() if ignored is None else ignored))


def _named(file: IO[bytes], path: str, size: int, ignored: Counter[str]) -> Iterator[tuple[str, Member]]:
    """The members that have a key; those of macOS are left alone, and others are counted."""
    for member in members(file, masked(path), size):
        if member.of_macos:
            continue
        # Names of the library's own (__NAME__) too.
        if _OF_NO_KEY.search(member.name):
            ignored[member.name] += 1
        else:
            yield member.name, member


def _bytes(file: IO[bytes], member: Member) -> bytes:
    """A member that is audio whole, of another as much as a text may have: an array may be long."""
    file.seek(member.offset)
    return file.read(member.size if member.kind in _AUDIO else min(member.size, MAX_JSON_BYTES + 1))


def row_of(file: IO[bytes], key: str, group: list[Member]) -> dict[str, Any]:
    """Fields of KEY.json, and the content of every other text of the key, under the rest of its name.

    KEY.cls is the column ``cls``; KEY.caption.txt is ``caption``; the fields of KEY.metadata.json are
    ``metadata.FIELD``.
    """
    names = [member.extension.lower() for member in group]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise BadRecord(f"two members are called {key}.{again[0]}", "duplicate key")
    row: dict[str, Any] = {}
    for member in group:
        if member.kind in _AUDIO:
            continue
        column = member.extension.lower().removesuffix(f".{member.kind}").replace(".", "_")
        file.seek(member.offset)
        raw = file.read(min(member.size, MAX_JSON_BYTES + 1))
        if member.kind == "json":
            try:
                found = parse_object(raw, MAX_JSON_BYTES) if column == "json" else parse_value(raw, MAX_JSON_BYTES)
            except BadRecord as error:
                raise BadRecord(f"member {member.name!r}: {error}", error.reason) from error
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
        several = "several clips: select one, e.g. columns.audio=" + clips[0].extension if clips else "no audio"
        raise BadRecord(f"{several} (it has {found})", "several clips" if clips else "missing sibling")
    return clips[0]


CORPORA = (
    Corpus("webdataset", "WebDataset tars whose texts and labels have other names", "not stated: set fields.license=",
           "https://github.com/webdataset/webdataset", {"train": TRAIN, "dev": DEV, "test": TEST}, _webdataset,
           ("as mapped by columns.FIELD=COLUMN",),
           "columns.label=cls, columns.scene=metadata.place; tars of KEY.flac and KEY.json need only data index",
           generic=True, streams=True),
)  # fmt: skip
