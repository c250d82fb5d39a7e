"""JSONL chats in, trainable shards out; and where shards may lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import soundfile

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.batches import open_data
from qa_train.data.stores.storage import RangeReader, expand, open_binary, size_of
from qa_train.data.tools.interchange import jsonl_to_shards, read_jsonl
from tests.data.conftest import noise


def write_jsonl(folder: Path, lines: list[Any]) -> Path:
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", noise(0.5 + i / 5, seed=i), 16_000)
    path = folder / "chats.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def chat(user: str, *audios: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": "An answer."}]
    return {"messages": messages, "audios": list(audios), "source": "test"}


def test_jsonl_becomes_shards_that_train(tmp_path: Path, tokenizer: Any) -> None:
    lines = [chat("<audio>What?", "0.wav"), chat("Hi"), "", chat("<audio>Or <audio>?", "1.wav", "2.wav")]
    path = write_jsonl(tmp_path, lines)
    read = list(read_jsonl(path))
    assert [len(audios) for _, audios, _ in read] == [1, 0, 2]
    assert read[0][2] == {"source": "test"}
    (index,) = jsonl_to_shards(path, tmp_path / "out" / "c-%03d.tar")
    assert len(index) == 3
    sources = {"c": SourceConfig(name="c", shards=[str(tmp_path / "out")], task="chat", template="chat")}
    cfg = DataConfig(sources=sources, shuffle_window=3)
    batch = open_data(cfg, tokenizer, 80, seed=0, batches_per_step=1).build(0)
    assert len(batch["input_ids"]) == 3
    assert sorted(batch["feature_lengths"].tolist()) == [50, 70, 90]


@pytest.mark.parametrize(("better", "chosen", "rejected"), [(1, "A dog.", "A cat."), ("2", "A cat.", "A dog.")])
def test_pairs_judged_by_people(better: Any, chosen: str, rejected: str, tmp_path: Path, tokenizer: Any) -> None:
    line = {"prompt": "What is it?", "audio": "0.wav", "response_1": "A dog.", "response_2": "A cat."}
    jsonl_to_shards(write_jsonl(tmp_path, [line | {"overall_response": better}]), tmp_path / "pairs-%03d.tar")
    sources = {"p": SourceConfig(name="p", shards=[f"{tmp_path}/*.tar"], task="chat", template="chat")}
    cfg = DataConfig(sources=sources, shuffle_window=3)
    data = open_data(cfg, tokenizer, 80, seed=0, batches_per_step=1, preference=True)
    (ref,) = data.plan.batch(0)[:1]
    sample = data.sources[0].sample(ref.row, 0)
    assert sample.chosen is not None
    assert sample.rejected is not None
    assert (sample.chosen[0].text, sample.rejected[0].text) == (chosen, rejected)
    rows = data.build(0)["input_ids"]
    assert "Audio 1: " in tokenizer.decode(rows[0])
    assert "What is it?" in tokenizer.decode(rows[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ({"text": "x"}, "no 'messages'"),
        (chat("<audio>?", "none.wav"), "does not exist"),
        (chat("<audio><audio>?", "0.wav"), "place 2 clips"),
        ({"prompt": "?", "response_1": "a", "response_2": "b", "overall_response": 3}, "is not 1 or 2"),
    ],
)
def test_bad_lines_are_located(line: Any, message: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [chat("<audio>", "0.wav"), line])
    with pytest.raises(ValueError, match=rf"chats.jsonl, line 2: .*{message}"):
        list(read_jsonl(path))


def test_shards_by_url_and_no_command_sources(tmp_path: Path) -> None:
    with fsspec.open("memory://bucket/a.bin", "wb") as file:
        file.write(b"0123456789")
    assert size_of("memory://bucket/a.bin") == 10
    assert RangeReader().read("memory://bucket/a.bin", 3, 4) == b"3456"
    for url in ("pipe://cat x", "hf://x/y.tar", "ssh://host/x.tar"):
        with pytest.raises(ValueError, match="is not allowed"):
            expand([url])
    with pytest.raises(FileNotFoundError):
        open_binary("pipe:cat /etc/passwd")


def test_expand_lists_each_shard_once_and_sorted(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "sub/c.tar", "a.tar.index.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = expand([tmp_path / "*.tar", tmp_path])
    assert [Path(path).relative_to(tmp_path).as_posix() for path in found] == ["a.tar", "b.tar", "sub/c.tar"]
