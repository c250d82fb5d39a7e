"""The sidecar of a shard, ``X.tar.index.parquet``: one row per record, made by one scan.

With it the plan has every length before any audio is read, and reading is by byte range. Its contents are described in
``sidecar``.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import crc32c
import pyarrow
import pyarrow.parquet

from qa_train.config import StorageConfig
from qa_train.data.audio.waveform import (
    MIN_CLIP_SAMPLES,
    SAMPLE_RATE,
    BadAudio,
    decoded_length,
    read_header,
    resampled_length,
)
from qa_train.data.shards.sidecar import IGNORED, SCHEMA, Problem, ShardIndex, origin_of, write_index
from qa_train.data.shards.sidecar import SUFFIX as SUFFIX
from qa_train.data.shards.sidecar import load_index as load_index
from qa_train.data.shards.tar import (
    AUDIO_EXTENSIONS,
    OTHER_AUDIO_EXTENSIONS,
    TEXT_EXTENSIONS,
    DamagedShard,
    Member,
    members,
)
from qa_train.data.stores import storage
from qa_train.data.stores.folders import writable
from qa_train.data.text.content import PLACEHOLDER
from qa_train.data.text.prompts import chat_messages
from qa_train.data.text.records import MAX_JSON_BYTES, BadRecord, check_record, check_text, decode_text, parse_record
from qa_train.utils.masking import masked, name_of


@dataclass(frozen=True)
class Placed:
    """A record whose clips lie in a file of any layout; they are named as in a tar of ours: KEY.flac, KEY.1.flac."""

    key: str
    record: dict[str, Any]
    clips: tuple[Member, ...]


def build_index(
    paths: Iterable[str | Path],
    *,
    decode: bool = False,
    keep_damaged: bool = False,
) -> list[ShardIndex]:
    """Scan tar shards and write an index next to each; the shards are not changed.

    ``decode`` decodes every clip, so that audio with a wrong length, truncated audio or NaN is skipped now instead of
    in training. ``keep_damaged`` indexes what precedes the damage of a broken tar, and records the damage as a problem;
    otherwise it raises DamagedShard.
    """
    return [index_shard(path, decode, keep_damaged) for path in storage.expand(paths)]


def index_shard(
    path: str, decode: bool = False, keep_damaged: bool = False, cfg: StorageConfig | None = None, out: str = ""
) -> ShardIndex:
    """Scan one shard and write the index next to it, or into the folder ``out`` (see ``build_index``).

    A remote shard is read once, from its beginning to its end; ``cfg``: how it is read, and its index written.
    """
    place = index_place(path, out)
    index = scan(path, decode=decode, keep_damaged=keep_damaged, cfg=cfg)
    write_index(index, place, cfg)
    return index


def index_place(path: str, out: str = "") -> str:
    """Where the index of a shard is written: next to it, or in the folder ``out``.

    Raises:
        ValueError: no file can be put next to the shard.
    """
    if out:
        return f"{out.rstrip('/')}/{name_of(path)}{SUFFIX}"
    if not writable(path):
        raise ValueError(
            f"{path}: nothing can be written next to this shard: give out=DIR for its index, and upload it next to "
            "the shard"
        )
    return storage.beside(path, SUFFIX)


def scan(
    path: str, *, decode: bool = False, keep_damaged: bool = False, cfg: StorageConfig | None = None
) -> ShardIndex:
    """Read a whole shard once and return its index, without writing it. ``cfg``: how a remote one is read.

    Of a file that was indexed in place the clips are read again where its index has them.
    """
    if origin := origin_of(path, cfg):
        return index_places(path, placed(load_index(path, cfg)), origin, decode=decode, cfg=cfg)
    size = storage.size_of(path, cfg)
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    ignored: Counter[str] = Counter()
    seen: set[str] = set()
    with storage.open_binary(path, cfg, through=True) as file:
        stream = _groups(members(file, path, size), ignored)
        while True:
            try:
                found = next(stream, None)
            except DamagedShard as damage:
                if not keep_damaged:
                    raise
                problems.append(Problem("", damage.offset, "damaged shard", masked(damage)))
                break
            if found is None:
                break
            key, group = found
            try:
                if key in seen:
                    raise BadRecord(
                        "its members are not together (make tars with tar --sort=name), or the key is used twice",
                        "duplicate key",
                    )
                rows.append(_row(file, key, group, decode, ignored))
            except (BadRecord, BadAudio) as error:
                problems.append(Problem(key, group[0].offset, error.reason, str(error)))
            seen.add(key)
    problems += [Problem("", 0, IGNORED, f"{n} members {kind}") for kind, n in sorted(ignored.items())]
    table = pyarrow.Table.from_pylist(rows, schema=SCHEMA)
    return ShardIndex(path, table, size, shard_fingerprint(rows), problems)


def index_places(
    path: str, records: Iterable[Placed], origin: str, *, decode: bool = False, cfg: StorageConfig | None = None
) -> ShardIndex:
    """The index of records in a file of another layout, called ``origin``, without writing it; as ``scan`` otherwise.

    The bytes are read and checked as those of tars: training then reads both in the same way.
    """
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    with storage.open_binary(path, cfg, through=True) as file:
        for each in records:
            try:
                check_text(each.record)
                check_record(each.record)
                clips = [(_type(member, each.key), member) for member in each.clips]
                rows.append(_measured(file, each.key, dict(each.record), clips, decode))
            except (BadRecord, BadAudio) as error:
                offset = each.clips[0].offset if each.clips else 0
                problems.append(Problem(each.key, offset, error.reason, str(error)))
    table = pyarrow.Table.from_pylist(rows, schema=SCHEMA)
    size = storage.size_of(path, cfg)
    return ShardIndex(path, table, size, shard_fingerprint(rows), problems, origin)


def placed(index: ShardIndex) -> Iterator[Placed]:
    """The records of an index, as they were found."""
    for row in index.table.to_pylist():
        names = [f"{row['key']}.{kind}" for kind in row["names"]]
        yield Placed(row["key"], json.loads(row["meta"]), tuple(map(Member, names, row["offsets"], row["sizes"])))


def _groups(stream: Iterable[Member], ignored: Counter[str]) -> Iterator[tuple[str, list[Member]]]:
    """(key, members) of each record: members of a key that follow one another; other types are only counted."""
    group: list[Member] = []
    try:
        for member in stream:
            if member.of_macos:
                ignored["of macOS (._NAME; COPYFILE_DISABLE=1 tar leaves them out)"] += 1
                continue
            if member.kind not in (*AUDIO_EXTENSIONS, *OTHER_AUDIO_EXTENSIONS, *TEXT_EXTENSIONS):
                ignored[f"of type .{member.kind}"] += 1
                continue
            if group and member.key != group[0].key:
                yield from _by_key(group, ignored)
                group = []
            group.append(member)
    except DamagedShard:
        # The members before the damage are whole.
        yield from _by_key(group, ignored)
        raise
    yield from _by_key(group, ignored)


def _by_key(group: list[Member], ignored: Counter[str]) -> Iterator[tuple[str, list[Member]]]:
    """Records of members that are equal up to the first dot of their names, which ends a key by WebDataset's rule.

    Where audio and text agree up to a later dot (a.5.wav, a.5.json), that one ends the key. With an a.json but no a.wav
    the first dot still ends it: then a.5.wav is a clip of a.json, whatever else is next to the clip.
    """
    if not group:
        return
    plain = group[0].key
    texts = {member.stem for member in group if member.kind in TEXT_EXTENSIONS}
    pairs = texts & {member.stem for member in group if member.kind not in TEXT_EXTENSIONS}
    if plain in texts and plain not in pairs:
        pairs = set()
    records: dict[str, list[Member]] = {}
    for member in group:
        key = member.stem
        while key not in pairs and key != plain:
            key = key.rpartition(".")[0]
        if member.kind in TEXT_EXTENSIONS and member.stem != key:
            ignored[f"of type .{_type(member, key)}"] += 1  # KEY.speaker.txt: text, but whose?
        else:
            records.setdefault(key, []).append(member)
    yield from records.items()


def _type(member: Member, key: str) -> str:
    """What follows the key in a member's name: "flac", "1.flac"."""
    return member.name[len(key) + 1 :]


def _row(file: IO[bytes], key: str, group: list[Member], decode: bool, ignored: Counter[str]) -> dict[str, Any]:
    names = [_type(m, key) for m in group]
    text = {m.kind: m for m in group if m.kind in TEXT_EXTENSIONS}
    if len(set(names)) != len(names) or len(text) != sum(m.kind in TEXT_EXTENSIONS for m in group):
        raise BadRecord(f"members {sorted(names)} of one record repeat a type", "duplicate key")
    record = _record(file, text)
    sounds = [m for m in group if m.kind not in TEXT_EXTENSIONS]
    if record.get("audios") is None:
        record.pop("audios", None)
        clips = [m for m in sounds if m.kind in AUDIO_EXTENSIONS] or sounds
        if not clips:
            raise BadRecord(_no_audio(record, group), "missing sibling")
    else:
        clips = _listed(record["audios"], {_type(m, key): m for m in sounds})
    ignored.update(f"of type .{m.kind}, next to other audio" for m in sounds if m not in clips)
    return _measured(file, key, record, [(_type(m, key), m) for m in clips], decode)


def _measured(
    file: IO[bytes], key: str, record: dict[str, Any], clips: Sequence[tuple[str, Member]], decode: bool
) -> dict[str, Any]:
    """The row of a record with its clips, (type, member) each."""
    if len(clips) > 1 and record.get("audios") is None:
        record["audios"] = [kind for kind, _ in clips]
    if "messages" in record:
        chat_messages(record)
    details = [_clip(file, member, decode) for _, member in clips]
    return {
        "key": key,
        "names": [kind for kind, _ in clips],
        "offsets": [m.offset for _, m in clips],
        "sizes": [m.size for _, m in clips],
        "crc32c": [d[0] for d in details],
        "num_samples": [d[1] for d in details],
        "sample_rates": [d[2] for d in details],
        "duration_s": sum(d[1] for d in details) / SAMPLE_RATE,
        "meta": json.dumps(record, ensure_ascii=False, sort_keys=True),
    }


def _no_audio(record: dict[str, Any], group: list[Member]) -> str:
    """Why a record has no clip, and what to do."""
    if record.get("messages") and PLACEHOLDER not in json.dumps(record["messages"], ensure_ascii=False):
        return 'no audio member next to the JSON (a chat without sound has "audios": [])'
    dots = ""
    if any("." in member.extension for member in group):
        dots = "; a key ends at the first dot of a name, or at the last one where audio and JSON agree up to it"
    return f"no audio member next to {group[0].name!r} (.{', .'.join(AUDIO_EXTENSIONS)}, ...){dots}"


def _record(file: IO[bytes], text: dict[str, Member]) -> dict[str, Any]:
    record = parse_record(_bytes(file, text["json"], MAX_JSON_BYTES)) if "json" in text else {}
    # Next to a JSON of facts, a text file is the transcript.
    if "txt" in text and not (record.get("text") or record.get("messages")):
        transcript = decode_text(_bytes(file, text["txt"], MAX_JSON_BYTES), "the .txt member").strip()
        check_text(transcript)
        return record | {"text": transcript}
    if "json" in text:
        return record
    raise BadRecord("no JSON (or txt) member next to the audio", "missing sibling")


def _listed(audios: list[str], sounds: dict[str, Member]) -> list[Member]:
    """The clips that the record lists, by member name or by extension, in its order."""
    known = sounds | {name: m for m in sounds.values() for name in (m.name, m.name.rpartition("/")[2])}
    missing = [name for name in audios if name not in known]
    if missing:
        found = [m.name for m in sounds.values()]
        raise BadRecord(f"'audios' lists {missing}, the shard has {found}", "missing sibling")
    return [known[name] for name in audios]


def _clip(file: IO[bytes], member: Member, decode: bool) -> tuple[int, int, int]:
    """Checksum, samples at 16 kHz and sample rate of an audio member."""
    raw = _bytes(file, member, member.size)
    try:
        frames, rate = read_header(raw)
        samples = decoded_length(raw) if decode else resampled_length(frames, rate)
    except BadAudio as error:
        raise BadAudio(f"member {member.name!r}: {error}") from error
    if samples < MIN_CLIP_SAMPLES:
        raise BadAudio(f"member {member.name!r} has {samples} samples at 16 kHz, too few for one token")
    return crc32c.crc32c(raw), samples, rate


def _bytes(file: IO[bytes], member: Member, limit: int) -> bytes:
    if member.size > limit:
        raise BadRecord(f"member {member.name!r} has {member.size} bytes; at most {limit} are accepted")
    file.seek(member.offset)
    return file.read(member.size)


def shard_fingerprint(rows: list[dict[str, Any]]) -> str:
    """Content of the shard as far as training depends on it; the shard's place does not matter."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row[name] for name in SCHEMA.names], ensure_ascii=False).encode())
    return digest.hexdigest()
