"""JSONL chats with ``messages`` and ``audios`` (paths), as other fine-tuning tools use them: in and out.

Read are the fields of ms-swift (``messages``, ``audios``, ``rejected_response``), of LLaMA-Factory and Audio Flamingo 3
(``conversations`` of {from, value}, ``sound``), of align-anything (``prompt``, ``response_1``, ``response_2``,
``overall_response``), and our own (``chosen``, ``rejected``). Written are ms-swift's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import crc32c

from qa_train.config import StorageConfig
from qa_train.data.audio.waveform import BadAudio, read_header
from qa_train.data.shards import storage
from qa_train.data.shards.index import ShardIndex, load_index
from qa_train.data.shards.tar import AUDIO_EXTENSIONS
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.prompts import CHAT, PLACEHOLDER, PromptBank, chat_messages
from qa_train.data.text.records import BadRecord, parse_record
from qa_train.data.text.sample import AudioPart, Sample
from qa_train.utils.atomic import whole

Line = tuple[list[dict[str, Any]], list[Path], dict[str, Any]]
_ROLES = {"human": "user", "gpt": "assistant"}
_MARKS = ("<sound>", "<speech>", PLACEHOLDER)
_COMPARED = ("prompt", "response_1", "response_2", "overall_response")
# What becomes part of the messages or of the list of clips, and is no field of the record.
_CONSUMED = ("audios", "audio", "sound", "conversations", "rejected_response", "system", "images", "videos", "duration")


def chat_record(row: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The record (with ``messages``) and the audio paths of one line.

    Raises BadRecord when the line is no chat, holds images or videos, or its marks and paths do not match.
    """
    if "overall_response" in row:
        row = _compared(row)
    if not row.get("messages") and not row.get("conversations"):
        rows = "; rows such as {audio, text} are read by: qa-train data import jsonl" if "messages" not in row else ""
        raise BadRecord(f"no 'messages', it has {', '.join(list(row)[:8]) or 'nothing'}{rows}")
    if any(row.get(name) for name in ("images", "videos")):
        raise BadRecord("it has images or videos")
    audios = row.get("audios") or row.get("audio") or row.get("sound") or []
    paths = [audios] if isinstance(audios, str) else list(audios)
    messages = list(row.get("messages") or _turns(row["conversations"]))
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": str(row["system"])})
    record: dict[str, Any] = {**row, "messages": messages}
    if "rejected_response" in row:
        if messages[-1].get("role") != "assistant" or not isinstance(row["rejected_response"], str):
            raise BadRecord("rejected_response must be text, with the better answer as the last message")
        record |= {"messages": messages[:-1], "chosen": messages[-1]["content"], "rejected": row["rejected_response"]}
    for name in _CONSUMED:
        record.pop(name, None)
    chat_messages({**record, "audios": paths})
    return record, paths


def _compared(row: dict[str, Any]) -> dict[str, Any]:
    """Two answers of which people preferred one, as align-anything has them: the question, chosen and rejected."""
    answers = [row.get("response_1"), row.get("response_2")]
    better = str(row["overall_response"])
    if better not in ("1", "2") or not all(isinstance(text, str) for text in (row.get("prompt"), *answers)):
        raise BadRecord("'overall_response' must be 1 or 2: which of response_1 and response_2 suits prompt better")
    rest = {name: value for name, value in row.items() if name not in _COMPARED}
    chosen, rejected = answers if better == "1" else answers[::-1]
    question = {"role": "user", "content": f"{PLACEHOLDER}{row['prompt']}"}
    return {**rest, "messages": [question], "chosen": chosen, "rejected": rejected, "family": "human"}


def _turns(conversations: Any) -> list[dict[str, str]]:
    """{from, value} as {role, content}; every mark of a clip becomes <audio>."""
    turns = []
    for turn in conversations if isinstance(conversations, list) else [None]:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise BadRecord("'conversations' must be a list of {from, value}")
        text, role = turn["value"], str(turn.get("from"))
        for mark in _MARKS:
            text = text.replace(f"{mark}\n", PLACEHOLDER).replace(mark, PLACEHOLDER)
        if _ROLES.get(role, role) not in ("system", "user", "assistant"):
            raise BadRecord(f"conversations: {role!r} is no known speaker; use human or gpt")
        turns.append({"role": _ROLES.get(role, role), "content": text})
    return turns


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
                record, names = chat_record(parse_record(raw))
                audios = [path.parent / name for name in names]
                for audio in audios:
                    if not audio.is_file():
                        hint = "qa-train data import jsonl counts such lines and goes on"
                        raise BadRecord(f"audio file {audio} does not exist ({hint})")
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            extra = {name: value for name, value in record.items() if name != "messages"}
            yield record["messages"], audios, extra


def jsonl_to_shards(jsonl: str | Path, out_pattern: str | Path, **options: Any) -> list[ShardIndex]:
    """Pack a JSONL file and its audio files, unchanged, into indexed shards (task: chat).

    ``options`` go to ShardWriter. The key of a record is its line count, so it stays unique.
    """
    with ShardWriter(out_pattern, **options) as writer:
        for number, (messages, audios, extra) in enumerate(read_jsonl(jsonl)):
            where = f"{jsonl}, record {number}"
            kinds = [audio.suffix[1:].lower() for audio in audios]
            if not set(kinds) <= set(AUDIO_EXTENSIONS):
                raise ValueError(f"{where}: audio types {sorted(set(kinds))}; use one of {AUDIO_EXTENSIONS}")
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
                extension=kinds,
            )
    if not writer.indexes:
        raise ValueError(f"{jsonl} holds no line: expected one chat (messages and audios) on each")
    return writer.indexes


def shards_to_jsonl(
    shards: Sequence[str | Path], out: str | Path, *, task: str = CHAT, cfg: StorageConfig | None = None
) -> int:
    """Write the records of indexed shards as chats to ``out``, and their clips, unchanged, to ``OUT-audio/``.

    ``task`` gives records without messages a question and an answer (the wording of epoch 0) and is on every line; the
    other fields are kept. ``cfg`` says how remote shards are read. Returns the number of lines. Raises ValueError for
    a record that the task cannot use, or a changed shard.
    """
    out = Path(out)
    folder = out.with_name(f"{out.stem}-audio")
    folder.mkdir(parents=True, exist_ok=True)
    bank = PromptBank.load()
    names: set[str] = set()
    with whole(out) as part, part.open("w", encoding="utf-8") as file:
        for shard in storage.expand(shards):
            for row in load_index(shard, cfg).table.to_pylist():
                record = json.loads(row["meta"])
                sample = bank.sample(record, task, "chat", row["key"], 0, 0, pair="chosen" in record)
                audios = [
                    _save(folder, f"{row['key']}.{name}", raw, names)
                    for name, raw in zip(row["names"], _clips(shard, row, cfg), strict=True)
                ]
                line = _line(record, sample) | {"audios": [f"{folder.name}/{name}" for name in audios]}
                if task != CHAT:
                    # `qa-train eval data=` scores by it.
                    line["task"] = task
                file.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
    return sum(1 for _ in out.open("rb"))


def _line(record: dict[str, Any], sample: Sample) -> dict[str, Any]:
    """The record with its sample's turns as plain messages; a pair in ms-swift's fields."""
    messages = [
        {
            "role": message.role,
            "content": "".join(PLACEHOLDER if isinstance(part, AudioPart) else part.text for part in message.content),
        }
        for message in sample.messages
    ]
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


def _save(folder: Path, member: str, raw: bytes, names: set[str]) -> str:
    """Save a clip under a name made of its member's; keys are never used as paths."""
    name = "".join(char if char.isalnum() or char in "-_." else "_" for char in member).lstrip(".")
    if name in names:
        raise ValueError(f"two clips would be saved as {name}: export their shards to different files")
    names.add(name)
    (folder / name).write_bytes(raw)
    return name
