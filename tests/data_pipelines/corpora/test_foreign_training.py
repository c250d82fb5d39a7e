"""Foreign data train through the command line with no code: a WebDataset tar, a Hugging Face folder, chats as JSONL."""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from qa_train.config import starter_dir
from qa_train.data.shards.index import load_index
from qa_train.data.stores.storage import RangeReader
from tests.data_pipelines.corpora.made_up import audio_cell, table_bytes, tone, write_tree
from tests.train.conftest import run

NUM = 6
WORDS = "seven green birds sing over the quiet river".split()

pytestmark = pytest.mark.slow


def cli(*words: str) -> str:
    """Run a command to its end and return what it prints."""
    return run(*words).stdout


def train(stage: str, folder: Path, source: dict[str, Any]) -> None:
    """Train three steps on one source; each must have heard audio and learnt text."""
    described = "{mine:{" + ",".join(f"{name}:{value}" for name, value in source.items()) + "}}"
    cli(
        stage, "experiment=smoke", "data=empty", f"+data.sources={described}", f"run.dir={folder}",
        "trainer.max_steps=3", "data.shuffle_window=100",
    )  # fmt: skip
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert step["audio_s"] > 1
        assert step["supervised_tokens"] > step["samples"]
        assert step["skipped_samples"] == 0
        assert math.isfinite(step["loss"])
        assert step["loss"] > 0


def test_a_foreign_webdataset_tar_trains(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        for i in range(NUM):
            members = {
                f"x{i}.mp3": tone(f"x{i}.mp3"),
                f"x{i}.txt": " ".join(WORDS[i : i + 3]).encode(),
                f"x{i}.cls": b"3",
            }
            for name, raw in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
    assert f"{NUM} records" in cli("data", "index", str(tmp_path / "foreign.tar"))
    source = {"shards": f"['{tmp_path}/foreign.tar']", "task": "asr"}
    train("pretrain", tmp_path / "run", source)


def test_a_hugging_face_folder_trains(tmp_path: Path) -> None:
    import datasets

    rows = [{"audio": audio_cell(f"h{i}.wav"), "sentence": " ".join(WORDS[i : i + 3])} for i in range(NUM)]
    write_tree(tmp_path, {"rows.parquet": table_bytes(rows)})
    made = datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    made = made.cast_column("audio", datasets.Audio(decode=False))
    datasets.DatasetDict({"train": made}).save_to_disk(tmp_path / "hf")
    out = tmp_path / "shards"
    shown = cli(
        "data", "import", "huggingface", f"path={tmp_path}/hf", f"out={out}", "columns.text=sentence", "workers=0"
    )
    assert f"{NUM} records" in shown
    source = {"shards": f"['{out}/*.tar']", "task": "asr"}
    train("pretrain", tmp_path / "run", source)


def test_chats_as_jsonl_train(tmp_path: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": "<audio>What is it?"}, {"role": "assistant", "content": WORDS[i]}],
         "audios": [f"{i}.wav"]}
        for i in range(NUM)
    ]  # fmt: skip
    files: dict[str, Any] = {f"{i}.wav": 0.4 for i in range(NUM)}
    write_tree(tmp_path, files | {"chats.jsonl": "\n".join(map(json.dumps, lines))})
    out = tmp_path / "shards"
    cli("data", "import", "jsonl", f"path={tmp_path}/chats.jsonl", f"out={out}", "workers=0")
    source = {"shards": f"['{out}/*.tar']", "task": "chat", "template": "chat"}
    train("sft", tmp_path / "run", source)


def test_recorded_speech_of_five_languages_trains(tmp_path: Path) -> None:
    """Plain audio files and a TSV, as a data engineer finds them: the starter recordings, unpacked."""
    shard = str(starter_dir() / "speech-train.tar")
    reader, lines, left = RangeReader(), ["path\tsentence\tlocale"], dict.fromkeys(("en", "es", "fr", "it", "ru"), 8)
    (tmp_path / "audio").mkdir()
    for row in load_index(shard).table.to_pylist():
        record = json.loads(row["meta"])
        if left[record["language"]] and row["duration_s"] > 1:
            left[record["language"]] -= 1
            name = f"audio/{row['key']}.{row['names'][0]}"
            (tmp_path / name).write_bytes(reader.read(shard, row["offsets"][0], row["sizes"][0]))
            lines.append(f"{name}\t{record['text']}\t{record['language']}")
    (tmp_path / "speech.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "shards"
    shown = cli(
        "data", "import", "table", f"path={tmp_path}/speech.tsv", f"out={out}", "audio=keep", "name=mine",
        "columns.audio=path", "columns.text=sentence", "columns.language=locale", "samples_per_shard=20", "workers=2",
    )  # fmt: skip
    assert "40 records" in shown
    shards = sorted(map(str, out.glob("*.tar")))
    assert len(shards) == 2
    counted = cli("data", "stats", *shards, "tokenizer=builtin:nano", "tasks=asr,lid")
    for language in left:
        assert re.search(rf"^ +{language} +8 ", counted, re.MULTILINE), counted
    assert re.search(r"^ +asr +40 ", counted, re.MULTILINE), counted
    train("pretrain", tmp_path / "run", {"shards": f"['{out}/*.tar']", "task": "asr"})
