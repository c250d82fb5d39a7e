"""Evaluation from shards: selection, prompts, scores, samples for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fake_model import FakeModel, processor, tone

from qa_train.config import EvalSetConfig
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.prompts import PromptBank
from qa_train.data.tools.interchange import shards_to_jsonl
from qa_train.eval.eval_sets import evaluate_shards, record_questions
from qa_train.eval.questions import read_questions


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "test-00000.tar"
    with ShardWriter(path) as writer:
        for i in range(12):
            seconds = 0.5 + 0.1 * i
            record = {
                "text": f"tone {int(seconds * 25)}",
                "language": "en",
                "label": "silence" if i % 4 == 0 else f"tone {round(seconds * 100) // 4}",
                "split": "test" if i < 10 else "train",
                "answers": ["tone", "a tone"],
                "choices": ["tone", "silence"],
                "messages": [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": "It is a tone."}],
            }
            writer.write(f"clip{i:02d}", record, tone(round(seconds, 1)))
    return path


BANK = PromptBank.load()


def held_out(shard: Path, task: str, **more: Any) -> EvalSetConfig:
    return EvalSetConfig([str(shard)], task, where={"split": ["test"]}, **more)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel(processor().tokenizer)


def test_sets_are_scored_by_their_task(shard: Path, model: FakeModel, tmp_path: Path) -> None:
    sets = {
        "asr": held_out(shard, "asr", prompt="Recognize the speech: <|{language}|>"),
        "spoken": held_out(shard, "chat", template="chat", metric="contains"),
    }
    results = evaluate_shards(model, processor(), sets, keep_samples=3, clips_dir=tmp_path / "clips")
    assert list(results) == ["asr", "spoken"]
    asr, spoken = results["asr"], results["spoken"]
    assert (asr["metric"], asr["n"]) == ("wer", 10)
    # The transcript is the reference, not an answer to the record's question.
    assert {s["reference"] for s in samples_of(asr)} <= {f"tone {i}" for i in range(12, 48)}
    assert (spoken["metric"], spoken["value"], spoken["n"]) == ("contains", 100.0, 10)
    assert spoken["ci_low"] < 80 < spoken["ci_high"] == 100.0
    ids = model.calls[0]["input_ids"]
    assert set(ids[:, -1].tolist()) == {model.tokenizer.convert_tokens_to_ids("<|en|>")}
    samples = asr["samples"]
    assert len({s["key"] for s in samples}) == 3
    assert all(s["right"] == (s["reference"] == s["answer"]) for s in samples)
    wave, rate = soundfile.read(samples[0]["audio"])
    assert rate == 16_000
    assert np.abs(wave).max() > 0.05


def samples_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    assert result["samples"]
    return list(result["samples"])


def test_accepted_answers_belong_to_the_question(tmp_path: Path) -> None:
    path = tmp_path / "qa-00000.tar"
    with ShardWriter(path) as writer:
        record = {
            "text": "a b c",
            "language": "en",
            "question": "What is it?",
            "answer": "dog",
            "answers": ["dog", "puppy"],
        }
        writer.write("one", record, tone(0.5))

    def references(task: str, metric: str | None = None) -> tuple[str, ...]:
        return record_questions("x", EvalSetConfig([str(path)], task, metric=metric), BANK)[0].references

    assert references("audio_qa") == ("dog", "puppy")
    assert references("audio_qa", "chrf") == ("dog", "puppy")
    assert references("audio_qa", "bleu") == ("dog",)
    assert references("asr") == ("a b c",)


def test_a_clip_s_captions_and_labels_are_references_in_shards_and_in_exported_lines(tmp_path: Path) -> None:
    path = tmp_path / "s-00000.tar"
    captions = ["a dog barks", "a barking dog", "the dog is loud", "barking", "dog sounds"]
    labels = ["Male speech, man speaking", "Speech", "Bark"]
    with ShardWriter(path) as writer:
        writer.write("one", {"caption": captions[0], "captions": captions}, tone(0.5))
        writer.write("two", {"labels": labels}, tone(0.5))
    for task, metrics, wanted in (
        ("sound_caption", ("chrf", "cider", "rouge_l", "meteor"), tuple(captions)),
        ("sound_caption", ("bleu",), (captions[0],)),
        ("sound_events", ("map",), tuple(labels)),
        ("sound_events", ("accuracy",), (", ".join(labels),)),
    ):
        for metric in metrics:
            (asked,) = record_questions("x", EvalSetConfig([str(path)], task, metric=metric), BANK)
            assert asked.references == wanted, (task, metric)
    only = tmp_path / "captions.jsonl"
    shards_to_jsonl([_part(path, tmp_path, "one")], only, task="sound_caption")
    (question,) = read_questions(only)
    assert (question.metric, question.references) == ("chrf", tuple(captions))
    tagged = tmp_path / "tags.jsonl"
    shards_to_jsonl([_part(path, tmp_path, "two")], tagged, task="sound_events")
    row = json.loads(tagged.read_text())
    tagged.write_text(json.dumps({**row, "metric": "map"}))
    (question,) = read_questions(tagged)
    assert question.references == tuple(labels)


def _part(shard: Path, folder: Path, key: str) -> Path:
    """A shard of the one record of that key."""
    row = next(row for row in load_index(str(shard)).table.to_pylist() if row["key"] == key)
    with ShardWriter(folder / f"{key}-00000.tar") as writer:
        writer.write(key, json.loads(row["meta"]), tone(0.5))
    return folder / f"{key}-00000.tar"


def test_a_metric_of_one_reference_refuses_several_at_once(shard: Path) -> None:
    with pytest.raises(ValueError, match="set 'x': bleu takes one reference and 10 of 10 items have several"):
        record_questions("x", held_out(shard, "chat", template="chat", metric="bleu"), BANK)


def test_selection_is_the_same_for_every_checkpoint(shard: Path) -> None:
    few = held_out(shard, "asr", limit=4)
    keys = [[q.sample.key for q in record_questions("few", few, BANK)] for _ in range(2)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 4
    everything = record_questions("all", held_out(shard, "asr"), BANK)
    assert [q.sample.key for q in everything][:4] == keys[0]
    assert {q.sample.key for q in everything} == {f"clip{i:02d}" for i in range(10)}


@pytest.mark.parametrize(
    ("task", "metric", "expected"),
    [
        ("translate_zh", None, ("bleu", "zh")),
        ("translate_zh", "chrf", ("chrf", "zh")),
        ("translate", None, ("bleu", "en")),
        ("ask_translation", None, ("bleu", "en")),
        ("dialect_asr", None, ("wer", "de")),
        ("dialect", None, ("accuracy", "de")),
        ("music_caption", None, ("chrf", "en")),
        ("diarized_asr", None, ("cp_wer", "de")),
        ("word_timestamps", None, ("word_times", "de")),
        ("segment_timestamps", None, ("boundary_f1", "de")),
        ("transcribe_translate", "rest_bleu", ("rest_bleu", "de")),
    ],
)
def test_metric_and_language_of_a_task(
    tmp_path: Path, task: str, metric: str | None, expected: tuple[str, str]
) -> None:
    with ShardWriter(tmp_path / "t-00000.tar") as writer:
        translation = {"en": "good day", "zh": "你好世界"}
        record = {
            "text": "Guten Tag",
            "language": "de",
            "translation": translation,
            "dialect": "Swabian",
            "caption": "A choir.",
            "turns": [{"start": 0.0, "end": 1.0, "speaker": "Ann", "text": "Guten Tag"}],
            "words": [{"start": 0.0, "end": 0.5, "word": "Guten"}],
            "segments": [{"start": 0.0, "end": 1.0, "text": "Guten Tag"}],
        }
        writer.write("clip", record, tone(0.5))
    (question,) = record_questions("x", EvalSetConfig([str(tmp_path / "t-00000.tar")], task, metric=metric), BANK)
    assert (question.metric, question.language) == expected


def test_a_task_without_a_number_of_its_own_wants_one_named(shard: Path) -> None:
    with pytest.raises(ValueError, match=r"first_line_wer \(of the transcript\) or rest_bleu"):
        record_questions("both", held_out(shard, "transcribe_translate"), BANK)


def test_a_chat_is_in_the_language_of_its_record(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "<audio>?"}, {"role": "assistant", "content": "你好世界"}]
    path = tmp_path / "c-00000.tar"
    for languages in (["zh", "zh"], ["zh", "en"]):
        with ShardWriter(path) as writer:
            for i, language in enumerate(languages):
                writer.write(f"k{i}", {"messages": turns, "language": language}, tone(0.5))
        chats = EvalSetConfig([str(path)], "chat", "chat", metric="bleu")
        if languages == ["zh", "zh"]:
            assert {q.language for q in record_questions("x", chats, BANK)} == {"zh"}
        else:
            with pytest.raises(ValueError, match="are in en, zh, which BLEU tokenises differently"):
                record_questions("x", chats, BANK)


def test_the_answer_is_not_in_the_question(shard: Path) -> None:
    (question, *_) = record_questions("asr", held_out(shard, "asr"), BANK)
    assert [m.role for m in question.sample.messages] == ["user"]
    (reference,) = question.references
    assert reference.startswith("tone ")


def test_a_damaged_clip_is_a_failed_answer(shard: Path, model: FakeModel, tmp_path: Path) -> None:
    copy = tmp_path / shard.name
    raw = bytearray(shard.read_bytes())
    # Inside the first clip's data: headers take the first blocks.
    for i in range(2000, 2040):
        raw[i] ^= 0xFF
    copy.write_bytes(bytes(raw))
    side = shard.with_name(shard.name + ".index.parquet")
    (tmp_path / side.name).write_bytes(side.read_bytes())
    (result,) = evaluate_shards(model, processor(), {"asr": held_out(copy, "asr")}).values()
    assert (result["n"], result["failed"]) == (10, 1)


def test_a_set_without_records_says_why(shard: Path) -> None:
    with pytest.raises(ValueError, match="'not usable for the task': 10"):
        record_questions("x", held_out(shard, "translate"), BANK)
    with pytest.raises(ValueError, match="'fewer than min_words': 10"):
        record_questions("x", held_out(shard, "asr", min_words=3), BANK)
    with pytest.raises(ValueError, match="metric 'f1' is unknown"):
        record_questions("x", held_out(shard, "asr", metric="f1"), BANK)


def test_hotwords_are_in_the_question_and_the_transcript_is_scored(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("Zaphod\nTrillian\n")
    task = '{target: "{text}", hotwords: {file: words.txt, none: 0}, prompts: {en: ["Expect {hotwords}:"]}}'
    (tmp_path / "tasks.yaml").write_text(f"asr_hotwords: {task}\n")
    with ShardWriter(tmp_path / "t-00000.tar") as writer:
        writer.write("a", {"text": "call Zaphod", "language": "en"}, np.zeros(16_000, np.float32))
    made = EvalSetConfig([str(tmp_path / "t-*.tar")], "asr_hotwords")
    (question,) = record_questions("set", made, PromptBank.load([tmp_path / "tasks.yaml"]))
    assert (question.metric, question.references) == ("wer", ("call Zaphod",))
    text = "".join(getattr(part, "text", "") for part in question.sample.messages[0].content)
    assert text in ("Expect Zaphod:", "Expect Trillian:", "Expect Zaphod, Trillian:", "Expect Trillian, Zaphod:")
