"""Pairs by rule: every family says the truth in its chosen answer, and the build comes out the same again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.build_preferences import FAMILIES, PreferencesConfig, build_preferences
from data_pipelines.synthetic.preferences import NO_SPEECH
from qa_train.command_line.command_table import run
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter

RECORDS: dict[str, dict[str, Any]] = {
    "speech-1": {"text": "the red fox ran over the hill", "language": "en"},
    "speech-2": {"text": "a green bird sang in the old tree", "language": "en"},
    "speech-3": {"text": "le chat dort sur la chaise", "language": "fr"},
    "speech-4": {"text": "le chien court dans la rue", "language": "fr"},
    "short": {"text": "yes", "language": "en"},
    "dog": {"label": "dog bark"},
    "rain": {"label": "rain"},
    "choir": {"label": "singing voice"},
    "twofold": {"events": [{"label": "siren", "start": 3.0, "end": 4.0}, {"label": "glass", "start": 0.5, "end": 1.0}]},
    "overlap": {"events": [{"label": "siren", "start": 0.0, "end": 4.0}, {"label": "glass", "start": 0.5, "end": 1.0}]},
    "question": {
        "text": "what is the capital of france", "language": "en",
        "messages": [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": "It is Paris."}],
    },
}  # fmt: skip


def test_sounds_in_a_shard_of_their_own_get_invented_speech(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    for name, key in (("a-speech.tar", "speech-1"), ("b-sounds.tar", "dog")):
        with ShardWriter(tmp_path / name) as writer:
            writer.write(key, RECORDS[key], wave)
    options = PreferencesConfig(shards=f"{tmp_path}/*.tar", out=str(tmp_path / "out"), workers=0)
    options.families = ["invented speech"]
    build_preferences(options)
    (record,) = made(tmp_path / "out")
    assert (record["chosen"], record["rejected"]) == (NO_SPEECH, RECORDS["speech-1"]["text"])


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    with ShardWriter(tmp_path / "in.tar") as writer:
        for key, record in RECORDS.items():
            writer.write(key, {**record, "split": "train"}, wave)
    return tmp_path / "in.tar"


def made(folder: Path) -> list[dict[str, Any]]:
    rows = load_index(str(folder / "preferences-00000.tar")).table.to_pylist()
    return [json.loads(row["meta"]) for row in rows]


def test_every_family_prefers_the_truth(shard: Path, tmp_path: Path) -> None:
    report = build_preferences(PreferencesConfig(shards=str(shard), out=str(tmp_path / "out"), per_clip=99, workers=0))
    found = made(tmp_path / "out")
    assert {record["family"] for record in found} == set(FAMILIES)
    assert report.dropped == {"no family that the record can give": 1}, "one word is no transcript to spoil"
    for record in found:
        source, family = RECORDS[record["made_from"]["key"]], record["family"]
        chosen, rejected = record["chosen"], record["rejected"]
        assert chosen != rejected
        if family in ("wrong clip", "words left out", "words added", "speech denied", "answered, not transcribed"):
            assert chosen == source["text"]
        if family == "words left out":
            assert len(rejected.split()) < len(chosen.split())
        if family == "wrong clip":
            assert rejected in {other.get("text") for other in RECORDS.values()}
            assert RECORDS[record["made_from"]["key"]]["language"] == record["language"]
        if family == "invented speech":
            assert record["made_from"]["key"] in ("dog", "rain", "twofold", "overlap"), "somebody may sing words"
            assert chosen == NO_SPEECH
        if family in ("present event", "absent event"):
            heard = {source.get("label"), *(event["label"] for event in source.get("events", []))}
            label = chosen.removeprefix("Yes, I hear ").removeprefix("No, I do not hear ").removesuffix(".")
            assert (label in heard) == chosen.startswith("Yes") == (family == "present event")
            assert rejected.startswith("No" if chosen.startswith("Yes") else "Yes")
        if family == "swapped order":
            assert (record["made_from"]["key"], chosen) == ("twofold", "First glass, then siren.")
        if family == "transcribed, not answered":
            assert record["messages"] == [{"role": "user", "content": "<audio>"}]
            assert (chosen, rejected) == ("It is Paris.", source["text"])
    lesson = json.loads((tmp_path / "out/preferences.lesson.json").read_text())
    assert sum(family["pairs"] for family in lesson.values()) == len(found) == report.made
    assert lesson["words left out"]["chosen_longer"] == lesson["words left out"]["pairs"]
    assert lesson["speech denied"]["examples"][0]["rejected"] == NO_SPEECH


def test_the_same_again_and_only_what_is_missing(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"shards={shard}", "per_clip=1", "workers=0", "where.split=train"]
    assert run("data preferences", [*words, f"out={tmp_path / 'one'}"]) == 0
    assert "no family that the record can give" in capsys.readouterr().out
    assert run("data preferences", [*words, f"out={tmp_path / 'two'}"]) == 0
    one, two = (tmp_path / name / "preferences-00000.tar" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    keys = [record["made_from"]["key"] for record in made(tmp_path / "one")]
    assert len(keys) == len(set(keys)) == len(RECORDS) - 1
    before = one.stat().st_mtime_ns
    assert run("data preferences", [*words, f"out={tmp_path / 'one'}"]) == 0
    assert one.stat().st_mtime_ns == before, "a shard that is there is not made again"


def test_options_are_checked(shard: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no family"):
        build_preferences(PreferencesConfig(shards=str(shard), out=str(tmp_path), families=["lies"]))
    with pytest.raises(ValueError, match="per_clip"):
        build_preferences(PreferencesConfig(shards=str(shard), out=str(tmp_path), per_clip=0))
