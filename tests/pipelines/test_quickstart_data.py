"""The quickstart's data at a small size, and the preference pairs made by rule."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.synthetic.synth import HELD_OUT_ACCENTS
from qa_train.data.shards.index import load_index
from scripts.quickstart_data import build as quickstart
from scripts.quickstart_data import preferences, recombine, voice_chat
from scripts.quickstart_data.clip import Clip, read_shard, write_shard
from scripts.quickstart_data.spoken_text import TextIndex

STARTER = Path(__file__).parents[2] / "data/starter"


def clips_of(name: str, limit: int) -> list[Clip]:
    english = read_shard(STARTER / f"{name}.tar", lambda record: record.get("language", "en") == "en")
    return list(itertools.islice((clip for clip in english if clip.duration_s < 3), limit))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small copy of the starter data, and the quickstart's data made from it."""
    starter, out = tmp_path_factory.mktemp("starter"), tmp_path_factory.mktemp("out")
    shutil.copytree(STARTER / "texts", starter / "texts")
    for name in ("speech-train", "speech-test", "sound-train", "sound-test"):
        write_shard(starter / f"{name}.tar", clips_of(name, 12))
    quickstart.build(starter, out, quickstart.Sizes(30, 10, 18, 10), num_workers=2)
    return starter, out


def test_all_shards_are_made_with_the_right_voices(small: tuple[Path, Path]) -> None:
    _, out = small
    held_out = tuple(f"espeak-{accent}+" for accent in HELD_OUT_ACCENTS)
    assert len(list(read_shard(out / "asr-train-00000.tar"))) == 30
    for name, split in (("asr-train-00000", "train"), ("chat-train-00000", "train"), ("chat-test", "test")):
        for clip in read_shard(out / f"{name}.tar"):
            assert clip.record["split"] == split
            assert clip.record["speaker"].startswith(held_out) == (split == "test"), clip.key
    for clip in read_shard(out / "chat-train-00000.tar"):
        assert [turn["role"] for turn in clip.record["messages"]] == ["user", "assistant"]


def test_new_texts_of_old_words_are_new_and_never_held_out(small: tuple[Path, Path]) -> None:
    starter, out = small
    real = {clip.record["text"] for clip in read_shard(starter / "speech-train.tar")}
    words = {word for text in real for word in text.split()}
    held_out = TextIndex((starter / "texts/held-out.txt").read_text(encoding="utf-8").splitlines())
    walked = [clip.record["text"] for clip in read_shard(out / "domain-train-00000.tar")]
    joined = list(read_shard(out / "joined-train.tar"))
    assert len(set(walked) - real) == 10
    assert len(joined) == 5
    for text in [*walked, *(clip.record["text"] for clip in joined)]:
        assert set(text.split()) <= words
        assert not held_out.conflicts(text)
    assert all(clip.duration_s < 7 and "translation" not in clip.record for clip in joined)


def test_walking_and_joining_keep_off_held_out_texts() -> None:
    texts = ["the call is over now", "the line is busy now"]
    assert "the call is busy now" in recombine.walk(texts, 6, seed=0, forbidden=TextIndex())
    found = recombine.walk(texts, 4, seed=0, forbidden=TextIndex(["call is busy"]))
    assert len(found) == 4
    assert not any("call is busy" in text for text in found)
    with pytest.raises(ValueError, match="of 999 new sentences"):
        recombine.walk(texts, 999, seed=0, forbidden=TextIndex())
    clips = [speech("a", "press one"), speech("b", "to hang up")]
    joined = [
        clip.record["text"] for clip in recombine.join(clips, 30, seed=0, forbidden=TextIndex(["press one to hang up"]))
    ]
    assert "to hang up press one" in joined
    assert not any("press one to hang up" in text for text in joined)


def test_facts_are_text_only_and_never_held_out(small: tuple[Path, Path]) -> None:
    _, out = small
    records = [json.loads(meta) for meta in load_index(str(out / "facts-train.tar")).table["meta"].to_pylist()]
    held_out = {question.spoken for question in voice_chat.split(voice_chat.NUM_HELD_OUT_QUESTIONS)[1]}
    assert len(records) > 1000
    assert all(record["audios"] == [] for record in records)
    assert not held_out & {record["messages"][0]["content"] for record in records}
    assert not {record["family"] for record in records} & set(voice_chat.COMMANDS)


def test_denials_are_chats_about_sounds_without_voices() -> None:
    clips = [
        Clip(name, np.zeros(1600, np.float32), {"label": name, "split": "train"}) for name in ("drum", "singing voice")
    ]
    (made,) = preferences.denials([*clips, speech("s", "there are words here")], seed=0)
    assert made.record["messages"][-1] == {"role": "assistant", "content": preferences.NO_SPEECH}
    assert (made.record["task"], made.record["label"]) == ("chat", "drum")
    assert "rejected" not in made.record


def test_wrong_answers_are_wrong(small: tuple[Path, Path]) -> None:
    _, out = small
    replies = {question.reply for question in voice_chat.all_questions()}
    pairs = [clip.record for clip in read_shard(out / "dpo-facts.tar")]
    assert pairs
    for record in pairs:
        assert record["chosen"] in replies
        assert record["chosen"] != record["rejected"]
        assert [turn["role"] for turn in record["messages"]] == ["user"]


def test_speed_copies_are_slower_and_faster(small: tuple[Path, Path]) -> None:
    starter, out = small
    lengths = {clip.key: len(clip.wave) for clip in read_shard(starter / "speech-train.tar")}
    copies = list(read_shard(out / "speed-train.tar"))
    assert len(copies) == 2 * len(lengths)
    for clip in copies:
        original = clip.key.rsplit("-speed-", 1)[0]
        assert len(clip.wave) == pytest.approx(lengths[original] / clip.record["speed"], abs=2)


def test_a_second_build_makes_nothing(small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    starter, out = small
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    quickstart.build(starter, out, quickstart.Sizes(30, 10, 18, 10), num_workers=2)
    assert " 0 clips made" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_too_many_sentences_say_how_many_there_are(small: tuple[Path, Path]) -> None:
    starter, out = small
    with pytest.raises(ValueError, match="has 12000"):
        quickstart.build(starter, out, quickstart.Sizes(20_000))


def speech(key: str, text: str) -> Clip:
    return Clip(key, np.zeros(1600, np.float32), {"text": text, "language": "en", "split": "train"})


def test_pairs_prefer_the_truth() -> None:
    texts = [f"word{i} comes before word{i + 1} and word{i + 2}" for i in range(40)]
    clips = [speech(f"s{i}", text) for i, text in enumerate(texts)]
    labels = ["drum", "animal", "human sound", "singing voice"]
    clips += [
        Clip(f"n{i}", np.zeros(1600, np.float32), {"label": label, "split": "train"}) for i, label in enumerate(labels)
    ]
    made = list(preferences.make_pairs(clips, seed=0))
    assert made[0].record == next(preferences.make_pairs(clips, seed=0)).record
    families = Counter(clip.record["family"] for clip in made)
    # Voices without words are no clean example of "no speech".
    assert families["invented speech"] == 4
    assert families["wrong sound"] == families["sound denied"] == 4
    speech_families = {"wrong clip", "words left out", "words added", "speech denied"}
    assert families["speech or not"] == 42
    assert set(families) == {"invented speech", "wrong sound", "sound denied", "speech or not", *speech_families}
    assert len({clip.key for clip in made}) == len(made) == 134
    for clip in made:
        record = clip.record
        assert record["chosen"] != record["rejected"]
        assert record["messages"][-1]["role"] == "user"
        truth, worse = record["chosen"].split(), record["rejected"].split()
        match record["family"]:
            case "invented speech":
                assert record["chosen"] == preferences.NO_SPEECH
                assert record["rejected"] in {*texts, record["label"]}
            case "wrong sound" | "sound denied" as family:
                worse_ones = labels if family == "wrong sound" else (preferences.NO_SPEECH, "No")
                assert (record["chosen"], record["rejected"] in worse_ones) == (record["label"], True)
                assert record["messages"][0]["content"].removeprefix("<audio>") in preferences.SOUND_QUESTIONS
            case "speech or not":
                assert record["chosen"] == ("Yes" if "text" in record else "No")
            case "wrong clip":
                assert record["rejected"] in set(texts) - {record["text"]}
            case "words left out":
                assert len(worse) < len(truth)
                assert all(word in truth for word in worse)
            case "words added":
                assert len(worse) > len(truth)
            case "speech denied":
                assert record["rejected"] == preferences.NO_SPEECH
        if record["family"] in speech_families:
            assert record["chosen"] == record["text"]
