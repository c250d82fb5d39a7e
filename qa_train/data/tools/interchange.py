"""Files of chats with their clips, as other fine-tuning tools use them: in and out.

``chat_rows`` and ``content`` define the supported input. The output has ms-swift's form: ``messages``, ``audios``,
``rejected_response``.
"""

from __future__ import annotations

import filecmp
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import crc32c

from qa_train.config import StorageConfig
from qa_train.data.audio.waveform import BadAudio
from qa_train.data.shards.catalog import shard_paths
from qa_train.data.shards.clip_files import encoded, located, refuse_parts
from qa_train.data.shards.index import ShardIndex, load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores import storage
from qa_train.data.text.chat_rows import chat_record, unknown_fields
from qa_train.data.text.content import Source, plain_messages
from qa_train.data.text.json_rows import objects
from qa_train.data.text.prompts import CHAT, PromptBank
from qa_train.data.text.records import BadRecord
from qa_train.data.text.sample import Sample
from qa_train.data.tools.outside import Outside
from qa_train.utils.atomic import whole

Line = tuple[list[dict[str, Any]], list[Path | Source], dict[str, Any]]
log = logging.getLogger(__name__)


def read_jsonl(path: str | Path) -> Iterator[Line]:
    """Messages, clips and other fields of each row of a file; relative paths start at the file's folder.

    A clip is a local path, an address, or the bytes of its file. Raises ValueError with the row's place when it is not
    a chat or lists a missing file.
    """
    path = Path(path)
    for _, where, row in objects(path):
        try:
            record, sources = chat_record(row)
            clips = [located(source, path.parent) for source in sources]
            for clip in clips:
                if isinstance(clip, Path) and not clip.is_file():
                    hint = "qa-train data import jsonl skips and counts such lines"
                    raise BadRecord(f"audio file {clip} does not exist ({hint})")
            refuse_parts(row, clips)
        except ValueError as error:
            raise ValueError(f"{path}, {where}: {error}") from error
        extra = {name: value for name, value in record.items() if name != "messages"}
        yield record["messages"], clips, extra


def jsonl_to_shards(
    jsonl: str | Path, out_pattern: str | Path, *, outside: Outside | None = None, **options: Any
) -> list[ShardIndex]:
    """Pack a file of chats (JSONL or a JSON array) and its clips, unchanged, into indexed shards (task: chat).

    ``outside`` counts clips outside the file's folder. ``options`` go to ShardWriter. The key of a record
    is its count, so it stays unique. Unknown fields are kept, and listed once in a warning. Raises ValueError for a row
    that is not a chat, or a clip that cannot be read.
    """
    unknown: Counter[str] = Counter()
    with ShardWriter(out_pattern, **options) as writer:
        for number, (messages, clips, extra) in enumerate(read_jsonl(jsonl)):
            record = {**extra, "messages": messages}
            unknown.update(unknown_fields(record))
            for clip in clips:
                if outside is not None and isinstance(clip, Path):
                    outside.look(clip)
            try:
                files = [encoded(clip) for clip in clips]
            except (BadAudio, OSError) as error:
                raise ValueError(f"{jsonl}, record {number}: {error}") from error
            kinds = [kind for kind, _ in files]
            key = f"{Path(jsonl).stem.replace('.', '-')}-{number:08d}"
            writer.write(key, record, [raw for _, raw in files], extension=kinds)
    if not writer.indexes:
        raise ValueError(f"{jsonl} holds no line: expected one chat (messages and audios) on each")
    if unknown:
        log.warning("%s: %s", jsonl, said_of(unknown))
    return writer.indexes


def said_of(unknown: Counter[str]) -> str:
    """One sentence about fields that are kept and not used."""
    names = ", ".join(f"{name} ({count})" for name, count in unknown.most_common())
    return f"fields that no task reads are kept in the records: {names}"


def shards_to_jsonl(
    shards: Sequence[str | Path],
    out: str | Path,
    *,
    task: str = CHAT,
    cfg: StorageConfig | None = None,
    overwrite: bool = False,
) -> int:
    """Write the records of indexed shards as chats to ``out``, and their clips, unchanged, to ``OUT-audio/``.

    ``task`` gives records without messages a question and an answer (the wording of epoch 0) and is on every line; the
    other fields are kept. ``cfg``: how remote shards are read. Returns the number of lines. Raises ValueError for a
    record that the task cannot use, a changed shard, or (unless ``overwrite``) an existing file with other content.
    """
    out = Path(out)
    folder = out.with_name(f"{out.stem}-audio")
    folder.mkdir(parents=True, exist_ok=True)
    bank = PromptBank.load()
    names: set[str] = set()
    with whole(out) as part:
        with part.open("w", encoding="utf-8") as file:
            for shard in shard_paths(shards, cfg):
                for row in load_index(shard, cfg).table.to_pylist():
                    record = json.loads(row["meta"])
                    sample = bank.sample(record, task, "chat", row["key"], 0, 0, pair="chosen" in record)
                    audios = [
                        _save(folder, f"{row['key']}.{name}", raw, names, overwrite)
                        for name, raw in zip(row["names"], _clips(shard, row, cfg), strict=True)
                    ]
                    line = _line(record, sample) | {"audios": [f"{folder.name}/{name}" for name in audios]}
                    if task != CHAT:
                        # `qa-train eval data=` scores by it.
                        line["task"] = task
                    file.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
        if out.exists() and not overwrite and not filecmp.cmp(part, out, shallow=False):
            raise _other_content(out)
    return sum(1 for _ in out.open("rb"))


def _line(record: dict[str, Any], sample: Sample) -> dict[str, Any]:
    """The record with its sample's turns as plain messages; a pair in ms-swift's fields."""
    messages = plain_messages(sample)
    line = {name: value for name, value in record.items() if name not in ("audios", "chosen", "rejected")}
    if sample.chosen is not None and sample.rejected is not None:
        messages.append({"role": "assistant", "content": "".join(part.text for part in sample.chosen)})
        line["rejected_response"] = "".join(part.text for part in sample.rejected)
    return line | {"messages": messages}


def _clips(shard: str, row: dict[str, Any], cfg: StorageConfig | None) -> Iterator[bytes]:
    with storage.open_binary(shard, cfg) as file:
        for offset, size, checksum in zip(row["offsets"], row["sizes"], row["crc32c"], strict=True):
            file.seek(offset)
            raw = file.read(size)
            if crc32c.crc32c(raw) != checksum:
                raise ValueError(
                    f"{shard}: the clip of {row['key']} does not match the index; run: qa-train data index"
                )
            yield raw


def _other_content(path: Path) -> ValueError:
    return ValueError(f"{path} is there with other content: choose another out=, or replace it with overwrite=true")


def _save(folder: Path, member: str, raw: bytes, names: set[str], overwrite: bool) -> str:
    """Save a clip under a name made of its member's; keys are never used as paths."""
    name = "".join(char if char.isalnum() or char in "-_." else "_" for char in member).lstrip(".")
    if name in names:
        raise ValueError(f"two clips would be saved as {name}: export their shards to different files")
    names.add(name)
    path = folder / name
    if path.is_symlink() or (path.exists() and path.read_bytes() != raw):
        if not overwrite:
            raise _other_content(path)
        path.unlink()
    path.write_bytes(raw)
    return name
