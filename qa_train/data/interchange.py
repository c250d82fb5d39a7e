"""JSONL chats with ``messages`` and ``audios`` (paths), as other fine-tuning tools use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qa_train.data.audio import BadAudio, read_header
from qa_train.data.index import ShardIndex
from qa_train.data.prompts import chat_messages
from qa_train.data.records import BadRecord, parse_record
from qa_train.data.shards import ShardWriter
from qa_train.data.tar import AUDIO_EXTENSIONS

Line = tuple[list[dict[str, Any]], list[Path], dict[str, Any]]


def read_jsonl(path: str | Path) -> Iterator[Line]:
    """Messages, audio paths and other fields of each line; relative paths start at the file's folder.

    Raises ValueError with the line number when a line is not a chat or lists a missing file.
    """
    path = Path(path)
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                record = parse_record(raw)
                if "messages" not in record:
                    raise BadRecord("no 'messages'")
                audios = [path.parent / name for name in record.setdefault("audios", [])]
                chat_messages(record)
                for audio in audios:
                    if not audio.is_file():
                        raise BadRecord(f"audio file {audio} does not exist")
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            extra = {name: value for name, value in record.items() if name not in ("messages", "audios")}
            yield record["messages"], audios, extra


def jsonl_to_shards(jsonl: str | Path, out_pattern: str | Path, **options: Any) -> list[ShardIndex]:
    """Pack a JSONL file and its audio files, unchanged, into indexed shards (task: chat).

    ``options`` go to ShardWriter. The key of a record is its line count, so it stays unique.
    """
    with ShardWriter(out_pattern, **options) as writer:
        for number, (messages, audios, extra) in enumerate(read_jsonl(jsonl)):
            where = f"{jsonl}, record {number}"
            kinds = {audio.suffix[1:].lower() for audio in audios}
            if len(kinds) > 1 or not kinds <= set(AUDIO_EXTENSIONS):
                raise ValueError(f"{where}: audio types {sorted(kinds)}; use one of {AUDIO_EXTENSIONS}")
            for audio in audios:
                try:
                    read_header(audio)
                except BadAudio as error:
                    raise ValueError(f"{where}: {audio}: {error}") from error
            record = {**extra, "messages": messages}
            writer.write(
                f"{Path(jsonl).stem.replace('.', '-')}-{number:08d}",
                record,
                [audio.read_bytes() for audio in audios],
                extension=next(iter(kinds), None),
            )
    return writer.indexes
