"""Labels by a model: what becomes of answers, what is left out, what a second run asks, and training on the result."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from data_pipelines.importing.import_shard import LeftOut, dropped_of
from data_pipelines.labelling import label_shard
from data_pipelines.labelling.answer_form import AnswerForm
from data_pipelines.labelling.build_labels import label
from data_pipelines.labelling.label_filters import compression_ratio, repeats, windows, word_difference
from data_pipelines.labelling.label_options import LabelConfig, Labeller
from qa_train.commands.data import IndexOptions, index
from qa_train.config import EvalConfig, ServeConfig, StorageConfig
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.prompts import PromptBank
from qa_train.eval.answers import load_answerer
from qa_train.eval.suite import predict_benchmarks
from qa_train.infer.generate import STOP_TOKENS
from qa_train.infer.service import Service
from qa_train.llm.client import Endpoint
from qa_train.model import build_model
from tests.data.serving import s3_server
from tests.data_pipelines.label_server import LabelServer
from tests.infer.live_server import running
from tests.model.stored import SMALL
from tests.train.conftest import run

RATE = 16_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LabelServer]:
    """An endpoint whose faults are not waited for."""
    monkeypatch.setattr(label_shard, "Endpoint", partial(Endpoint, attempts=2, pause_s=0.01))
    found = LabelServer()
    yield found
    found.shutdown()
    found.server_close()


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    wave = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE))
    return np.clip(wave, -1, 1).astype(np.float32)


def shard(path: Path, *clips: tuple[str, dict[str, Any], np.ndarray]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path) as writer:
        for key, record, wave in clips:
            writer.write(key, record, wave)
    return str(path)


def by(server: LabelServer, folder: Path, **more: Any) -> LabelConfig:
    """Options for the shards of a folder, answered in this process."""
    options = LabelConfig(shards=str(folder / "raw"), out=str(folder / "out"), workers=0, date="2026-01-02")
    return replace(options, **{"url": server.url, "model": "ear", **more})


def records(path: Path | str) -> dict[str, dict[str, Any]]:
    return {row["key"]: json.loads(row["meta"]) for row in load_index(str(path)).table.to_pylist()}


def audio(path: Path | str) -> dict[str, bytes]:
    raw = Path(path).read_bytes()
    rows = load_index(str(path)).table.to_pylist()
    return {row["key"]: raw[row["offsets"][0] : row["offsets"][0] + row["sizes"][0]] for row in rows}


def left_out(path: Path) -> dict[str, str]:
    return {entry["key"]: entry["reason"] for entry in dropped_of(path)}


def test_answers_become_the_fields_of_the_task_and_the_audio_stays(server: LabelServer, tmp_path: Path) -> None:
    clips = [(f"c{i}", {"speaker": "s"}, noise(0.5 + i / 10)) for i in range(3)]
    told = ("told", {"text": "known words"}, noise(2))
    raw = shard(tmp_path / "raw/a.tar", *clips, told)
    assert label(by(server, tmp_path, fields={"language": "de", "license": "own"})) == 0
    out = tmp_path / "out/a.tar"
    made = records(out)
    assert [made[f"c{i}"]["text"] for i in range(3)] == [f"it lasts {500 + 100 * i} milliseconds" for i in range(3)]
    prompt = "Recognize the German speech:"
    assert made["c0"] == {
        "speaker": "s", "language": "de", "license": "own", "text": "it lasts 500 milliseconds", "task": "asr",
        "labelled": {"asr": {"model": "ear", "prompt": prompt, "date": "2026-01-02"}},
    }  # fmt: skip
    # Not asked about, and as it was but for the fields.
    assert made["told"] == {"text": "known words", "language": "de", "license": "own"}
    assert sorted(server.asked) == [(500 + 100 * i, prompt) for i in range(3)]
    assert audio(out) == audio(raw)
    report = json.loads((tmp_path / "out/label.report.json").read_text())
    assert (report["listed"], report["made"], report["bad"]) == (4, 4, 0)
    # Indexing again what was written finds the same.
    before = load_index(str(out)).fingerprint
    assert index([str(out)], IndexOptions()) == 0
    assert load_index(str(out)).fingerprint == before

    # A second task on the labelled shards: both labels have their origin.
    server.says = lambda ms, prompt: (200, "I think it is French.", "stop")
    again = replace(by(server, tmp_path), shards=str(out), out=str(tmp_path / "two"), task="lid", relabel=True)
    label(again)
    assert records(tmp_path / "two/a.tar")["c0"]["language"] == "fr"
    assert records(tmp_path / "two/a.tar")["c0"]["labelled"].keys() == {"asr", "lid"}


def test_what_looks_invented_is_left_out_counted_and_listed(
    server: LabelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {
        500: (200, "a good answer", "stop"), 600: (200, "thank you " * 9, "stop"), 700: (200, "  ", "stop"),
        800: (200, "no end", "length"), 900: (400, "filtered", "stop"), 1000: (200, "<|en|>tagged", "stop"),
        1100: (200, "abcdefghijklmnopqrstuvwxyz" * 9, "stop"), 1200: (200, "I'm sorry, no.", "refusal"),
        1300: (200, "half of", "content_filter"),
    }  # fmt: skip
    server.says = lambda ms, prompt: answers[ms]
    quiet = np.zeros(RATE, np.float32)
    quiet[0] = 0.5
    train = {"split": "train"}
    clips = [(f"c{ms}", train, noise(ms / 1000)) for ms in answers]
    shard(
        tmp_path / "raw/a.tar", *clips, ("quiet", train, quiet), ("long", train, noise(3)),
        ("other", {"split": "test"}, noise(1)),
    )  # fmt: skip
    with ShardWriter(tmp_path / "raw/b.tar") as writer:
        writer.write("pair", train, [noise(1), noise(1)])
        writer.write("words", train, [])
    label(by(server, tmp_path, max_duration_s=2.5, where=train, error_budget=0.3))
    expected = {
        "c600": "repeated words", "c700": "empty answer", "c800": "answer cut short", "c900": "no answer",
        "c1000": "answer of another form", "c1100": "repeated words", "quiet": "silence",
        "c1200": "no answer", "c1300": "no answer",
        "long": "longer than max_duration_s", "other": "other by where",
    }  # fmt: skip
    assert left_out(tmp_path / "out/a.tar") == expected
    assert left_out(tmp_path / "out/b.tar") == {"pair": "not exactly one clip", "words": "not exactly one clip"}
    assert [*records(tmp_path / "out/a.tar")] == ["c500"]
    # A shard without any record is none.
    assert not (tmp_path / "out/b.tar").exists()
    report = json.loads((tmp_path / "out/label.report.json").read_text())
    assert report["dropped"]["repeated words"] == 2
    assert (report["made"], report["bad"]) == (1, 3)
    said = capsys.readouterr().out
    assert "skipped 2: repeated words, e.g. c600: 9 times in a row: 'thank you" in said
    # What is silent or too long is never sent; the filters can be switched off.
    assert len(server.asked) == len(answers)
    label(by(server, tmp_path, max_repeats=None, max_compression=None, out=str(tmp_path / "all"), max_duration_s=2.5,
             error_budget=0.3))  # fmt: skip
    assert {"c600", "c1100"} < records(tmp_path / "all/a.tar").keys()


def test_the_same_command_again_asks_for_what_is_missing(server: LabelServer, tmp_path: Path) -> None:
    for name in "ab":
        shard(tmp_path / f"raw/{name}.tar", *[(f"{name}{i}", {}, noise(0.5 + i / 10)) for i in range(12)])
    options = by(server, tmp_path)
    server.says = lambda ms, prompt: (200, f"{ms} ms", "stop")
    label(options)
    assert len(server.asked) == 24
    assert not (tmp_path / "out/.answers").exists()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    server.asked.clear()
    label(replace(options, date="2026-02-03", requests=4))
    assert not server.asked
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    # Another shard in the place of one, and another prompt for all.
    shard(tmp_path / "raw/b.tar", ("new", {}, noise(0.7)))
    label(options)
    assert server.asked == [(700, "Transcribe the speech:")]
    label(replace(options, prompt="Words, please:"))
    assert {prompt for _, prompt in server.asked[1:]} == {"Words, please:"}
    assert len(server.asked) == 14


def test_answers_before_a_fault_are_kept(server: LabelServer, tmp_path: Path) -> None:
    shard(tmp_path / "raw/a.tar", *[(f"a{i:02d}", {}, noise(0.5 + i / 50)) for i in range(12)])
    # In the last batch of four.
    server.says = lambda ms, prompt: (503, "busy", "stop") if ms == 720 else (200, f"{ms} ms", "stop")
    options = by(server, tmp_path, requests=1)
    with pytest.raises(ValueError, match="continues from here"):
        label(options)
    server.says = lambda ms, prompt: (200, f"{ms} ms", "stop")
    server.asked.clear()
    # What was paid for counts at any number of requests.
    label(replace(options, requests=3))
    assert len(server.asked) == 4
    assert len(records(tmp_path / "out/a.tar")) == 12


def test_a_command_leaves_the_answers_of_another(server: LabelServer, tmp_path: Path) -> None:
    for name in "ab":
        shard(tmp_path / f"raw/{name}.tar", *[(f"{name}{i}", {}, noise(0.5 + i / 50)) for i in range(8)])
    server.says = lambda ms, prompt: (503, "busy", "stop") if ms == 640 else (200, f"{ms} ms", "stop")
    one, other = (by(server, tmp_path, shards=str(tmp_path / f"raw/{name}.tar"), requests=1) for name in "ab")
    with pytest.raises(ValueError, match="continues from here"):
        label(one)
    server.says = lambda ms, prompt: (200, f"{ms} ms", "stop")
    label(other)
    server.asked.clear()
    label(one)
    assert len(server.asked) == 4
    assert not (tmp_path / "out/.answers").exists()


def test_errors_over_all_shards_meet_the_budget(
    server: LabelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abc":
        shard(tmp_path / f"raw/{name}.tar", ("bad", {}, noise(0.5)), *[(f"k{i}", {}, noise(1)) for i in range(9)])
    server.says = lambda ms, prompt: (422 if ms == 500 else 200, "words", "stop")
    with pytest.raises(ValueError, match=r"2 of 30 recordings cannot be used, error_budget=0\.05 allows 1"):
        label(by(server, tmp_path, error_budget=0.05))
    label(by(server, tmp_path, error_budget=0.1))
    server.says = lambda ms, prompt: (200, "words", "stop")
    label(by(server, tmp_path, error_budget=0.1))
    assert len(records(tmp_path / "out/a.tar")) == 9
    # What a second try would cost is known before.
    again = by(server, tmp_path, error_budget=0.1, retry_bad=True, price_per_hour=1e6)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    label(replace(again, dry_run=True))
    assert "3 of 3 shards to make" in capsys.readouterr().out
    with pytest.raises(ValueError, match="more than max_cost=1"):
        label(replace(again, max_cost=1.0))
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    label(again)
    assert len(records(tmp_path / "out/a.tar")) == 10
    capsys.readouterr()
    label(replace(again, dry_run=True))
    assert "0 of 3 shards to make" in capsys.readouterr().out


def test_labels_of_one_task_are_not_replaced_by_those_of_another(server: LabelServer, tmp_path: Path) -> None:
    shard(tmp_path / "raw/a.tar", ("k", {"language": "en"}, noise(0.5)))
    label(by(server, tmp_path))
    with pytest.raises(ValueError, match="has labels of task=asr, which task=sound_caption would replace"):
        label(by(server, tmp_path, task="sound_caption"))
    assert "text" in records(tmp_path / "out/a.tar")["k"]
    # As the message says.
    label(by(server, tmp_path, task="sound_caption", shards=str(tmp_path / "out"), out=str(tmp_path / "both")))
    assert {"text", "caption"} <= records(tmp_path / "both/a.tar")["k"].keys()


def test_a_shard_of_refused_clips_meets_the_budget_as_others_do(server: LabelServer, tmp_path: Path) -> None:
    shard(tmp_path / "raw/a.tar", *[(f"bad{i}", {}, noise(0.5)) for i in range(8)])
    shard(tmp_path / "raw/b.tar", *[(f"k{i}", {}, noise(1)) for i in range(8)])
    server.says = lambda ms, prompt: (422 if ms == 500 else 200, "words", "stop")
    label(by(server, tmp_path, error_budget=0.5))
    assert {*left_out(tmp_path / "out/a.tar").values()} == {"no answer"}
    assert len(records(tmp_path / "out/b.tar")) == 8


def test_requests_at_a_time(server: LabelServer, tmp_path: Path) -> None:
    shard(tmp_path / "raw/a.tar", *[(f"k{i}", {}, noise(0.5)) for i in range(12)])

    together = threading.Barrier(3)

    def waits(milliseconds: int, prompt: str) -> tuple[int, str, str]:
        together.wait(60)
        return 200, "words", "stop"

    server.says = waits
    label(by(server, tmp_path, requests=3))
    assert server.most == 3


def test_long_clips_are_transcribed_in_windows(server: LabelServer, tmp_path: Path) -> None:
    wave = np.concatenate([noise(25), np.zeros(RATE // 2, np.float32), noise(28), noise(9) * 1e-6, noise(20)])
    shard(tmp_path / "raw/a.tar", ("long", {"language": "en"}, wave))
    label(by(server, tmp_path))
    lengths = [ms for ms, _ in server.asked]
    assert len(lengths) >= 3
    assert max(lengths) <= 30_000
    # The first window ends in the silence that is there.
    (first,) = [ms for ms in lengths if 25_000 <= ms <= 25_500]
    text = records(tmp_path / "out/a.tar")["long"]["text"]
    assert text.startswith(f"it lasts {first} milliseconds it lasts ")
    assert text.count("it lasts") == len(lengths)
    # Of other tasks one answer is about the whole clip.
    server.asked.clear()
    label(by(server, tmp_path, task="sound_caption", out=str(tmp_path / "captions")))
    assert [ms for ms, _ in server.asked] == [round(len(wave) / 16)]
    assert records(tmp_path / "captions/a.tar")["long"]["caption"].startswith("it lasts 82500")


def test_windows_hold_the_whole_clip_and_silent_ones_are_not_asked(server: LabelServer, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    for _ in range(200):
        wave = np.zeros(int(draw.integers(1, 6 * RATE)), np.float32) + draw.random()
        longest = float(draw.uniform(1.0, 3.0))
        found = windows(wave, longest)
        assert found[0][0] == 0
        assert found[-1][1] == len(wave)
        assert all(one[1] == other[0] for one, other in pairwise(found))
        assert all(0 < stop - start <= longest * RATE for start, stop in found)
        assert len(found) == 1 or min(stop - start for start, stop in found) >= 0.2 * longest * RATE
    wave = np.concatenate([noise(20), np.zeros(40 * RATE, np.float32)])
    shard(tmp_path / "raw/a.tar", ("half", {}, wave))
    label(by(server, tmp_path))
    assert sum(ms for ms, _ in server.asked) < 31_000


def test_a_word_in_a_quiet_window_of_a_long_clip_is_heard(server: LabelServer, tmp_path: Path) -> None:
    quiet = np.zeros(28 * RATE, np.float32)
    wave = np.concatenate([quiet, noise(0.5), quiet])
    shard(tmp_path / "raw/a.tar", ("word", {}, wave), ("mute", {}, np.zeros(70 * RATE, np.float32)))
    server.says = lambda ms, prompt: (200, "hello", "stop")
    label(by(server, tmp_path))
    assert records(tmp_path / "out/a.tar")["word"]["text"] == " ".join(["hello"] * len(server.asked))
    assert left_out(tmp_path / "out/a.tar") == {"mute": "silence"}


def test_a_window_without_an_answer_leaves_the_clip_out(server: LabelServer, tmp_path: Path) -> None:
    shard(tmp_path / "raw/a.tar", ("long", {}, noise(50)), ("short", {}, noise(1)))
    answers = iter(["some words", "", "more"])
    server.says = lambda ms, prompt: (200, "words" if ms == 1000 else next(answers), "stop")
    label(by(server, tmp_path, requests=1))
    assert left_out(tmp_path / "out/a.tar") == {"long": "empty answer"}
    (entry,) = dropped_of(tmp_path / "out/a.tar")
    assert entry["detail"] == "part 2 of 2"


@pytest.mark.parametrize(("first", "left"), [("some words", {}), ("", {"long": "empty answer"})])
def test_a_nearly_silent_window_may_have_no_answer(
    first: str, left: dict[str, str], server: LabelServer, tmp_path: Path
) -> None:
    wave = np.concatenate([noise(25), np.zeros(25 * RATE, np.float32), noise(0.1)])
    shard(tmp_path / "raw/a.tar", ("long", {}, wave), ("short", {}, noise(1)))
    answers = iter([first, ""])
    server.says = lambda ms, prompt: (200, "words" if ms == 1000 else next(answers), "stop")
    label(by(server, tmp_path, requests=1))
    assert left_out(tmp_path / "out/a.tar") == left
    assert left or records(tmp_path / "out/a.tar")["long"]["text"] == "some words"


@pytest.mark.parametrize("task", ["asr", "lid"])
def test_a_second_model_must_agree(task: str, server: LabelServer, tmp_path: Path) -> None:
    other = LabelServer()
    shard(tmp_path / "raw/a.tar", *[(f"k{i}", {}, noise(0.5 + i / 10)) for i in range(3)])
    said = {
        "asr": (
            ["one two three four five"] * 3,
            ["One, two three four five!", "one two three four six", "other"],
        ),
        "lid": (["German"] * 3, ["It is German.", "german", "Dutch"]),
    }[task]
    server.says = lambda ms, prompt: (200, said[0][ms // 100 - 5], "stop")
    other.says = lambda ms, prompt: (200, said[1][ms // 100 - 5], "stop")
    label(by(server, tmp_path, task=task, second=Labeller(url=other.url, model="other")))
    made = records(tmp_path / "out/a.tar")
    assert [*made] == ["k0", "k1"]
    told = [made[key]["labelled"][task]["second"] for key in made]
    assert told == [{"model": "other", "difference": d} for d in ((0.0, 0.2) if task == "asr" else (0.0, 0.0))]
    assert left_out(tmp_path / "out/a.tar") == {"k2": "the models differ"}
    other.shutdown()
    other.server_close()


def test_a_link_has_the_labels_and_the_audio_of_the_old_shard(server: LabelServer, tmp_path: Path) -> None:
    raw = shard(tmp_path / "raw/a.tar", *[(f"k{i}", {}, noise(0.5 + i / 10)) for i in range(3)])
    before = Path(raw).read_bytes()
    label(by(server, tmp_path, audio="in_place"))
    out = tmp_path / "out/a.tar"
    assert out.is_symlink()
    assert Path(raw).read_bytes() == before
    assert records(raw)["k0"] == {}
    assert records(out)["k2"]["text"] == "it lasts 700 milliseconds"
    assert audio(out) == audio(raw)
    server.asked.clear()
    label(by(server, tmp_path, audio="in_place"))
    assert not server.asked


def test_shards_of_an_object_store_get_the_same_labels(server: LabelServer, tmp_path: Path) -> None:
    shard(
        tmp_path / "raw/a.tar", *[(f"k{i}", {}, noise(0.5 + i / 10)) for i in range(4)], ("quiet", {}, noise(1) * 1e-5)
    )
    label(by(server, tmp_path))
    with s3_server(tmp_path / "s3") as store:
        options = {"key": "key", "secret": "secret", "endpoint_url": store.url}
        fs: Any = fsspec.filesystem("s3", **options)
        fs.mkdir("bucket")
        for path in (tmp_path / "raw").iterdir():
            fs.put_file(str(path), f"bucket/raw/{path.name}")
        storage = StorageConfig(retries=3, first_wait_s=0.01, timeout_s=10, options={"s3": options})
        there = by(server, tmp_path, shards="s3://bucket/raw/*.tar", out="s3://bucket/out", storage=storage)
        label(there)
        found = {Path(name).name: fs.cat_file(name) for name in fs.ls("bucket/out", detail=False)}
        assert found == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
        server.asked.clear()
        label(there)
        assert not server.asked
        # Labels of labels take another folder.
        same = {"shards": "s3://bucket/out/*.tar", "storage": storage, "task": "lid"}
        for out in ("s3://bucket/out", "s3://bucket/out/", "s3://bucket/raw/../out"):
            with pytest.raises(ValueError, match="holds the shards themselves"):
                label(by(server, tmp_path, out=out, **same))
        assert fs.cat_file("bucket/out/a.tar") == found["a.tar"]


def test_a_dry_run_shows_the_price_and_asks_nothing(
    server: LabelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(tmp_path / "raw/a.tar", *[(f"k{i}", {"language": "fr"}, noise(36)) for i in range(3)])
    label(by(server, tmp_path, dry_run=True, price_per_hour=10.0))
    assert capsys.readouterr().out.splitlines() == [
        "labels by ear: 1 of 1 shards to make, at most 3 records, 2 min of audio, 0.30 at the given price",
        "first prompt: 'Recognize the French speech:'",
    ]
    assert not server.asked
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"0\.30 at the given price: more than max_cost=0\.2"):
        label(by(server, tmp_path, price_per_hour=10.0, max_cost=0.2))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": ""}, "give checkpoint=, or url= with model=, one of the two"),
        ({"checkpoint": "x"}, "one of the two"),
        ({"second": Labeller(model="m")}, "second.model= needs second.url="),
        ({"second": Labeller(url="http://x/v1")}, "give second.checkpoint=, or second.url="),
        ({"second": Labeller(url="http://x/v1", model="m"), "task": "sound_caption"}, "second= compares transcripts"),
        ({"task": "diarized_asr"}, "task=diarized_asr cannot be labelled"),
        ({"task": "asrr"}, "task 'asrr' is unknown: did you mean asr"),
        ({"prompt": "in {Language}"}, "is not a record field"),
        ({"template": "chatml"}, "use base or chat, or leave it out"),
        ({"max_cost": 1.0}, "bounds nothing without price_per_hour="),
        ({"window_s": 0.0}, "must be at least 1"),
        ({"error_budget": 2.0}, "between 0 and 1"),
        ({"out": "raw"}, "holds the shards themselves"),
        ({"out": "s3://bucket/x", "audio": "in_place"}, "audio=in_place links local shards, s3://bucket/x is none"),
    ],
)
def test_wrong_options_are_refused(more: dict[str, Any], message: str, server: LabelServer, tmp_path: Path) -> None:
    raw = shard(tmp_path / "raw/a.tar", ("k", {}, noise(0.5)))
    before = Path(raw).read_bytes()
    more = more | ({"out": str(tmp_path / "raw")} if more.get("out") == "raw" else {})
    with pytest.raises(ValueError, match=re.escape(message)):
        label(by(server, tmp_path, **more))
    assert Path(raw).read_bytes() == before


def test_shards_of_others_are_not_replaced(server: LabelServer, tmp_path: Path) -> None:
    shard(tmp_path / "raw/a.tar", ("k", {}, noise(0.5)))
    other = shard(tmp_path / "out/a.tar", ("mine", {}, noise(0.5)))
    with pytest.raises(ValueError, match=r"a\.tar was not made by this command: choose another out="):
        label(by(server, tmp_path))
    assert [*records(other)] == ["mine"]
    shard(tmp_path / "raw/b/a.tar", ("k", {}, noise(0.5)))
    with pytest.raises(ValueError, match=r"a\.tar is there in several folders"):
        label(by(server, tmp_path, out=str(tmp_path / "new")))


def test_a_shard_is_not_replaced_by_its_own_labels(server: LabelServer, tmp_path: Path) -> None:
    shard(tmp_path / "raw/a.tar", ("k", {}, noise(0.5)))
    label(by(server, tmp_path))
    out = tmp_path / "out"
    (tmp_path / "links").mkdir()
    for suffix in ("", ".index.parquet"):
        (tmp_path / f"links/a.tar{suffix}").symlink_to(out / f"a.tar{suffix}")
    (tmp_path / "folder").symlink_to(out)
    before = (out / "a.tar").read_bytes()
    for shards in ("out/*.tar", "links/a.tar", "folder", "links/../out/a.tar"):
        with pytest.raises(ValueError, match="holds the shards themselves"):
            label(by(server, tmp_path, shards=str(tmp_path / shards), task="lid"))
    with pytest.raises(ValueError, match="holds the shards themselves"):
        label(by(server, tmp_path, shards=[str(tmp_path / "raw"), str(out / "a.tar")], task="lid"))
    assert (out / "a.tar").read_bytes() == before


def test_labels_below_the_shards_are_none_of_them(server: LabelServer, tmp_path: Path) -> None:
    for name in "ab":
        shard(tmp_path / f"raw/{name}.tar", (name, {}, noise(0.5)))
    options = by(server, tmp_path, out=str(tmp_path / "raw/labelled"))
    label(options)
    label(options)
    assert len(server.asked) == 2
    (tmp_path / "raw/b.tar").unlink()
    with pytest.raises(ValueError, match="holds the shards themselves"):
        label(options)


def talkative(folder: Path) -> Path:
    """A random checkpoint of few words, two of which end an answer; what it says depends on the clip."""
    model, processor = build_model(SMALL, seed=2)
    ends = [processor.tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS]
    few = [*range(60, 76), *ends]
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and weight is not head and "embed_positions" not in name:
                weight.mul_(20.0)
        head.zero_()
        head[few] = torch.randn(len(few), head.shape[1], generator=torch.Generator().manual_seed(2))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", ["chat", "base"])
def test_a_checkpoint_says_what_it_says_in_evaluation(template: str, tmp_path: Path) -> None:
    checkpoint = talkative(tmp_path / "model")
    clips = [(f"k{i}", noise(0.4 + i * 0.13, i)) for i in range(24)]
    raw = shard(tmp_path / "raw/a.tar", *[(key, {}, wave) for key, wave in clips])
    lines = []
    for key, _ in clips:
        sound = tmp_path / f"{key}.flac"
        sound.write_bytes(audio(raw)[key])
        chat = {"messages": [{"role": "user", "content": "<audio>What is said?"}], "audios": [sound.name]}
        base = {"audio": sound.name, "prompt": "What is said?", "gt": "-"}
        lines.append(json.dumps({"id": key, **(chat if template == "chat" else base)}) + "\n")
    (tmp_path / "questions.jsonl").write_text("".join(lines))
    asked = EvalConfig(
        checkpoint=str(checkpoint), data=str(tmp_path / "questions.jsonl"), out=str(tmp_path / "eval"),
        max_new_tokens=24, batch_size=8, probe=0, device="cpu",
    )  # fmt: skip
    predict_benchmarks(asked, tmp_path / "eval")
    said = [json.loads(line) for line in (tmp_path / "eval/predictions.jsonl").read_text().splitlines()]
    wanted = {row["id"]: row["prediction"] for row in said if row["prediction"] and not row["truncated"]}
    assert len({*wanted.values()}) > 8

    options = LabelConfig(
        shards=raw, out=str(tmp_path / "out"), checkpoint=str(checkpoint), template=template, prompt="What is said?",
        max_new_tokens=24, batch_size=8, max_repeats=None, max_compression=None, workers=1, device="cpu",
    )  # fmt: skip
    label(options)
    made = records(tmp_path / "out/a.tar")
    assert {key: record["text"] for key, record in made.items()} == wanted
    assert {*left_out(tmp_path / "out/a.tar").values()} <= {"answer cut short", "empty answer"}
    assert len(next(iter(made.values()))["labelled"]["asr"]["weights"]) == 64


@pytest.mark.parametrize("second", [False, True])
def test_other_weights_in_the_same_place_label_again(
    second: bool, server: LabelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard(tmp_path / "raw/a.tar", ("k", {}, noise(0.5)))
    talkative(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "copy")

    def options(folder: str, **more: Any) -> LabelConfig:
        by_checkpoint = (
            {"second": Labeller(checkpoint=folder)} if second else {"url": None, "model": "", "checkpoint": folder}
        )
        return by(server, tmp_path, device="cpu", max_difference=1.0, max_repeats=None, **by_checkpoint, **more)

    def to_make(folder: str) -> str:
        capsys.readouterr()
        label(options(str(tmp_path / folder), dry_run=True))
        return capsys.readouterr().out.partition(": ")[2].partition(" shards")[0]

    # Whether the model says something does not matter here.
    with suppress(ValueError):
        label(options(str(tmp_path / "model")))
    assert to_make("model") == to_make("copy") == "0 of 1"
    os.utime(tmp_path / "copy/model.safetensors", ns=(1, 1))
    assert to_make("copy") == "1 of 1"
    for folder in ("model", "copy"):
        (tmp_path / folder / "manifest.json").write_text('{"files": {}, "checksums": {"model.safetensors": "00"}}')
    assert to_make("model") == to_make("copy") == "1 of 1"


def test_our_own_server_labels_as_the_checkpoint_does(tmp_path: Path) -> None:
    checkpoint = talkative(tmp_path / "model")
    raw = shard(tmp_path / "raw/a.tar", *[(f"k{i}", {}, noise(0.4 + i * 0.13, i)) for i in range(12)])
    options = LabelConfig(
        shards=raw, workers=0, max_new_tokens=24, max_repeats=None, max_compression=None, device="cpu"
    )
    label(replace(options, out=str(tmp_path / "by_checkpoint"), checkpoint=str(checkpoint)))
    generator, _ = load_answerer(str(checkpoint), "cpu", verify=True, allow_missing=())
    with running(Service({"ours": generator}, {"ours": "chat"}, ServeConfig(checkpoint=str(checkpoint)))) as port:
        label(replace(options, out=str(tmp_path / "by_url"), url=f"http://127.0.0.1:{port}/v1", model="ours"))
    found = [{key: each["text"] for key, each in records(tmp_path / f"by_{way}/a.tar").items()}
             for way in ("checkpoint", "url")]  # fmt: skip
    assert found[0] == found[1]
    assert len({*found[0].values()}) > 5


def test_from_labels_to_a_step_of_training(server: LabelServer, tmp_path: Path) -> None:
    shard(tmp_path / "raw/a.tar", *[(f"k{i}", {}, noise(0.5 + i / 10)) for i in range(16)])
    label(by(server, tmp_path, fields={"language": "en"}))
    run("data", "index", f"{tmp_path}/out/a.tar")
    done = run(
        "pretrain", "experiment=smoke", "data=empty", "trainer.max_steps=1", f"run.dir={tmp_path}/run",
        f"+data.sources.labels={{shards:['{tmp_path}/out/a.tar'],task:asr}}",
    )  # fmt: skip
    assert "labels" in done.stdout + done.stderr
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("task", "answer", "fields"),
    [
        ("asr", " a b ", {"text": "a b"}),
        ("asr_lid", "<|de|>ja so", {"language": "de", "text": "ja so"}),
        ("asr_lid", "ja so", None),
        ("asr_lid", "<|xx|>ja so", None),
        ("lid", "Mandarin", {"language": "zh"}),
        ("lid", "The language is french.", {"language": "fr"}),
        ("lid", "French or German", None),
        ("lid", "Klingon", None),
        ("translate", "good day", {"translation": {"de": "tag", "en": "good day"}}),
        ("transcribe_translate", "oui\nyes", {"text": "oui", "translation": {"de": "tag", "en": "yes"}}),
        ("transcribe_translate", "one line", None),
        ("sound_events", "dog, rain", {"labels": ["dog", "rain"]}),
        ("asr", "a <audio> b", None),
    ],
)
def test_a_target_read_backwards(task: str, answer: str, fields: dict[str, Any] | None) -> None:
    form = AnswerForm(PromptBank.load().task(task))
    record = {"translation": {"de": "tag"}}
    if fields is None:
        with pytest.raises(LeftOut):
            form.filled(record, answer.strip())
        return
    assert form.filled(record, answer.strip()) == record | fields
    assert form.missing(record)
    assert not form.missing(record | fields)


def test_every_task_of_single_fields_reads_its_own_target() -> None:
    bank, read = PromptBank.load(), 0
    record = {
        "text": "some words", "language": "fr", "translation": {"en": "words"}, "label": "dog", "caption": "a bark",
        "emotion": "happy", "gender": "female", "labels": ["dog", "rain"], "scene": "park", "genre": "rock",
    }  # fmt: skip
    for name, task in bank.tasks.items():
        try:
            form = AnswerForm(task)
        except ValueError:
            continue
        if not {*form.fields} - {"language_name"} <= record.keys() or not bank.qualifies(record, name):
            continue
        sample = bank.sample(record, name, "chat", "", 0, 0)
        answer = "".join(part.text for part in sample.messages[-1].content)  # type: ignore[union-attr]
        assert form.filled({}, answer).items() <= record.items()
        read += 1
    assert read > 10


def plain_repeats(units: list[str]) -> int:
    """The twin: every phrase at every place, counted forwards."""
    most = min(1, len(units))
    for size in range(1, 9):
        for start in range(len(units)):
            phrase, times = units[start : start + size], 1
            while len(phrase) == size and units[start + times * size : start + (times + 1) * size] == phrase:
                times += 1
            most = max(most, times)
    return most


def test_repeats() -> None:
    assert repeats("thank you thank you thank you bye".split()) == 3
    assert repeats("no no no".split()) == 3
    assert repeats("every word is another".split()) == 1
    assert repeats([]) == 0
    draw = np.random.default_rng(0)
    for _ in range(300):
        units = [str(n) for n in draw.integers(0, 3, draw.integers(0, 40))]
        assert repeats(units) == plain_repeats(units)


def test_compression_and_difference() -> None:
    assert compression_ratio("the cat sat on the mat while it rained outside all day long") < 1.5
    assert compression_ratio("and so on " * 40) > 10
    assert word_difference("a dog and cats", "A dog, and", "en") == 0.25
    assert word_difference("a dog and", "a dog and cats", "en") == 0.25
    assert word_difference("", "", "en") == 0.0
    assert word_difference("", "a b", "en") == 1.0
    assert word_difference("你好吗", "你好呀", "zh") == pytest.approx(1 / 3)
