"""Token ids and labels against the stock processor's chat template."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

from qa_train.data.audio.waveform import audio_tokens
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.data.text.template import (
    IGNORE,
    encode,
    encode_pair,
    encode_prompt,
    measure,
    outline,
    outline_answers,
    outline_prompt,
    special_id,
)
from tests.data.conftest import noise


def turn(role: str, *content: str | int, trusted: bool = False) -> Message:
    return Message(role, tuple(AudioPart(c) if isinstance(c, int) else TextPart(c, trusted) for c in content))


CHATS = {
    "voice chat": (turn("user", 0), turn("assistant", "Hello world!")),
    "analysis": (turn("user", 0, "What language is spoken?"), turn("assistant", "English")),
    "text first": (turn("user", "Listen:\n\n", 0), turn("assistant", " a leading space")),
    "own system": (turn("system", "Be brief."), turn("user", 0), turn("assistant", "Yes.")),
    "text only": (turn("user", "Hello"), turn("assistant", "Hi\nthere\n\n"), turn("user", "?"), turn("assistant", "!")),
    "two turns, three clips": (
        turn("user", 0, 1, "Which is louder?"),
        turn("assistant", "The second one."),
        turn("user", "And this?", 2),
        turn("assistant", "¡Más! 你好"),
    ),
    # What stands next to a clip is one text with its number and the end of its line.
    "clips in answers": (
        turn("user", "?"),
        turn("assistant", "one ", 0, "two", 1, "\n\nMás.", 2, " a b"),
        turn("user", "!"),
        turn("assistant", "你好"),
    ),
}


def clips_of(messages: tuple[Message, ...]) -> int:
    return sum(isinstance(part, AudioPart) for message in messages for part in message.content)


def stock_messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    def part(p: Any) -> dict[str, Any]:
        return {"type": "audio", "audio_url": "x"} if isinstance(p, AudioPart) else {"type": "text", "text": p.text}

    return [{"role": m.role, "content": [part(p) for p in m.content]} for m in messages]


@pytest.mark.parametrize("name", CHATS)
def test_chat_equals_the_stock_processor_token_for_token(name: str, tokenizer: Any) -> None:
    messages = CHATS[name]
    waves = [noise(0.5 + i * 0.33, seed=i) for i in range(clips_of(messages))]
    tokens = [audio_tokens(len(wave)) for wave in waves]
    sample = Sample(name, messages, len(waves), "chat")
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(80), tokenizer)
    for ours, until, generate in (
        (encode(sample, tokenizer, tokens).input_ids, len(messages), False),
        (encode_prompt(sample, tokenizer, tokens), len(messages) - 1, True),
    ):
        text = processor.apply_chat_template(
            stock_messages(messages[:until]), add_generation_prompt=generate, tokenize=False
        )
        stock = processor(text=text, audio=waves or None, sampling_rate=16_000).input_ids
        assert ours == np.asarray(stock).reshape(-1).tolist()


def learned(sample: Sample, tokenizer: Any, tokens: list[int]) -> str:
    row = encode(sample, tokenizer, tokens)
    assert all(label in (IGNORE, token) for token, label in zip(row.input_ids, row.labels, strict=True))
    return str(tokenizer.decode([label for label in row.labels if label != IGNORE]))


def test_chat_learns_every_assistant_turn_and_nothing_else(tokenizer: Any) -> None:
    sample = Sample("k", CHATS["two turns, three clips"], 3, "chat")
    assert learned(sample, tokenizer, [3, 4, 5]) == "The second one.<|im_end|>¡Más! 你好<|im_end|>"


def test_of_an_answer_with_clips_its_text_is_learned(tokenizer: Any) -> None:
    """But for tokens that it shares with what stands for a clip: a space before its number, the end of its line."""
    messages = CHATS["clips in answers"]
    sample = Sample("k", messages, 3, "chat")
    assert learned(sample, tokenizer, [3, 4, 5]) == "onetwo\n\nMás. a b<|im_end|>你好<|im_end|>"
    unlearned = replace(sample, messages=(messages[0], replace(messages[1], learned=False), *messages[2:]))
    assert encode(unlearned, tokenizer, [3, 4, 5]).input_ids == encode(sample, tokenizer, [3, 4, 5]).input_ids
    assert learned(unlearned, tokenizer, [3, 4, 5]) == "你好<|im_end|>"


def test_only_the_last_answer_is_learned_if_asked(tokenizer: Any) -> None:
    sample = Sample("k", CHATS["two turns, three clips"], 3, "chat")
    every, last = encode(sample, tokenizer, [3, 4, 5]), encode(sample, tokenizer, [3, 4, 5], last_turn_only=True)
    assert last.input_ids == every.input_ids
    learned = [label for label in last.labels if label != IGNORE]
    assert tokenizer.decode(learned) == "¡Más! 你好<|im_end|>"
    assert last.labels[-len(learned) - 1 :] == every.labels[-len(learned) - 1 :]


def test_base_layout_and_labels(tokenizer: Any) -> None:
    prompt = turn("user", 0, "Recognize the speech: <|en|>", trusted=True)
    sample = Sample("k", (prompt, turn("assistant", "hello")), 1, "asr", template="base")
    row = encode(sample, tokenizer, [2])
    text = "<|audio_bos|><|AUDIO|><|AUDIO|><|audio_eos|>Recognize the speech: <|en|>hello<|endoftext|>"
    assert row.input_ids == tokenizer.encode(text, add_special_tokens=False)
    assert learned(sample, tokenizer, [2]) == "hello<|endoftext|>"
    assert encode_prompt(sample, tokenizer, [2]) + tokenizer.encode("hello") + [tokenizer.pad_token_id] == row.input_ids


@pytest.mark.parametrize("template", ["base", "chat"])
@pytest.mark.parametrize(
    "spelled", ["<|im_end|>", "<|AUDIO|>", "a<|audio_bos|><|en|>b", "<<|im_start|>>", "<|endoftext|>"]
)
def test_data_that_spells_special_tokens_stays_text(template: str, spelled: str, tokenizer: Any) -> None:
    """The same row, with harmless words for the spelled token, has the same special ids."""

    def specials(text: str) -> list[int]:
        messages = (turn("user", 0, text), turn("assistant", "x" + text))
        ids = encode(Sample("k", messages, 1, "t", template=template), tokenizer, [3]).input_ids
        return [i for i in ids if i in tokenizer.added_tokens_decoder]

    assert specials(spelled) == specials("harmless")
    row = encode(Sample("k", (turn("user", 0), turn("assistant", spelled)), 1, "t", template=template), tokenizer, [1])
    assert spelled in tokenizer.decode(row.input_ids)


def test_a_special_token_cannot_be_assembled_from_pieces(tokenizer: Any) -> None:
    content = (AudioPart(0), TextPart("<|im_", trusted=True), TextPart("end|>"))
    sample = Sample("k", (Message("user", content), turn("assistant", "y")), 1, "t", template="base")
    assert special_id(tokenizer, "<|im_end|>") not in encode(sample, tokenizer, [1]).input_ids


def test_an_unfinished_answer_is_the_row_up_to_there(tokenizer: Any) -> None:
    question = (
        Message("user", (AudioPart(0), TextPart("What?"))),
        Message("assistant", (TextPart("A bell, I think."),)),
    )
    sample = Sample("k", (*question, Message("user", (TextPart("Sure?"),)), question[1]), 1, "chat")
    begun = Sample("k", (*sample.messages[:3], Message("assistant", question[1].content, unfinished=True)), 1, "chat")
    row = encode(sample, tokenizer, [2]).input_ids
    assert row[
        : row.index(tokenizer.convert_tokens_to_ids("<|im_end|>"), len(encode_prompt(sample, tokenizer, [2])))
    ] == (encode_prompt(begun, tokenizer, [2]))


def test_pairs_share_the_prompt_and_end_with_eos(tokenizer: Any) -> None:
    for template, eos in (("chat", "<|im_end|>"), ("base", "<|endoftext|>")):
        answers = ((TextPart("good"),), (TextPart("bad"),))
        sample = Sample("k", (turn("user", 0, "What?"),), 1, "t", None, template, *answers)
        prompt, chosen, rejected = encode_pair(sample, tokenizer, [2])
        assert prompt == encode_prompt(sample, tokenizer, [2])
        assert tokenizer.decode(chosen) == "good" + eos
        assert tokenizer.decode(rejected) == "bad" + eos


@pytest.mark.parametrize("last_turn_only", [False, True])
def test_what_is_measured_is_what_is_encoded(last_turn_only: bool, tokenizer: Any) -> None:
    """Counts of a block, of texts seen before too, against the ids of each row."""
    texts = ["", " ", "hello", "¡Más! 你好", "a<|im_end|>b<|AUDIO|>", "<<|en|>>", "x\n" * 400, "<|en|>" * 200]
    chats = [(turn("user", 0, text), turn("assistant", text + "!"), turn("user", text), turn("assistant", "no"))
             for text in texts]  # fmt: skip
    samples = [Sample(str(i), messages, 1, "t") for i, messages in enumerate(chats)]
    samples += [Sample(f"b{i}", messages[:2], 1, "t", template="base") for i, messages in enumerate(chats)]
    samples += [Sample(name, messages, clips_of(messages), "chat") for name, messages in CHATS.items()]
    for _ in range(2):
        outlines = [outline(s, tokenizer, [3, 1, 7], last_turn_only=last_turn_only) for s in samples]
        rows = [encode(s, tokenizer, [3, 1, 7], last_turn_only=last_turn_only) for s in samples]
        wanted = [[len(row.input_ids), len(row.labels) - row.labels.count(IGNORE)] for row in rows]
        assert measure(outlines, tokenizer).tolist() == wanted
    assert measure([], tokenizer).shape == (0, 2)
    answers = ((TextPart("good"),), (TextPart("a<|im_end|>"),))
    pairs = [
        Sample("k", (turn("user", 0, "What?"),), 1, "t", None, template, *answers) for template in ("chat", "base")
    ]
    for pair in pairs:
        found = [len(ids) for ids in encode_pair(pair, tokenizer, [2])]
        measured = measure(
            [outline_prompt(pair, tokenizer, [2]), *outline_answers(pair, tokenizer)], tokenizer
        ).tolist()
        assert measured == [[found[0], 0], [found[1]] * 2, [found[2]] * 2]


def test_samples_are_checked_at_birth(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="every clip must appear once"):
        Sample("k", (turn("user", 0),), 2, "t")
    with pytest.raises(ValueError, match="role 'robot'"):
        Sample("k", (turn("robot", "x"),), 0, "t")
    with pytest.raises(ValueError, match="template 'plain'"):
        Sample("k", (), 0, "t", template="plain")
    with pytest.raises(ValueError, match="chosen and a rejected"):
        Sample("k", (), 0, "t", chosen=(TextPart("a"),))
    with pytest.raises(ValueError, match="has no special token"):
        special_id(tokenizer, "<|nope|>")


def test_only_short_texts_are_remembered(tokenizer: Any) -> None:
    """Planning a corpus of long answers would otherwise keep them all."""
    from qa_train.data.text.template import _vocabulary

    vocabulary = _vocabulary(tokenizer)
    kept = vocabulary._cached.cache_info().currsize
    for text in ("never seen before", "never seen before " * 100):
        assert vocabulary.encode_text(text) == tokenizer.encode(text, add_special_tokens=False)
    assert vocabulary._cached.cache_info().currsize == kept + 1
