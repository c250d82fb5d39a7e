"""JSONL out and in again: nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.tools.interchange import jsonl_to_shards, shards_to_jsonl
from tests.data_pipelines.corpora.made_up import tone

ASK = [{"role": "user", "content": "<audio>What?"}]
RECORDS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one": ({"messages": [*ASK, {"role": "assistant", "content": "Rain <|im_end|>."}], "source": "x"}, ["a.wav"]),
    "two/mixed": (
        {"messages": [{"role": "user", "content": "<audio>or<audio>?"}, {"role": "assistant", "content": "No"}]},
        ["b.wav", "c.wav"],
    ),
    "pair": ({"messages": ASK, "chosen": "Rain.", "rejected": "Snow.", "language": "en"}, ["d.wav"]),
    "text": ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}, []),
}  # fmt: skip


def written(folder: Path) -> Path:
    """A shard of chats and a pair."""
    with ShardWriter(folder / "in.tar") as writer:
        for key, (record, names) in RECORDS.items():
            writer.write(key, record, [tone(name) for name in names], extension="wav")
    return folder / "in.tar"


def rows(shard: Path) -> list[tuple[dict[str, Any], list[bytes]]]:
    """Records without their list of clips, and the clips' bytes, in order."""
    raw = shard.read_bytes()
    found = []
    for row in load_index(str(shard)).table.to_pylist():
        record = {name: value for name, value in json.loads(row["meta"]).items() if name != "audios"}
        found.append((record, [raw[at : at + size] for at, size in zip(row["offsets"], row["sizes"], strict=True)]))
    return found


def test_shards_to_jsonl_and_back(tmp_path: Path) -> None:
    shard = written(tmp_path)
    assert shards_to_jsonl([shard], tmp_path / "out.jsonl") == 4
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[2]["rejected_response"] == "Snow."
    assert lines[2]["messages"][-1] == {"role": "assistant", "content": "Rain."}
    assert lines[1]["audios"] == ["out-audio/two_mixed.wav", "out-audio/two_mixed.1.wav"]
    jsonl_to_shards(tmp_path / "out.jsonl", tmp_path / "again.tar")
    assert rows(tmp_path / "again.tar") == rows(shard)
    assert [record for record, _ in rows(shard)] == [record for record, _ in RECORDS.values()]


def test_records_without_messages_get_a_question(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "in.tar") as writer:
        writer.write("k", {"text": "hello", "language": "en"}, tone("k.wav"), extension="wav")
    shards_to_jsonl([tmp_path / "in.tar"], tmp_path / "asr.jsonl", task="asr")
    line = json.loads((tmp_path / "asr.jsonl").read_text())
    assert line["messages"][0]["content"].startswith("<audio>")
    assert line["messages"][1] == {"role": "assistant", "content": "hello"}
    assert (tmp_path / line["audios"][0]).read_bytes() == tone("k.wav")
    with pytest.raises(ValueError, match="needs 'messages'"):
        shards_to_jsonl([tmp_path / "in.tar"], tmp_path / "chat.jsonl")
    assert not (tmp_path / "chat.jsonl").exists()
