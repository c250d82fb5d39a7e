"""Held-out recordings are recognised in training data by their bytes, wherever the shards lie and whatever they say."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qa_train.callbacks.held_out import refuse_training_data
from qa_train.config import DataConfig, EvalSetConfig, SourceConfig
from qa_train.data.shards.catalog import open_shards
from qa_train.data.shards.index import build_index
from qa_train.data.shards.same_recordings import same_recordings
from qa_train.data.shards.writer import ShardWriter


def wave(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(0, 0.1, 3200 + number).astype(np.float32)


def shard(path: Path, records: Sequence[tuple[str, dict[str, Any], Sequence[int]]]) -> str:
    with ShardWriter(str(path)) as writer:
        for key, record, clips in records:
            writer.write(key, record, [wave(clip) for clip in clips])
    return str(path)


@pytest.fixture
def trained(tmp_path: Path) -> list[str]:
    """Twelve recordings in two shards; one record has two clips."""
    one = shard(tmp_path / "a.tar", [(f"a{i}", {"text": "x", "split": "train"}, [i]) for i in range(6)])
    two = [(f"b{i}", {"text": "y", "split": "train", "language": "en"}, [i]) for i in range(6, 10)]
    chat = {"messages": [{"role": "user", "content": "<audio><audio>?"}, {"role": "assistant", "content": "z"}]}
    return [one, shard(tmp_path / "b.tar", [*two, ("b10", chat, [10, 11])])]


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([("h20", {"text": "x"}, [20]), ("h21", {"text": "x"}, [21])], []),
        ([("other", {"text": "another", "split": "test"}, [3])], ["other"]),
        ([("h20", {"text": "x"}, [20]), ("h7", {"text": "x"}, [7]), ("h0", {"text": "x"}, [0])], ["h7", "h0"]),
        ([("second-of-two", {"text": "x"}, [11])], ["second-of-two"]),
    ],
)
def test_the_same_bytes_are_the_same_recording(
    records: list[Any], found: list[str], trained: list[str], tmp_path: Path
) -> None:
    held = open_shards([shard(tmp_path / "held.tar", records)])
    assert same_recordings(held, {}, open_shards(trained), {}) == found


def test_only_what_passes_the_filters_of_both_counts(trained: list[str], tmp_path: Path) -> None:
    records = [(f"h{i}", {"text": "x", "split": ("test", "dev")[i % 2]}, [i]) for i in (4, 5, 6, 7)]
    held, source = open_shards([shard(tmp_path / "held.tar", records)]), open_shards(trained)
    assert same_recordings(held, {}, source, {}) == ["h4", "h5", "h6", "h7"]
    assert same_recordings(held, {"split": "test"}, source, {}) == ["h4", "h6"]
    assert same_recordings(held, {"split": ["test", "dev"]}, source, {"language": "en"}) == ["h6", "h7"]
    assert same_recordings(held, {"split": "dev"}, source, {"language": "fr"}) == []


@pytest.mark.parametrize("how", ["a copy", "a copy of another name and split", "the shard itself", "others"])
def test_a_run_refuses_to_score_what_it_trains_on(how: str, trained: list[str], tmp_path: Path) -> None:
    held = tmp_path / "held.tar"
    where: dict[str, Any] = {}
    if how == "a copy":
        shutil.copy(trained[0], held)
        build_index([held])
    elif how == "the shard itself":
        held = Path(trained[0])
    elif how == "others":
        shard(held, [("h20", {"text": "x"}, [20])])
    else:
        # What the two imports of one table give: all fields differ but the sound.
        shard(held, [("eval-0", {"text": "x", "split": "test"}, [2])])
        where = {"split": "test"}
    cfg = SourceConfig(shards=trained, task="asr", where={"split": "train"} if where else {})
    table = open_shards(trained, cfg.where)
    source = SimpleNamespace(name="speech", weight=1.0, shards=table.paths, cfg=cfg, table=table)
    unused = SimpleNamespace(name="unused", weight=0.0, shards=[str(held)], cfg=cfg, table=open_shards([held]))
    stage: Any = SimpleNamespace(
        batches=SimpleNamespace(sources=[unused, source]), cfg=SimpleNamespace(data=DataConfig())
    )
    chosen = EvalSetConfig(shards=[str(held)], where=where)
    if how == "others":
        refuse_training_data("mine", chosen, stage)
        return
    told = r"sets\.mine and data\.sources\.speech (read the same records|hold \d of the same recordings, e\.g\. \S+)"
    with pytest.raises(ValueError, match=told + r".*seen_in_training=true"):
        refuse_training_data("mine", chosen, stage)
