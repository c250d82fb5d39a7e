"""Filters: each refuses what it is for, says why, and the index loses exactly that."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from qa_train.data.shards.index import build_index, load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.script import script_share, spoken_characters
from qa_train.data.tools.clean import CleanConfig, clean, clipped_share, measure_shard, silent_share
from qa_train.data.tools.validate import validate
from qa_train.jobs.executor import Engine
from tests.data.conftest import noise

OFF = CleanConfig(**{name: None for name in CleanConfig.__dataclass_fields__ if name != "silence_db"})


def corpus(folder: Path) -> list[str]:
    """Two shards; the key of a bad record says which filter must refuse it."""
    mostly_silent = np.concatenate([noise(0.1), np.zeros(16_000 * 4, np.float32)])
    records: dict[str, tuple[dict[str, Any], np.ndarray, int]] = {
        "good": ({"text": "hello world", "language": "en"}, noise(1, seed=1), 16_000),
        "too short": ({"text": "a", "language": "en"}, noise(0.2, seed=2), 16_000),
        "silence": ({"text": "hello there you", "language": "en"}, mostly_silent, 16_000),
        "clipping": ({"label": "x"}, np.clip(noise(1, seed=3) * 50, -1, 1), 16_000),
        "sample rate": ({"label": "y"}, noise(1, seed=4, rate=4000), 4_000),
        "language and script": ({"text": "привет мир", "language": "en"}, noise(1, seed=5), 16_000),
        "too many characters per second": ({"text": "abcdefghij " * 5, "language": "en"}, noise(1, seed=6), 16_000),
        "too few characters per second": ({"text": "a", "language": "en"}, noise(5, seed=7), 16_000),
        "chinese": ({"text": "今天天气很好", "language": "zh"}, noise(1, seed=8), 16_000),
        "same audio": ({"text": "hello again", "language": "en"}, noise(1, seed=1), 16_000),
        "same text": ({"text": "Hello, world!", "language": "en"}, noise(1, seed=9), 16_000),
    }
    with ShardWriter(folder / "a-%d.tar", max_samples=6) as writer:
        for key, (record, wave, rate) in records.items():
            writer.write(key.replace(" ", "_"), record, wave, rate)
        writer.write("text_only", {"messages": [{"role": "user", "content": "Hi"}]}, [])
    return [index.path for index in writer.indexes]


def keys(paths: list[str]) -> list[str]:
    return [key for path in paths for key in load_index(path).table["key"].to_pylist()]


def test_every_filter_refuses_its_record_and_explains(tmp_path: Path) -> None:
    paths = corpus(tmp_path)
    before = keys(paths)
    report = tmp_path / "drops.jsonl"
    cfg = CleanConfig(max_same_text=1)
    dry = clean(paths, cfg, report=report)
    assert keys(paths) == before
    drops = [json.loads(line) for line in report.read_text().splitlines()]
    assert [drop["filter"].replace(" ", "_") for drop in drops] == [drop["key"] for drop in drops]
    assert len(drops) == 9
    assert all(drop["value"] is not None and drop["shard"] in paths for drop in drops)
    assert dry.dropped is not None
    assert dry.dropped.total() == 9
    assert "dropped: 9 (15 s)" in str(dry)
    done = clean(paths, cfg, apply=True, engine=Engine(2))
    assert done.dropped == dry.dropped
    assert keys(paths) == ["good", "chinese", "text_only"]
    problems = [problem for path in paths for problem in load_index(path).problems]
    assert {problem.key for problem in problems} == set(before) - {"good", "chinese", "text_only"}
    assert any("data clean, silence: 0.97" in p.detail for p in problems)
    # Nothing is left to drop, nothing is broken, and indexing brings everything back.
    assert clean(paths, cfg).dropped == {}
    assert validate(paths, pytest.fail).faults == 0
    build_index(paths)
    assert keys(paths) == before


def test_a_filter_that_is_off_refuses_nothing(tmp_path: Path) -> None:
    assert clean(corpus(tmp_path), OFF).dropped == {}


def test_audio_that_cannot_be_read_is_dropped(tmp_path: Path) -> None:
    paths = corpus(tmp_path)
    row = load_index(paths[0]).table.to_pylist()[0]
    raw = bytearray(Path(paths[0]).read_bytes())
    raw[row["offsets"][0] : row["offsets"][0] + 8] = bytes(8)
    Path(paths[0]).write_bytes(raw)
    assert clean(paths, OFF).dropped == {"unreadable audio": 1}


def test_the_same_sound_in_another_container_is_the_same(tmp_path: Path) -> None:
    digests = set()
    for kind in ("flac", "wav"):
        buffer = io.BytesIO()
        soundfile.write(buffer, (noise(0.5) * 32767).astype(np.int16), 16_000, format=kind.upper())
        with ShardWriter(tmp_path / f"{kind}.tar") as writer:
            writer.write("a", {}, buffer.getvalue(), extension=kind)
        digests.add(measure_shard(str(tmp_path / f"{kind}.tar"), -55)[0].audio)
    assert len(digests) == 1


def test_measures() -> None:
    assert silent_share(np.zeros(100, np.float32), -55) == 1
    assert silent_share(np.concatenate([np.zeros(3200, np.float32), noise(0.2)]), -55) == 0.5
    assert clipped_share(np.array([0, 1, -1, 0.5], np.float32)) == 0.5
    assert script_share("Hello мир", "en") == (5 / 8, False)
    assert script_share("カーテン", "ja") == (1, True)
    assert script_share("안녕", "ko") == (1, True)
    assert script_share("123", "en") == (None, False)
    assert script_share("abc", "tlh") == (None, False)
    assert spoken_characters("नमस्ते, 12!") == 8
