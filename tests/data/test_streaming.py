"""Decoded samples for code of others: what is in them, their order, and who gets which."""

from __future__ import annotations

import json
import logging
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from qa_train.config import DataConfig, SourceConfig, StorageConfig
from qa_train.data import stream
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from tests.data.conftest import noise, speech_record, write_shards

NUM = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of speech, and two of sounds."""
    root = tmp_path_factory.mktemp("stream")
    write_shards(root, "speech", NUM, 5, speech_record)
    write_shards(root, "sound", 6, 3, lambda i: {"caption": f"sound {i}", "split": "train"})
    return root


def keys(samples: Any, most: int | None = None) -> list[str]:
    return [sample["__key__"] for sample in islice(samples, most)]


def planned(sources: dict[str, Any]) -> DataConfig:
    """The sources as a section of a configuration, planned by few samples."""
    return DataConfig(
        sources={name: SourceConfig(name=name, **source) for name, source in sources.items()}, shuffle_window=16
    )


def mixture(folder: Path) -> DataConfig:
    return planned(
        {
            "asr": {"shards": [f"{folder}/speech-*.tar"], "task": "asr", "weight": 3},
            "sounds": {"shards": [f"{folder}/sound-*.tar"], "task": "sound_caption"},
        }
    )


def test_shards_give_every_record_once_in_order(folder: Path) -> None:
    found = list(stream(f"{folder}/speech-*.tar"))
    rows = [(path, row) for path in sorted(map(str, folder.glob("speech-*.tar")))
            for row in load_index(path).table.to_pylist()]  # fmt: skip
    assert len(found) == NUM
    for sample, (path, row) in zip(found, rows, strict=True):
        assert (sample["__key__"], sample["__url__"], sample["sampling_rate"]) == (row["key"], path, 16_000)
        assert {name: sample[name] for name in json.loads(row["meta"])} == json.loads(row["meta"])
        assert [(len(wave), wave.dtype) for wave in sample["audio"]] == [(row["num_samples"][0], np.float32)]
    wave = noise(0.3, seed=0)
    assert np.abs(found[0]["audio"][0] - wave).max() < 1e-4
    assert isinstance(stream([folder]), webdataset.DataPipeline)


def test_a_seed_shuffles_and_the_same_seed_does_it_again(folder: Path) -> None:
    plain, one, again, two = (keys(stream(folder, seed=seed)) for seed in (None, 1, 1, 2))
    assert one == again
    assert len({tuple(plain), tuple(one), tuple(two)}) == 3
    assert sorted(plain) == sorted(one) == sorted(two)
    samples = stream(folder, seed=1)
    assert keys(samples) == keys(samples) == one


@pytest.mark.parametrize("of_mixture", [False, True])
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("start", [1, 22])
def test_the_first_and_the_rest_are_all(start: int, seed: int | None, of_mixture: bool, folder: Path) -> None:
    data: Any = mixture(folder) if of_mixture else f"{folder}/speech-*.tar"
    whole = keys(stream(data, seed=seed), 40)
    assert whole[:start] + keys(stream(data, seed=seed, start=start), 40 - start) == whole


@pytest.mark.parametrize("of_mixture", [False, True])
@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_ranks_and_workers_share_the_samples(
    world: int, workers: int, of_mixture: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: Any = mixture(folder) if of_mixture else folder
    count = 29
    whole = keys(stream(data, seed=3), count)
    found: dict[int, str] = {}
    for rank in range(world):
        for worker in range(workers):
            for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("WORKER", worker), ("NUM_WORKERS", workers)):
                monkeypatch.setenv(name, str(value))
            places = range(rank + worker * world, count, world * workers)
            mine = keys(pickle.loads(pickle.dumps(stream(data, seed=3))), len(places))
            assert len(mine) == len(places)
            found |= dict(zip(places, mine, strict=True))
    assert [found[place] for place in range(count)] == whole


def test_workers_of_a_loader_share_the_samples(folder: Path) -> None:
    loader = torch.utils.data.DataLoader(stream(folder, seed=1), batch_size=None, num_workers=2)
    assert sorted(keys(loader)) == sorted(keys(stream(folder)))
    batches = stream(folder).compose(webdataset.to_tuple("__key__", "audio"), webdataset.batched(4, partial=True))
    sizes = [len(names) for names, _ in webdataset.WebLoader(batches, batch_size=None)]
    assert sizes == [4] * ((NUM + 6) // 4) + [(NUM + 6) % 4]


def test_a_mixture_has_shares_prompts_and_epochs(folder: Path) -> None:
    found = list(islice(stream(mixture(folder)), 64))
    assert [sample["source"] for sample in found].count("asr") == 48
    assert {sample["epoch"] for sample in found if sample["source"] == "sounds"} == {0, 1, 2}
    speech = [sample for sample in found if sample["source"] == "asr"]
    assert len({sample["__key__"] for sample in speech[:NUM]}) == NUM
    for sample in found:
        first, last = sample["messages"]
        assert first["content"].startswith("<audio>")
        assert last["role"] == "assistant"
        assert sample["text" if sample["source"] == "asr" else "caption"] in last["content"]
    assert len({sample["messages"][0]["content"] for sample in speech}) > 1
    assert keys(stream(mixture(folder), seed=9), 64) != [sample["__key__"] for sample in found]


def test_records_that_do_not_qualify_are_passed_over(folder: Path) -> None:
    source = {"shards": [f"{folder}/*.tar"], "task": "asr", "where": {"language": "es"}, "max_samples": 4}
    found = list(islice(stream(planned({"spanish": source})), 12))
    assert {sample["language"] for sample in found} == {"es"}
    assert len({sample["__key__"] for sample in found}) == 4


def test_chats_of_several_clips_and_of_none(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "<audio>And <audio>?"}, {"role": "assistant", "content": "No."}]
    with ShardWriter(tmp_path / "a.tar") as out:
        out.write("two", {"messages": chat}, [noise(0.3), noise(0.5)])
        out.write("none", {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}, [])
    two, none = stream(tmp_path / "a.tar")
    assert [len(wave) for wave in two["audio"]] == [4800, 8000]
    assert two["messages"] == chat
    assert none["audio"] == []
    sources = {"chat": {"shards": [str(tmp_path / "a.tar")], "task": "chat", "template": "chat"}}
    first = next(sample for sample in stream(planned(sources)) if sample["__key__"] == "two")
    assert first["messages"] == chat


def test_damage_is_skipped_within_the_budget(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ShardWriter(tmp_path / "a.tar") as out:
        for i in range(20):
            out.write(f"k{i:02d}", {"text": "so"}, noise(0.2, i))
    raw = bytearray((tmp_path / "a.tar").read_bytes())
    rows = load_index(str(tmp_path / "a.tar")).table.to_pylist()
    for row in rows[:12]:
        raw[row["offsets"][0] + 200] ^= 1
    (tmp_path / "a.tar").write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        assert len(keys(stream(tmp_path / "a.tar", error_budget=0.05))) == 8
    assert sum("changed shard" in message for message in caplog.messages) == 12
    for budget, told in ((0.01, "11 of 11"), (0.0, "1 of 1")):
        with pytest.raises(ValueError, match=rf"{told} samples could not be read.*error_budget={budget:g} allows"):
            keys(stream(tmp_path / "a.tar", error_budget=budget))


@pytest.mark.parametrize(
    ("data", "options", "why"),
    [
        ("none-*.tar", {}, "no shard matches"),
        (["pipe:cat x.tar"], {}, "index"),
        (["ftp://h/x.tar"], {}, "scheme 'ftp' is not allowed"),
        ({"a": {"shards": ["none-*.tar"], "task": "asr"}}, {}, "no shard matches"),
        ({"a": {"shards": "none-*.tar", "task": "asr"}}, {}, r"no shard matches \['none-\*\.tar'\]"),
        ({"a": SourceConfig(shards=Path("none-*.tar"), task="asr")}, {}, r"no shard matches \['none-\*\.tar'\]"),  # type: ignore[arg-type]
        ({"a": {"shard": ["x.tar"], "task": "asr"}}, {}, "source 'a': there is no setting shard; it has name, shards"),
        ({"a": {"shards": ["x.tar"]}}, {}, "source 'a' has no task, such as asr"),
        ({"a": "x.tar"}, {}, "source 'a' is 'x.tar', expected its settings"),
        (DataConfig(), {"storage": StorageConfig()}, "set them there"),
        (DataConfig(), {"error_budget": 0.5}, "set them there"),
        (DataConfig(), {}, "no source"),
    ],
)
def test_what_cannot_be_streamed_is_refused(data: Any, options: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=why):
        stream(data, **options)


def test_the_example_of_the_guide_works(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(tmp_path / "mine-00000.tar") as out:
        for i, text in enumerate(["good morning", "how are you"]):
            out.write(f"clip{i}", {"text": text, "language": "en", "split": "train"}, noise(1.0, i))
    monkeypatch.chdir(tmp_path)
    guide = (Path(__file__).parents[2] / "docs/data.md").read_text()
    section = guide.split("## In your own code")[1].split("## ")[0]
    code = section.split("<<'PY'\n")[1].split("\nPY\n")[0]
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "clip0 good morning (16000,) 16000"
    assert len(lines) == 6
    assert {line.split()[0] for line in lines[2:]} <= {"asr", "lid"}
