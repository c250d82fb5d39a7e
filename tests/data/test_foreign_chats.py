"""Rows of other tools: what means a clip is heard, what means a mask is obeyed, the rest is refused by its name."""

from __future__ import annotations

import base64
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import soundfile

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.audio.waveform import BadAudio
from qa_train.data.batches import open_data
from qa_train.data.shards.index import build_index, load_index
from qa_train.data.text.chat_rows import chat_record, is_chat, unknown_fields
from qa_train.data.text.json_rows import objects, read_rows
from qa_train.data.text.prompts import PromptBank, Unqualified
from qa_train.data.text.records import BadRecord
from qa_train.data.text.sample import TextPart
from qa_train.data.text.template import IGNORE, encode
from qa_train.data.tools import interchange
from qa_train.data.tools.interchange import jsonl_to_shards, shards_to_jsonl
from qa_train.eval.questions import read_questions
from tests.data.conftest import noise

REAL = Path(__file__).parent / "foreign"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "a.wav"
    soundfile.write(path, noise(0.5), 16_000)
    return path.read_bytes()


def coded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def user(*content: Any, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "Rain."}]
    return {"messages": turns, **more}


def shape(row: dict[str, Any]) -> tuple[str, list[Any]]:
    record, clips = chat_record(row)
    return record["messages"][0]["content"], clips


def parts(clip: bytes) -> list[tuple[dict[str, Any], Any]]:
    """Every part that means a clip, and where it says the clip is."""
    url = f"data:audio/wav;base64,{coded(clip)}"
    return [
        ({"type": "audio", "audio": "a.wav"}, "a.wav"),
        ({"type": "audio", "audio": {"path": "a.wav", "bytes": None}}, "a.wav"),
        ({"type": "audio", "audio_url": "https://host/a.wav"}, "https://host/a.wav"),
        ({"type": "audio", "url": "a.wav"}, "a.wav"),
        ({"type": "audio", "path": "a.wav"}, "a.wav"),
        ({"type": "audio", "audio": url}, clip),
        ({"type": "audio_url", "audio_url": {"url": "a.wav"}}, "a.wav"),
        ({"type": "audio_url", "audio_url": "a.wav"}, "a.wav"),
        ({"type": "audio_url", "audio_url": {"url": url}}, clip),
        ({"type": "input_audio", "input_audio": {"data": coded(clip), "format": "wav"}}, clip),
        ({"type": "input_audio", "input_audio": {"data": url}}, clip),
        ({"type": "input_audio", "input_audio": {"data": "https://host/a.wav"}}, "https://host/a.wav"),
        ({"audio": "a.wav"}, "a.wav"),
    ]


def test_every_part_that_means_sound_is_a_clip(clip: bytes, tmp_path: Path) -> None:
    for part, source in parts(clip):
        assert shape(user(part, {"type": "text", "text": "What?"})) == ("<audio>What?", [source]), part
        # The same reader serves evaluation files.
        path = tmp_path / "q.jsonl"
        path.write_text(json.dumps(user({"type": "text", "text": "What?"}, part)))
        (question,) = read_questions(path)
        assert question.sample.num_clips == 1, part
        assert question.clips == ((tmp_path / "a.wav",) if source == "a.wav" else ())
    for kind in ("image", "image_url", "video", "file", "tool_use", "audio_codes", None):
        with pytest.raises(BadRecord, match=f"a part of type {kind!r}"):
            chat_record(user({"type": kind, "text": "x"} if kind else {"x": 1}))
    for part, why in (({"type": "audio", "audio": {"array": [0.0]}}, "array of samples"),
                      ({"type": "audio", "audio": [0.1]}, "given as list"),
                      ({"type": "audio", "audio": "a.wav", "offset": 2.0}, "'offset'"),
                      ({"type": "audio_url", "audio_url": "data:audio/wav,xx"}, "data URL"),
                      ({"type": "input_audio", "input_audio": {"data": "a.wav"}}, "not base64"),
                      ({"type": "text", "text": None}, "expected a text")):  # fmt: skip
        with pytest.raises(BadRecord, match=why):
            chat_record(user(part))


def test_clips_in_lists_are_paths_addresses_or_data(clip: bytes) -> None:
    url = f"data:audio/wav;base64,{coded(clip)}"
    for given in (["a.wav"], "a.wav", [{"path": "a.wav"}], {"path": "a.wav"}):
        for name in ("audios", "audio", "sound", "audio_path"):
            assert shape(user("What?", **{name: given})) == ("<audio>What?", ["a.wav"])
    assert shape(user("<audio>?", audios=[url])) == ("<audio>?", [clip])
    assert shape(user("<audio>?", audios=[coded(clip)])) == ("<audio>?", [clip])
    assert shape(user("<audio>?", audios=[{"bytes": coded(clip), "path": None}])) == ("<audio>?", [clip])
    assert shape(user("<audio>?", audios=["https://host/a.wav"])) == ("<audio>?", ["https://host/a.wav"])
    # A list that repeats the parts says nothing new; another one is a contradiction.
    part = {"type": "audio", "audio": "a.wav"}
    assert shape(user(part, "?", audios=["a.wav"])) == ("<audio>?", ["a.wav"])
    assert shape(user({"type": "audio"}, "?", audios=["a.wav"])) == ("<audio>?", ["a.wav"])
    for row in (user(part, audios=["b.wav"]), user("<audio><audio>", audios=["a.wav"]),
                user("?", audios=["a.wav", "b.wav"]), user({"type": "audio"})):  # fmt: skip
        with pytest.raises(BadRecord, match="make them agree"):
            chat_record(row)
    turn = {"role": "user", "content": "What?", "audio": "b.wav"}
    assert chat_record({"messages": [turn, {"role": "assistant", "content": "x"}]})[1] == ["b.wav"]


@pytest.mark.parametrize(
    "text",
    [
        "<|audio_bos|><|AUDIO|><|audio_eos|>What?",
        "<|AUDIO|>What?",
        "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nWhat?",
        "<|audio_bos|><|AUDIO|><|AUDIO|><|AUDIO|><|audio_eos|>What?",
        "<|audio_start|><|audio_pad|><|audio_pad|><|audio_end|>What?",
        "<|audio|>What?",
        "<audio>What?",
        "What?",
    ],
)
def test_marks_in_text_are_clips(text: str, tmp_path: Path) -> None:
    assert shape({**user(), "messages": [{"role": "user", "content": text}], "audios": ["a.wav"]})[0] == "<audio>What?"
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "x"}]
    assert shape({"conversations": turns, "sound": "a.wav"})[0] == "<audio>What?"
    assert shape({"query": text, "response": "x", "audios": ["a.wav"]})[0] == "<audio>What?"
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"audio": "a.wav", "prompt": text, "gt": "x"}))
    (message,) = read_questions(path)[0].sample.messages
    assert [getattr(part, "text", "clip") for part in message.content] == ["clip", "What?"]


def test_marks_that_match_no_clip_are_refused(tmp_path: Path) -> None:
    for text in ("<|AUDIO|>?", "<|audio_bos|>?", "<|audio_eos|>", "<|audio_bos|><|AUDIO|>?", "<audio>?"):
        with pytest.raises(BadRecord, match=r"make them agree|part of a clip marker"):
            chat_record(user(text))
    for answer in ("<|AUDIO|>", "<audio>", "a <|audio_bos|>"):
        with pytest.raises(BadRecord, match="clip"):
            chat_record(user("?") | {"rejected_response": answer})
    with pytest.raises(BadRecord, match="only a recording"):
        chat_record({"messages": [{"role": "assistant", "content": [{"type": "audio", "audio": "a.wav"}]}]})
    (tmp_path / "q.jsonl").write_text(json.dumps({"audio": "a.wav", "prompt": "<|AUDIO|><|AUDIO|>?", "gt": "x"}))
    with pytest.raises(ValueError, match="line 1: the text places 2 clips"):
        read_questions(tmp_path / "q.jsonl")


def test_old_shards_with_marks_are_skipped_by_the_plan() -> None:
    bank = PromptBank.load()
    asked = {"role": "user", "content": "<audio>?"}
    for record in ({"messages": [asked, {"role": "assistant", "content": "a <|AUDIO|>"}]},
                   {"messages": [asked | {"content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]},
                   {"messages": [asked], "chosen": "a <audio>", "rejected": "b"},
                   {"messages": [asked], "chosen": "a", "rejected": "<|audio_bos|>"}):  # fmt: skip
        assert not bank.qualifies(record, "chat")


def masks(tokenizer: Any, *turns: dict[str, Any], last: bool = False) -> list[str]:
    """The answers that are learned."""
    record, _ = chat_record({"messages": list(turns)})
    sample = PromptBank.load().sample(record | {"audios": []}, "chat", "chat", "k", 0, 0)
    row = encode(sample, tokenizer, [], last_turn_only=last)
    learned = tokenizer.decode([i for i, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORE])
    return [text for text in ("one", "two", "three") if text in learned]


def test_turns_say_whether_they_are_learned(tokenizer: Any) -> None:
    def turns(**said: Any) -> list[dict[str, Any]]:
        asked = {"role": "user", "content": "?"}
        return [asked, {"role": "assistant", "content": "one"} | said, asked, {"role": "assistant", "content": "two"}]

    for said in ({"loss": False}, {"loss": 0}, {"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss_weight": 0.0}):
        assert masks(tokenizer, *turns(**said)) == ["two"], said
    for said in ({"loss": True}, {"loss": 1}, {"weight": 1}, {"loss": None}, {}, {"loss_scale": 1.0}):
        assert masks(tokenizer, *turns(**said)) == ["one", "two"], said
        kept = ["one", "two"] if any(said.values()) else ["two"]
        assert masks(tokenizer, *turns(**said), last=True) == kept, said
    for said in ({"weight": 0.5}, {"loss": "false"}, {"loss": True, "weight": 0}, {"loss_scale": 2.0}):
        with pytest.raises(BadRecord, match="learned"):
            chat_record({"messages": turns(**said)})
    with pytest.raises(BadRecord, match="only answers are learned"):
        chat_record({"messages": [{"role": "user", "content": "?", "loss": True}, *turns()]})
    with pytest.raises(Unqualified, match="every answer is marked"):
        masks(tokenizer, {"role": "user", "content": "?"}, {"role": "assistant", "content": "one", "loss": False})


def test_the_mask_goes_through_shards_and_back(tmp_path: Path, tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "one", "weight": 0},
             {"role": "user", "content": "?"}, {"role": "assistant", "content": "two"}]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps([{"messages": turns, "channel": "x"}]))
    jsonl_to_shards(tmp_path / "a.json", tmp_path / "a-%05d.tar")
    shards_to_jsonl([tmp_path / "a-00000.tar"], tmp_path / "back.jsonl")
    ((_, _, row),) = objects(tmp_path / "back.jsonl")
    assert [turn.get("loss") for turn in row["messages"]] == [None, False, None, None]
    sources = {"c": SourceConfig(name="c", shards=[str(tmp_path / "*.tar")], task="chat", template="chat")}
    batch = open_data(DataConfig(sources=sources, shuffle_window=2), tokenizer, 80, seed=0, batches_per_step=1).build(0)
    learned = tokenizer.decode(batch["input_ids"][batch["labels"] != IGNORE])
    assert "two" in learned
    assert "one" not in learned


def test_fields_that_nothing_reads_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record, _ = chat_record(user("?", channel="x", margin=1.0) | {"id": 3, "speaker": 7, "label": 2})
    assert unknown_fields(record) == ["channel", "margin"]
    assert (record["speaker"], record["label"]) == ("7", "2")
    rows = [user("?", channel="x"), user("?", channel="y"), user("?")]
    rows[2]["messages"][0]["name"] = "anne"
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    jsonl_to_shards(tmp_path / "a.jsonl", tmp_path / "a-%05d.tar")
    assert "channel (2), messages.name (1)" in caplog.text
    for name, value in {"images": ["a.png"], "video": "v.mp4", "tools": "[]", "objects": {"bbox": []},
                        "label": True, "kto_tag": False, "rejected_audios": ["b.wav"]}.items():  # fmt: skip
        if value is not False:
            with pytest.raises(BadRecord, match=name):
                chat_record(user("?", **{name: value}))


@pytest.mark.parametrize(
    "row",
    [
        {"conversation": [{"system": "", "input": "<audio>How many?", "output": "3"}]},
        {"conversations": [{"from": "human", "value": "<audio>How many?"}, {"from": "chatgpt", "value": 3}]},
        {"conversations": '[{"from": "human", "value": "<audio>How many?"}, {"from": "gpt", "value": "3"}]'},
        {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": 3}]},
        {"instruction": "How many?", "input": "", "output": 3},
        {"question": "How many?", "response": "3"},
        {
            "conversations": [
                {"from": "user", "value": "Audio 1:<audio>a.wav</audio>\nHow many?"},
                {"from": "gpt", "value": 3},
            ]
        },
        {"query": "<audio>a.wav</audio>How many?", "response": "3"},
        {"instruction": "How many?", "question": "Which?", "output": 3.0},
    ],
)
def test_other_names_and_types_of_a_question_and_its_answer(row: dict[str, Any]) -> None:
    record, clips = chat_record({**row, "audio": "a.wav"})
    assert clips == ["a.wav"]
    assert [(turn["role"], turn["content"]) for turn in record["messages"]] == [
        ("user", "<audio>How many?"),
        ("assistant", "3"),
    ]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        # A table has NaN for what is missing.
        ({"instruction": "?", "output": float("nan")}, "a content of float"),
        ({"instruction": "?", "output": True}, "a content of bool"),
        ({"conversations": '[{"from": "human", "value": NaN}]'}, "NaN is not JSON"),
        ({"conversations": '[{"from": "human", "value": "?", "value": "!"}]'}, "repeated key 'value'"),
        ({"conversations": "[human] ?"}, "the turns, a text of JSON: not JSON"),
        # Named twice, and not alike.
        (
            {"query": "<audio>x.wav</audio>?", "response": "!"},
            r"named in the messages \(x.wav\), and 'audios' lists 1: keep one",
        ),
        # An answer names no clip.
        ({"query": "<audio>Which tag?", "response": "<audio>x.wav</audio>"}, "the messages place 2 clips"),
    ],
)
def test_what_is_no_answer_and_no_clip_is_refused(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRecord, match=why):
        chat_record({**row, "audios": ["a.wav"]})


def test_a_question_next_to_its_answer_is_a_fact(clip: bytes, tmp_path: Path) -> None:
    """What a model once said in ``output`` or ``response`` is not what is learned, or scored against."""
    asked = {"audio": "a.wav", "question": "What is it?"}
    assert not is_chat({**asked, "answer": "a dog", "output": "a cat"})
    assert is_chat({**asked, "output": "a cat"})
    assert is_chat({**asked, "answer": "a dog", "chosen": "a dog", "rejected": "a cat"})
    assert not is_chat({"audios": "a.wav", "question": "Which?", "choices": ["a dog", "a cat"], "answer": "a dog"})
    (tmp_path / "a.wav").write_bytes(clip)
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({**asked, "prompt": "Say it.", "gt": "a dog", "response": "a cat"}))
    (question,) = read_questions(path)
    assert question.references == ("a dog",)
    assert [part.text for part in question.sample.messages[-1].content if isinstance(part, TextPart)] == ["Say it."]
    path.write_text(json.dumps({**asked, "answer": "a dog", "response": "a cat"}))
    with pytest.raises(ValueError, match="prompt must be text"):
        read_questions(path)


def test_a_pair_has_a_question() -> None:
    pair = {"chosen": "a", "rejected": "b"}
    asked, _ = chat_record({**pair, "system": "s", "question": "Why?"})
    assert [turn["content"] for turn in asked["messages"]] == ["s", "Why?"]
    # The clip may be the question.
    spoken, _ = chat_record({**pair, "audio": "a.wav"})
    assert [turn["content"] for turn in spoken["messages"]] == ["<audio>"]
    with pytest.raises(BadRecord, match="no question"):
        chat_record({"chosen": "Human: Why? Assistant: a", "rejected": "Human: Why? Assistant: b"})


def test_pairs_of_every_tool() -> None:
    asked, good, bad = ({"role": "user", "content": "<audio>?"}, {"role": "assistant", "content": "good"},
                        {"role": "assistant", "content": "bad"})  # fmt: skip
    clips: dict[str, Any] = {"audios": ["a.wav"]}
    rows: list[dict[str, Any]] = [
        {"messages": [asked, good], "rejected_response": "bad"},
        {"messages": [asked, good], "rejected_response": [bad]},
        {"messages": [asked, good], "rejected_messages": [asked, bad], "rejected_audios": ["a.wav"]},
        {"messages": [asked, good], "rejected_messages": [bad]},
        {"messages": [asked], "chosen": "good", "rejected": "bad"},
        {"messages": [asked], "chosen": good, "rejected": bad},
        {"prompt": [asked], "chosen": [good], "rejected": [bad]},
        {"chosen": [asked, good], "rejected": [asked, bad]},
        {"prompt": "?", "chosen": "good", "rejected": "bad"},
        {"instruction": "?", "input": "", "chosen": "good", "rejected": "bad"},
        {"query": "?", "response": "good", "rejected_response": "bad"},
        {"conversations": [{"from": "human", "value": "<audio>?"}], "chosen": {"from": "gpt", "value": "good"},
         "rejected": {"from": "gpt", "value": "bad"}},
        {"prompt": "?", "response_1": "bad", "response_2": "good", "overall_response": 2},
    ]  # fmt: skip
    for row in rows:
        record, sources = chat_record(row | clips)
        assert record["messages"] == [asked], row
        assert (record["chosen"], record["rejected"], sources) == ("good", "bad", ["a.wav"]), row
        assert not {"prompt", "response", "rejected_messages", "rejected_audios", "overall_response"} & set(record)
    for row, why in (({"messages": [asked, good], "rejected_response": " good "}, "same answer"),
                     ({"chosen": [asked, good], "rejected": [asked, good]}, "same answer"),
                     ({"chosen": [asked, good], "rejected": [good, bad]}, "follow different turns"),
                     ({"messages": [asked], "rejected_response": "bad"}, "better one as the last"),
                     ({"messages": [asked], "chosen": "good"}, "both 'chosen' and 'rejected'"),
                     ({"messages": [asked, good], "rejected_audios": ["b.wav"]}, "two recordings"),
                     ({"messages": [asked, good], "rejected_response": "bad", "rejected_audios": ["b"]}, "same clips"),
                     ({"messages": [asked, good | {"loss": False}], "rejected_response": "bad"}, "loss: false"),
                     ):  # fmt: skip
        with pytest.raises(BadRecord, match=why):
            chat_record(row | clips)


def test_identical_pairs_are_refused_wherever_they_come_in(tmp_path: Path, tokenizer: Any) -> None:
    from qa_train.data.shards.sidecar import write_index

    rows = [user("?") | {"rejected_response": text} for text in ("Snow.", "Wind.")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, user("?") | {"rejected_response": "Rain."}])))
    with pytest.raises(ValueError, match="line 3: chosen and rejected are the same answer"):
        jsonl_to_shards(tmp_path / "a.jsonl", tmp_path / "a-%05d.tar")
    # In a shard of before: the row of its index is refused by name.
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (index,) = jsonl_to_shards(tmp_path / "a.jsonl", tmp_path / "a-%05d.tar")
    old = index.table.to_pylist()
    old[1]["meta"] = old[1]["meta"].replace("Wind.", "Rain.")
    index.table = type(index.table).from_pylist(old, schema=index.table.schema)
    write_index(index)
    sources = {"c": SourceConfig(name="c", shards=[str(tmp_path / "*.tar")], task="chat", template="chat")}
    config = DataConfig(sources=sources, shuffle_window=2)
    with pytest.raises(ValueError, match="row 1 of its index: chosen and rejected are the same answer"):
        _ = open_data(config, tokenizer, 80, seed=0, batches_per_step=1, preference=True).sources[0].eligible.counts
    tar = tmp_path / "a-00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"Wind.", b"Rain."))
    (again,) = build_index([tar])
    assert [problem.reason for problem in again.problems] == ["identical pair"]
    assert len(load_index(str(tar))) == 1


def test_files_of_rows_by_their_content(tmp_path: Path) -> None:
    row, mark = json.dumps(user("?")), b"\xef\xbb\xbf"
    array = json.dumps([user("?"), user("!")], indent=1)
    for raw, count in ((row.encode(), 1), (mark + row.encode() + b"\r\n\n" + row.encode(), 2), (array.encode(), 2),
                       (mark + b"\n " + array.encode() + b"\n", 2), (b"[]", 0), (b"", 0),
                       (f"{row}\r\n{row}\r\n".encode("utf-16"), 2), (array.encode("utf-16"), 2),
                       (b"\xfe\xff" + f"{row}\n{row}".encode("utf-16-be"), 2)):  # fmt: skip
        for name in ("a.jsonl", "a.json"):
            path = tmp_path / name
            path.write_bytes(raw)
            assert len(list(objects(path))) == count, raw[:20]
            if count:
                assert len(read_questions(path)) == count
    # By their ids in one object over several lines, or as a list under a name; other values are no rows.
    by_id = {"u1": user("?") | {"id": "own"}, "u2": user("!")}
    for whole in (json.dumps(by_id, indent=4), '{"u1": {\n' + json.dumps(by_id)[len('{"u1": {') :]):
        path.write_text(whole)
        assert [row for _, _, row in objects(path)] == [by_id["u1"], by_id["u2"] | {"id": "u2"}]
    # A number at the border of what is read at once.
    path.write_text('{\n"a": "' + "x" * ((1 << 16) - 23) + f'", "count": 1234, "data": [\n{row},\n{row}]\n}}\n')
    assert [found for _, _, found in objects(path)] == [user("?")] * 2
    path.write_text(json.dumps({"info": {"version": 1}, "licenses": [], "annotations": [user("?")]}, indent=1))
    assert [found for _, _, found in objects(path)] == [user("?")]
    # On one line: a list alone is no row, for a row has a clip as well.
    path.write_text(json.dumps({"annotation": [{"path": "a.wav", "text": "x" * (1 << 17)}, user("?")]}) + "\n\n")
    assert [len(found) for _, _, found in objects(path)] == [2, len(user("?"))]
    for one in ({"turns": [{"text": "a"}]}, {"own": [user("?")], "wav": "a.wav"}, user("?")):
        for count in (1, 2):
            path.write_text(f"{json.dumps(one)}\n" * count)
            assert [found for _, _, found in objects(path)] == [one] * count
    path.write_text(f"{json.dumps({'own': [row]})}\n" * 2)
    assert len(list(objects(path))) == 2
    path.write_text('{\n"data": [\n{"a": 1, "a": 2}]}')
    assert [isinstance(found, BadRecord) for _, _, found in read_rows(path)] == [True]
    # Half of a surrogate pair makes its own row bad.
    for text in (f'{row}\n{{"a": "\ud800"}}\n{row}', f'[{row}, {{"a": "\ud800"}}, {row}]'):
        path.write_bytes(text.encode("utf-16", "surrogatepass"))
        assert [isinstance(found, BadRecord) for _, _, found in read_rows(path)] == [False, True, False]
    bad = f'[{row}, {{"a": 1, "a": 2}}, 7, {row}]'
    path.write_text(bad)
    assert [isinstance(found, BadRecord) for _, _, found in read_rows(path)] == [False, True, True, False]
    for raw, why in ((f"[{row}, {row[:50]}", "cut short"), (f'{{\n"a": {row}', "cut short"),
                     (f"[{row}]\n[{row}]", "more follows"), ('{\n "a": 1}', "without rows"),
                     (json.dumps(user("?"), indent=1), "a row over several lines .*jq -c [.] FILE"),
                     (json.dumps({"text": "a b", "words": [{"word": "a"}]}, indent=1), "a row over .*text, words"),
                     (json.dumps({"id": "a", "segments": [{"text": "a"}]}, indent=1), "a row over .*segments"),
                     (json.dumps({"x": {"a": 1}}, indent=1) * 2, "more follows .*jq -c [.] FILE"),
                     (json.dumps({"licenses": [{"id": 1}], "data": [{"a": 1}]}, indent=1), r"several .*[.]NAME\[\]"),
                     (json.dumps({"u1": {"a": 1}, "n": 1}, indent=1), "without rows"),
                     ('{"a":' + " " * 30_000 + "1}]", "more follows|not JSON"),
                     ("a,b\n1,2", "one JSON object on each line")):  # fmt: skip
        path.write_text(raw)
        with pytest.raises(ValueError, match=why):
            list(objects(path))


def real(name: str) -> list[dict[str, Any]]:
    return [row for _, _, row in objects(REAL / name)]


def test_real_rows_of_llamafactory(tmp_path: Path) -> None:
    found = [chat_record(row) for row in real("llamafactory_mllm_audio_demo.json")]
    assert [clips for _, clips in found] == [
        ["mllm_demo_data/1.mp3"],
        ["mllm_demo_data/2.wav"],
        ["mllm_demo_data/3.flac"],
    ]
    assert found[0][0]["messages"][0]["content"] == "<audio>What's that sound?"
    for record, clips in map(chat_record, real("llamafactory_dpo_en_demo.json")):
        assert isinstance(record["chosen"], str)
        assert [turn["role"] for turn in record["messages"]] == ["user"]
        assert not clips
    record, _ = chat_record(real("llamafactory_alpaca_en_demo.json")[0])
    assert [turn["content"] for turn in record["messages"]] == ["Calculate 15% of 500.", "15% of 500 is 75."]
    for row in real("llamafactory_kto_en_demo.json"):
        with pytest.raises(BadRecord, match="KTO"):
            chat_record(row)
    # The demo as it lies beside its clips.
    (tmp_path / "mllm_demo_data").mkdir()
    for name in ("1.mp3", "2.wav", "3.flac"):
        soundfile.write(tmp_path / "mllm_demo_data" / name, noise(0.5), 16_000)
    (tmp_path / "demo.json").write_bytes((REAL / "llamafactory_mllm_audio_demo.json").read_bytes())
    (index,) = jsonl_to_shards(tmp_path / "demo.json", tmp_path / "d-%05d.tar")
    assert index.table["names"].to_pylist() == [["mp3"], ["wav"], ["flac"]]


def test_real_rows_of_ms_swift() -> None:
    found = [chat_record(row) for row in real("ms_swift.jsonl")]
    told = [[(turn["role"], turn["content"]) for turn in record["messages"]] for record, _ in found]
    whole = [("system", "<system>"), ("user", "<query1>"), ("assistant", "<response1>"), ("user", "<query2>"),
             ("assistant", "<response2>")]  # fmt: skip
    assert told[0] == told[1] == told[2] == whole
    assert told[3] == [("system", "<system>"), ("user", "<query-inst>\n<query-input>"), ("assistant", "<response>")]
    assert [turn.get("loss") for turn in found[5][0]["messages"]] == [None, False, None, True]
    assert (found[6][0]["chosen"], found[6][0]["rejected"]) == ("Tomorrow's weather will be sunny", "I don't know")
    assert [clips for _, clips in found[7:]] == [["/xxx/x.wav"], ["/xxx/x.mp3"]]
    for row, why in zip(
        real("ms_swift_refused.jsonl"),
        ("tool_calls", "tool_use", "loss_scale: 2.0", "images", "KTO", "'label' must be text", "images"),
        strict=True,
    ):
        with pytest.raises(BadRecord, match=why):
            chat_record(row)


def test_real_rows_of_trl_nemo_and_the_model_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip: bytes) -> None:
    for row in real("trl.jsonl"):
        record, _ = chat_record(row)
        pair = "rejected" in row
        assert [turn["role"] for turn in record["messages"]] == (["user"] if pair else ["user", "assistant"])
        assert (record["chosen"] if pair else record["messages"][1]["content"]).strip() in ("blue.", "It is blue.")
        assert not pair or record["rejected"].strip() in ("green.", "It is green.")
    for row, why in zip(real("trl_refused.jsonl"), ("KTO", "stepwise", "no question"), strict=True):
        with pytest.raises(BadRecord, match=why):
            chat_record(row)
    record, clips = chat_record(real("nemo_multimodal_conversation.jsonl")[0])
    assert clips == ["123.wav", "123_answer.wav"]
    assert [turn["content"] for turn in record["messages"]] == [
        "Can you help summarize the following?\n<audio>",
        "I'm glad to assist you with your request. Here's a summary:\n<audio>",
        "Can you further shorten it?",
        "Of course!",
    ]
    card = REAL / "qwen2_audio_model_card.json"
    found = [chat_record(row) for _, _, row in objects(card)]
    assert [len(clips) for _, clips in found] == [2, 2]
    assert found[1][0]["messages"][-1]["content"] == "<audio>What does the person say?"
    assert all(str(source).startswith("https://") for _, clips in found for source in clips)
    monkeypatch.setattr("qa_train.data.shards.clip_files.clip_bytes", lambda _: clip)
    (index,) = jsonl_to_shards(card, tmp_path / "c-%05d.tar")
    assert [len(names) for names in index.table["names"].to_pylist()] == [2, 2]
    assert len(read_questions(card)) == 2


def af3(sound: Any, *values: Any, **more: Any) -> dict[str, Any]:
    roles = ("human", "gpt")
    turns = [{"from": roles[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "x", "sound": sound, "conversations": turns, **more}


@pytest.mark.parametrize(
    ("row", "texts", "clips"),
    [
        (af3("a.wav", "<sound>\nWhat?", "Rain.", duration=10.0), ["<audio>What?", "Rain."], ["a.wav"]),
        (af3("a.wav", "What?\n<sound>", "Rain."), ["What?\n<audio>", "Rain."], ["a.wav"]),
        (af3("a.wav", "<speech>\nSay it.", "Rain.", duration="4.2"), ["<audio>Say it.", "Rain."], ["a.wav"]),
        (af3("a.wav", "What?", "Rain."), ["<audio>What?", "Rain."], ["a.wav"]),
        (af3("a.wav", "<sound>How many?", 3), ["<audio>How many?", "3"], ["a.wav"]),
        (af3("a.wav", "<sound>How long?", 2.5), ["<audio>How long?", "2.5"], ["a.wav"]),
        (af3(None, "What?", "Rain."), ["What?", "Rain."], []),
        (af3(["a.wav"], "<sound-1>What?", "Rain."), ["<audio>What?", "Rain."], ["a.wav"]),
        (af3("a.wav", "<sound-1>\nWhat?", "Rain."), ["<audio>What?", "Rain."], ["a.wav"]),
        (
            af3(["a.wav", "b.wav"], "<sound-2>\nWhat?", "Rain.", "And <sound-1>?", "Wind."),
            ["<audio>What?", "Rain.", "And <audio>?", "Wind."],
            ["b.wav", "a.wav"],
        ),
        (
            af3(["a.wav", "b.wav"], "<sound-1><sound-2>Same?", "No.", "<sound-1> again?", "Rain."),
            ["<audio><audio>Same?", "No.", "<audio> again?", "Rain."],
            ["a.wav", "b.wav", "a.wav"],
        ),
        # NeMo takes the first of three fields; what the others hold is not heard.
        (af3(None, "<sound>?", "x", ori_sound="o.wav"), ["<audio>?", "x"], ["o.wav"]),
        (af3("a.wav", "<sound>?", "x", speech="s.wav", ori_sound="o.wav"), ["<audio>?", "x"], ["a.wav"]),
    ],
)
def test_rows_of_audio_flamingo(row: dict[str, Any], texts: list[str], clips: list[str]) -> None:
    record, found = chat_record(row)
    assert [turn["content"] for turn in record["messages"]] == texts
    assert found == clips
    assert set(record) == {"id", "messages"}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (af3(["a.wav"], "<sound-2>?", "x"), "<sound-2> names no clip: the row lists 1, numbered from 1 on"),
        (af3(["a.wav"], "<sound-0>?", "x"), "<sound-0> names no clip"),
        (af3(None, "<sound-1>?", "x"), "<sound-1> names no clip: the row lists 0"),
        (af3(["a.wav", "b.wav"], "<sound-1>?", "x"), "make them agree"),
        (af3(["a.wav", "b.wav"], "?", "x"), "make them agree"),
        (af3("a.wav", "<sound>?", "x", "<sound>?", "y"), "make them agree"),
        (af3("a.wav", "<sound-1>?", "<sound-1>"), "only a recording"),
        (af3("a.wav", "<sound>?", None), "a turn without a content"),
    ],
)
def test_rows_of_audio_flamingo_that_are_refused(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRecord, match=why):
        chat_record(row)


def test_numbered_marks_are_heard_as_the_reader_of_audio_flamingo_hears_them() -> None:
    """Its rule: the clips in the order of the marks in the text, each mark once more for each time it stands there."""
    draw = random.Random(0)
    for _ in range(200):
        names = [f"{i}.wav" for i in range(draw.randint(2, 8))]
        order = draw.sample(range(len(names)), len(names)) + draw.choices(range(len(names)), k=draw.randint(0, 3))
        values: list[str] = []
        while order or len(values) < 2:
            here, order = order[:2], order[2:]
            values += ["".join(f"{draw.choice(['', 'and '])}<sound-{i + 1}>" for i in here) + " what?", "Rain."]
        record, clips = chat_record(af3(names, *values))
        said = "".join(turn["content"] for turn in record["messages"])
        assert clips == [names[int(number) - 1] for number in re.findall(r"<sound-(\d+)>", "".join(values))]
        assert said == re.sub(r"<sound-\d+>", "<audio>", "".join(values))


def turns(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.mark.parametrize(
    ("row", "texts", "clips"),
    [
        # FunASR, Phi-4, Megrez and WEST place clips in their own ways.
        ({"messages": turns("Say: <|startofspeech|>!a.wav<|endofspeech|>", "x")}, ["Say: <audio>", "x"], ["a.wav"]),
        (
            {"messages": turns("<|audio_2|><|audio_1|>?", "x"), "audios": ["a.wav", "b.wav"]},
            ["<audio><audio>?", "x"],
            ["b.wav", "a.wav"],
        ),
        ({"messages": turns({"text": "?", "audio": "a.wav"}, {"text": "x"})}, ["<audio>?", "x"], ["a.wav"]),
        ({"messages": turns({"type": "audio", "audio": "a.wav"}, "x"), "wav": "a.wav"}, ["<audio>", "x"], ["a.wav"]),
        # LTU and GAMA name the clip audio_id; ms-swift asks by question.
        ({"instruction": "?", "input": "y", "audio_id": "a.flac", "output": "x"}, ["<audio>?\ny", "x"], ["a.flac"]),
        ({"question": "<audio>?", "answer": "x", "audios": ["a.wav"]}, ["<audio>?", "x"], ["a.wav"]),
        ({"input": "?", "output": "x"}, ["?", "x"], []),
        # Next to turns, what a chat was made of is a fact.
        ({"messages": turns("?", "x"), "instruction": "a", "prompt": "b", "output": "c"}, ["?", "x"], []),
        ({"messages": turns("?", "x"), "response": "a", "refinement": "b", "input": {"messages": []}}, ["?", "x"], []),
        ({"input": turns("?"), "output": turns("", "x")[1:]}, ["?", "x"], []),
        # So are ids, names of people, and a mark instead of a better answer.
        ({"messages": turns("?", "x"), "audio_id": 12, "audio_name": "abc"}, ["?", "x"], []),
        ({"messages": [turns("?")[0] | {"name": "a.wav"}, *turns("", "x")[1:]]}, ["?", "x"], []),
        ({"instruction": "?", "output": "x", "corrected": True}, ["?", "x"], []),
        ({"instruction": "?", "output": "x", "corrected": ""}, ["?", "x"], []),
        ({"system": "s ", "messages": [{"role": "system", "content": "s"}, *turns("?", "x")]}, ["s", "?", "x"], []),
        ({"instruction": "Go on.\nUser: hi\nAssistant:", "output": "x"}, ["Go on.\nUser: hi\nAssistant:", "x"], []),
    ],
)
def test_where_other_projects_put_clips_and_questions(row: dict[str, Any], texts: list[str], clips: list[str]) -> None:
    assert is_chat(row)
    record, found = chat_record(row)
    assert [turn["content"] for turn in record["messages"]] == texts
    assert found == clips


@pytest.mark.parametrize(
    "row",
    [
        {"input": {"messages": turns("?"), "tools": []}, "preferred_output": turns("", "good")[1:],
         "non_preferred_output": turns("", "bad")[1:]},
        {"chosen_messages": turns("?", "good"), "rejected_messages": turns("?", "bad")},
        {"context_messages": turns("?"), "chosen": turns("", "good")[1:], "rejected": turns("", "bad")[1:]},
        {"instruction": "?", "chosen_response": "good", "rejected_response": "bad"},
        {"prompt": "?", "response": "bad", "critique": "c", "refinement": "good"},
        {"instruction": "?", "output": "bad", "reflection": "r", "corrected": "good"},
        {"prompt": "?", "chosen": turns("?", "good"), "rejected": turns("?", "bad")},
    ],
)  # fmt: skip
def test_pairs_under_other_names(row: dict[str, Any]) -> None:
    """The better answer is not the one by the usual name of an answer; a system prompt stands once, and first."""
    for more in ({}, {"system": "s"}):
        assert is_chat(row | more)
        record, _ = chat_record(row | more)
        assert (record["chosen"], record["rejected"]) == ("good", "bad")
        assert [turn["content"] for turn in record["messages"]] == [*more.values(), "?"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        # Clips that would be lost, or leave their mark in the text.
        ({"messages": turns("?", "x"), "recording": "dir/a.WAV"}, "'recording' names an audio file"),
        ({"messages": [{"role": "user", "content": "?", "voice": {"path": "a.wav"}}]}, "'voice' names an audio file"),
        ({"messages": turns("<|audio_1|>?", "x")}, "names no clip: the row lists 0"),
        ({"messages": turns("<Speech><SpeechHere></Speech> ?", "x"), "audios": ["a.wav"]}, "<SpeechHere>"),
        ({"messages": turns("<|begin_of_audio|><|audio_7|>", "x"), "audios": ["a.wav"] * 7}, "<|begin_of_audio|>"),
        ({"messages": turns('<audio_start_baichuan>{"path": "a.wav"}', "x")}, "<audio_start_baichuan>"),
        (
            {
                "conversations": [
                    {"from": "User", "type": "text", "value": [{}]},
                    {"from": "User", "type": "audio", "value": "a.wav"},
                ]
            },
            "a part of type None",
        ),
        ({"sound": "a.wav", "conversations": [{}]}, "the turns are empty"),
        ({"query": "?", "response": "x", "history": True}, "'history' must be a list"),
        # What is learned of an answer would be another part.
        ({"messages": turns("?", [{"type": "text", "text": "x", "train": False}, "y"])}, "a part of an answer"),
        ({"messages": [{"role": "assistant", "content": "x", "train_detail": [{"train": False}]}]}, "a part of an"),
        # A question, an answer or a system prompt would be lost, or said twice.
        ({"instruction": "a", "prompt": "b", "output": "x"}, "asks twice, in 'instruction' and 'prompt'"),
        ({"prompt": "a", "response": "x", "completion": "y"}, "answers twice, in 'response' and 'completion'"),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}, *turns("?", "x")]}, "system prompt"),
        ({"instruction": turns("?"), "input": "y", "output": "x"}, "'input' stands next to it"),
        ({"query": turns("?"), "history": [["a", "b"]], "response": "x"}, "'history' stands next to it"),
        ({"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": "a", "rejected": "b"}, "a dialogue in one text"),
        ({"messages": [{"from": "human", "text": "?"}]}, "without a content (it has from, text)"),
    ],
)
def test_what_would_be_lost_is_refused(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRecord, match=re.escape(why)):
        chat_record(row)


@pytest.mark.parametrize("better", [1, 2, "1", "2", 1.0, 2.0, 0, 3, -1, "", "tie", True])
def test_the_preferred_answer_of_align_anything(better: Any) -> None:
    row = {"prompt": "What?", "response_1": "one", "response_2": "two", "overall_response": better, "audio": "a.wav"}
    try:
        wanted = int(better)
    except ValueError:
        wanted = 0
    if wanted not in (1, 2):
        with pytest.raises(BadRecord) as caught:
            chat_record(row)
        assert caught.value.reason == "no preference"
        return
    record, clips = chat_record(row)
    assert (record["chosen"], record["rejected"]) == (("one", "two") if wanted == 1 else ("two", "one"))
    assert (record["messages"], clips) == ([{"role": "user", "content": "<audio>What?"}], ["a.wav"])
    for changed, reason in (({"response_2": "one"}, "no preference"), ({"response_1": None}, "bad record"),
                            ({"prompt": ""}, "bad record")):  # fmt: skip
        with pytest.raises(BadRecord) as caught:
            chat_record(row | changed)
        assert caught.value.reason == reason


def test_addresses_are_named_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"ftp://host/a.wav": "addresses are read of http", "pipe://touch owned": "addresses are read of http"}
    for address, why in {**refused, "hf://x/a.wav": "write hf://datasets/OWNER/NAME/PATH"}.items():
        (tmp_path / "a.jsonl").write_text(json.dumps(user("<audio>", audios=[address])))
        with pytest.raises(ValueError, match=f"{address}.*{why}"):
            jsonl_to_shards(tmp_path / "a.jsonl", tmp_path / "a-%05d.tar")
    (tmp_path / "a.jsonl").write_text(json.dumps(user("<audio>", audios=["https://host/dir/a.wav"])))

    def gone(clip: Any) -> tuple[str, bytes]:
        raise BadAudio(f"{clip}: no answer")

    monkeypatch.setattr(interchange, "encoded", gone)
    with pytest.raises(ValueError, match=r"https://host/dir/a\.wav: no answer"):
        jsonl_to_shards(tmp_path / "a.jsonl", tmp_path / "a-%05d.tar")


def test_clips_in_rows_keep_their_bytes(tmp_path: Path, clip: bytes) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(user("<audio>?", audios=[f"data:audio/wav;base64,{coded(clip)}"])))
    (index,) = jsonl_to_shards(tmp_path / "a.jsonl", tmp_path / "a-%05d.tar")
    shards_to_jsonl([index.path], tmp_path / "b.jsonl")
    assert [path.read_bytes() for path in (tmp_path / "b-audio").iterdir()] == [clip]
    (tmp_path / "a.jsonl").write_text(json.dumps(user("<audio>?", audios=[f"data:audio/wav;base64,{coded(b'RIFF')}"])))
    with pytest.raises(ValueError, match="a clip of 4 bytes: not a readable audio file"):
        jsonl_to_shards(tmp_path / "a.jsonl", tmp_path / "a-%05d.tar")
