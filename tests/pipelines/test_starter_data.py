"""The shipped starter data: nothing of the tests is in training, and everything reads."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from qa_train.data.shards.index import load_index
from scripts.quickstart_data import voice_chat
from scripts.quickstart_data.clip import read_shard
from scripts.quickstart_data.spoken_text import TextIndex, spoken

STARTER = Path(__file__).parents[2] / "data/starter"
SHARDS = sorted(path.stem for path in STARTER.glob("*.tar"))
# Its clips take five seconds to decode.
LARGEST = "speech-train"


def records(name: str) -> dict[str, dict[str, Any]]:
    table = load_index(str(STARTER / f"{name}.tar")).table
    return {row["key"]: json.loads(row["meta"]) for row in table.select(["key", "meta"]).to_pylist()}


def texts_by_language(*names: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for name in names:
        for record in records(name).values():
            if "text" in record:
                found[record["language"]].add(record["text"])
            for language, text in record.get("translation", {}).items():
                found[language].add(text)
    return found


def held_out() -> TextIndex:
    return TextIndex((STARTER / "texts/held-out.txt").read_text(encoding="utf-8").splitlines())


def test_speech_is_split_by_text_in_every_language() -> None:
    train, test = texts_by_language("speech-train"), texts_by_language("speech-test")
    assert set(test) == {"en", "es", "fr", "it", "ru"}
    for language, texts in test.items():
        index = TextIndex(train[language])
        assert {text: index.conflicts(text) for text in texts if index.conflicts(text)} == {}


def test_prompt_keys_are_on_one_side_in_all_languages() -> None:
    train = {record["prompt_key"] for record in records("speech-train").values()}
    test = {record["prompt_key"] for record in records("speech-test").values()}
    assert train.isdisjoint(test)


def test_held_out_sets_are_large_enough() -> None:
    speech = records("speech-test").values()
    assert sum(record["language"] == "en" and len(record["text"].split()) >= 3 for record in speech) >= 69
    counts = Counter(record["language"] for record in speech)
    assert all(counts[language] >= 40 for language in ("es", "fr", "it", "ru")), counts
    unseen = records("unseen-voice-test").values()
    assert Counter("messages" in record for record in unseen) == {True: 60, False: 60}


def test_held_out_list_is_complete_and_no_training_text_conflicts_with_it() -> None:
    index = held_out()
    for text in texts_by_language("speech-test", "unseen-voice-test")["en"]:
        assert text in index.conflicts(text)
    for text in (STARTER / "texts/synthetic-test.txt").read_text(encoding="utf-8").splitlines():
        assert text in index.conflicts(text)
    sentences = (STARTER / "texts/train.txt").read_text(encoding="utf-8").splitlines()
    assert len(sentences) == len(set(sentences)) == 12_000
    questions = [question.spoken for question in voice_chat.split(voice_chat.NUM_HELD_OUT_QUESTIONS)[0]]
    recorded = texts_by_language("speech-train", "preferences-train")["en"]
    conflicts = {text: index.conflicts(text) for text in [*sentences, *questions, *recorded]}
    assert {text: found for text, found in conflicts.items() if found} == {}
    assert all(spoken(text, "en") == text for text in sentences[::50])


def test_unseen_voice_speaks_the_held_out_questions() -> None:
    asked = {record["text"] for record in records("unseen-voice-test").values() if "messages" in record}
    held_out = voice_chat.split(voice_chat.NUM_HELD_OUT_QUESTIONS)[1][: voice_chat.NUM_UNSEEN_VOICE]
    assert asked == {question.spoken for question in held_out}


def test_sounds_of_one_recording_stay_together() -> None:
    def names(shard: str) -> set[tuple[str, str, str]]:
        # The first word of the name: "dog", "tabla ghe" -> ("sonic-pi", "tabla", "ghe"), "pig golden" -> pig.
        found = set()
        for record in records(shard).values():
            words = record["name"].split()
            length = 2 if record["source"] == "sonic-pi" else 1
            found.add((record["source"], record["label"], " ".join(words[:length])))
        return found

    assert names("sound-train").isdisjoint(names("sound-test"))
    train, test = (Counter(r["label"] for r in records(f"sound-{side}").values()) for side in ("train", "test"))
    assert set(train) == set(test)
    assert all(train[label] >= 2 * test[label] - 1 for label in test), (train, test)


@pytest.mark.parametrize("name", SHARDS)
def test_records_say_where_they_come_from(name: str) -> None:
    side = name.rsplit("-", 1)[1]
    licences = (STARTER / "LICENSES/README.md").read_text(encoding="utf-8")
    for key, record in records(name).items():
        assert record["split"] == side, key
        assert f"`{record['source']}`" in licences, key
        assert record["license"] in licences, key
        if name.startswith(("speech", "unseen")):
            assert spoken(record["text"], record["language"]) == record["text"], key


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == LARGEST)) for name in SHARDS])
def test_every_clip_decodes_to_its_indexed_length(name: str) -> None:
    rows = {row["key"]: row for row in load_index(str(STARTER / f"{name}.tar")).table.to_pylist()}
    clips = list(read_shard(STARTER / f"{name}.tar"))
    assert [clip.key for clip in clips] == list(rows)
    for clip in clips:
        assert len(clip.wave) == rows[clip.key]["num_samples"][0]
        assert abs(clip.wave).max() > 0.003, f"{clip.key} is silent"
        assert 0.1 < clip.duration_s <= 30.0


def test_all_together_is_small() -> None:
    total = sum(path.stat().st_size for path in STARTER.rglob("*") if path.is_file())
    assert total <= 30e6
