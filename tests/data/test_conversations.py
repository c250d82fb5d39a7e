"""500 generated conversations: token ids of the stock processor, labels of its template's assistant turns."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

from qa_train.data.audio.waveform import SAMPLE_RATE, audio_tokens
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.data.text.template import AUDIO, IGNORE, encode
from tests.data.test_template import clips_of, stock_messages

_PIECES = (
    "What", "is", "said", "here", "?", "the", "dog", "barks", ",", "twice", "12.5", "%", "你好", "世界", "naïve", "🙂",
    "\n", "  ", "\t", "'s", "Audio 1:", "user", "C++", "<b>", "…", "ÅÄÖ", "12:30", "-", '"', "(yes)", "\n\n", "été",
)  # fmt: skip


def text(draw: random.Random, *, answer: bool = False) -> str:
    made = "".join(draw.choice((" ", "")) + draw.choice(_PIECES) for _ in range(draw.randint(1, 8)))
    # An answer starts a token of its own (as it does when the model gives it): it may not merge with "assistant\n".
    return (made.lstrip() or "Yes.") if answer else made


def conversation(draw: random.Random) -> tuple[Message, ...]:
    """One to four turns; each of the user has up to three clips, some text, or both, in any order."""
    messages, clips = [], 0
    if draw.random() < 0.3:
        messages.append(Message("system", (TextPart(text(draw)),)))
    for _ in range(draw.randint(1, 4)):
        kinds = ["audio"] * draw.choice((0, 0, 1, 1, 2, 3)) + ["text"] * draw.choice((0, 1, 1, 2))
        kinds = kinds or ["text"]
        draw.shuffle(kinds)
        parts: list[Any] = []
        for kind in kinds:
            parts.append(AudioPart(clips) if kind == "audio" else TextPart(text(draw)))
            clips += kind == "audio"
        messages += [Message("user", tuple(parts)), Message("assistant", (TextPart(text(draw, answer=True)),))]
    return tuple(messages)


@pytest.fixture(scope="module")
def processor(tokenizer: Any) -> Qwen2AudioProcessor:
    # Windows of 2 s in place of 30 s: the same arithmetic, much less to pad.
    return Qwen2AudioProcessor(WhisperFeatureExtractor(80, chunk_length=2), tokenizer)


def stock_row(processor: Any, messages: tuple[Message, ...], waves: list[np.ndarray]) -> tuple[list[int], list[int]]:
    """Token ids of the stock processor, and labels between the lengths of its template's beginnings."""

    def templated(count: int, generate: bool) -> str:
        return str(
            processor.apply_chat_template(
                stock_messages(messages[:count]), add_generation_prompt=generate, tokenize=False
            )
        )

    whole = processor(text=templated(len(messages), False), audio=waves or None, sampling_rate=SAMPLE_RATE).input_ids
    ids = np.asarray(whole).reshape(-1).tolist()
    sound = processor.tokenizer.convert_tokens_to_ids(AUDIO)
    runs = [i for i, token in enumerate(ids) if token == sound and ids[i - 1] != sound]
    lengths = [next(n for n in range(len(ids)) if ids[start + n] != sound) for start in runs]

    def position(count: int, generate: bool) -> int:
        """Length of the beginning, of which the template knows one token for each clip."""
        short = processor.tokenizer.encode(templated(count, generate), add_special_tokens=False)
        return len(short) + sum(n - 1 for n in lengths[: short.count(sound)])

    labels = [IGNORE] * len(ids)
    newline = len(processor.tokenizer.encode("\n", add_special_tokens=False))
    for i, message in enumerate(messages):
        if message.role == "assistant":
            places = slice(position(i, True), position(i + 1, False) - newline)
            labels[places] = ids[places]
    return ids, labels


def test_token_ids_and_labels_equal_the_stock_processor(processor: Any, tokenizer: Any) -> None:
    draw, rng = random.Random(7), np.random.default_rng(7)
    kinds = {"several clips in a turn": 0, "a turn of text alone": 0, "several turns": 0, "no clip": 0}
    for number in range(500):
        messages = conversation(draw)
        waves = [rng.normal(0, 0.1, rng.integers(1_600, 31_000)).astype(np.float32) for _ in range(clips_of(messages))]
        sample = Sample(str(number), messages, len(waves), "chat")
        row = encode(sample, tokenizer, [audio_tokens(len(wave)) for wave in waves])
        ids, labels = stock_row(processor, messages, waves)
        assert row.input_ids == ids, messages
        assert row.labels == labels, messages
        users = [message for message in messages if message.role == "user"]
        kinds["several clips in a turn"] += any(clips_of((user,)) > 1 for user in users)
        kinds["a turn of text alone"] += any(not clips_of((user,)) for user in users) and bool(waves)
        kinds["several turns"] += len(users) > 1
        kinds["no clip"] += not waves
    assert min(kinds.values()) > 25, kinds
