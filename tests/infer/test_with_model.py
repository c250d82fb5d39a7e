"""The generator against stock transformers: a small random model, real features, fp32."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_model import item, tone
from transformers import Qwen2AudioForConditionalGeneration

from qa_train.config import EncoderConfig, LanguageModelConfig, ModelConfig
from qa_train.data.audio.waveform import audio_tokens
from qa_train.eval.answers import Limits
from qa_train.eval.answers import answer as answer_all
from qa_train.eval.questions import Question
from qa_train.infer.generate import Decoding, Generator, Item, plan_batches, prompt_tokens
from qa_train.model import build_model

DECODING = Decoding(max_new_tokens=12)


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    """Two encoder and two decoder layers; weights scaled up so that answers depend on the clip."""
    encoder = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 80,
    }
    llm = {
        "model_type": "qwen2",
        "vocab_size": 1024,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    }
    cfg = ModelConfig(
        name="test",
        encoder=EncoderConfig(config=encoder),
        llm=LanguageModelConfig(config=llm),
        tokenizer="builtin:nano",
    )
    model, processor = build_model(cfg, seed=1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name:
                weight.mul_(4.0)
    return model, processor


def noisy(seconds: float, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return tone(seconds) + (0.05 * draw.standard_normal(int(seconds * 16_000))).astype(np.float32)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    lengths = (0.4, 1.3, 3.0, 0.9, 2.2, 5.1)
    return [item(noisy(s, i), f"Question {'very ' * i}?") for i, s in enumerate(lengths)] + [item(None, "Hello")]


def test_answers_equal_stock_generate_with_padded_clips(
    parts: tuple[Any, Any], items: list[Item], tmp_path: Path
) -> None:
    model, processor = parts
    answers = Generator(model, processor).generate(items, DECODING)
    model.save_pretrained(tmp_path)
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    stops = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    for each, answer in zip(items, answers, strict=True):
        content: list[dict[str, str]] = [{"type": "audio", "audio_url": "-"}] * len(each.waves)
        content += [{"type": "text", "text": each.sample.messages[0].content[-1].text}]  # type: ignore[union-attr]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        audio = {"audio": list(each.waves), "sampling_rate": 16_000} if each.waves else {}
        inputs = processor(text=text, return_tensors="pt", **audio)
        output = stock.generate(
            **inputs, max_new_tokens=12, min_new_tokens=1, do_sample=False, eos_token_id=stops, pad_token_id=stops[1]
        )
        ids = output[0, inputs["input_ids"].shape[1] :]
        kept = [token for token in ids.tolist() if token not in stops]
        assert answer.text == processor.tokenizer.decode(kept).strip()
    assert len({a.text for a in answers}) > 3, "the answers must depend on what is heard for this test to mean much"


@pytest.mark.slow
def test_a_hundred_answers_equal_the_padded_loop_at_half_its_cost(parts: tuple[Any, Any], tmp_path: Path) -> None:
    """float32, greedy, both in batches of 20: the same text for every clip, and at least twice as fast in CPU time."""
    model, processor = parts
    model.save_pretrained(tmp_path)
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    stops = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    draw = np.random.default_rng(0)
    asked = [item(noisy(float(draw.uniform(0.4, 6.0)), i), f"Question {i}?") for i in range(100)]
    chats = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "audio", "audio_url": "-"}, {"type": "text", "text": text}]}],
            add_generation_prompt=True, tokenize=False,
        )
        for text in (f"Question {i}?" for i in range(100))
    ]  # fmt: skip
    processor.tokenizer.padding_side = "left"
    theirs = []
    started = time.process_time()
    for first in range(0, 100, 20):
        waves = [each.waves[0] for each in asked[first : first + 20]]
        inputs = processor(
            text=chats[first : first + 20], audio=waves, sampling_rate=16_000, return_tensors="pt", padding=True
        )
        output = stock.generate(
            **inputs, max_new_tokens=12, min_new_tokens=1, do_sample=False, eos_token_id=stops, pad_token_id=stops[1]
        )
        for ids in output[:, inputs["input_ids"].shape[1] :].tolist():
            ends = [i for i, token in enumerate(ids) if token in stops]
            theirs.append(processor.tokenizer.decode(ids[: ends[0]] if ends else ids).strip())
    middle = time.process_time()
    lengths = [prompt_tokens(each.sample, sum(audio_tokens(len(wave)) for wave in each.waves)) for each in asked]
    ours = [""] * len(asked)
    generator = Generator(model, processor)
    for batch in plan_batches(lengths, rows=20, tokens=16384, new_tokens=DECODING.max_new_tokens):
        for i, answer in zip(batch, generator.generate([asked[i] for i in batch], DECODING), strict=True):
            ours[i] = answer.text
    ended = time.process_time()
    assert ours == theirs
    assert len(set(ours)) > 20
    print(f"stock padded {middle - started:.2f} s, ours {ended - middle:.2f} s of CPU")
    assert middle - started > 2 * (ended - middle)


def test_batching_does_not_change_greedy_answers(parts: tuple[Any, Any], items: list[Item]) -> None:
    generator = Generator(*parts)
    # Of unknown lengths.
    questions = [Question(each.sample, lambda waves=each.waves: waves, ("x",), "wer", "set") for each in items]
    texts = [
        [a.text for a in answer_all(questions, generator, DECODING, limits=Limits(rows, budget))]
        for rows, budget in ((1, 10_000), (4, 10_000), (64, 10_000), (64, 200))
    ]
    assert texts[1:] == texts[:1] * 3


def test_sampling_is_a_function_of_the_seed_and_encodes_each_clip_once(
    parts: tuple[Any, Any], items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = parts
    seen = []
    encode = model.model.audio_tower.forward
    monkeypatch.setattr(
        model.model.audio_tower, "forward", lambda f, n, **kw: seen.append(len(n)) or encode(f, n, **kw)
    )
    generator = Generator(model, processor)
    first = generator.sample(items, 4, Decoding(max_new_tokens=8, temperature=1.0, seed=3))
    assert seen == [6], "four answers about each of six clips"
    assert [len(answers) for answers in first] == [4] * len(items)
    assert any(len({a.text for a in answers}) > 1 for answers in first)

    def texts(drawn: list[list[Any]]) -> list[list[str]]:
        return [[a.text for a in answers] for answers in drawn]

    again = generator.sample(items, 4, Decoding(max_new_tokens=8, temperature=1.0, seed=3))
    other = generator.sample(items, 4, Decoding(max_new_tokens=8, temperature=1.0, seed=4))
    assert texts(first) == texts(again) != texts(other)


def test_stream_equals_generate(parts: tuple[Any, Any], items: list[Item]) -> None:
    generator = Generator(*parts)
    pieces: list[str] = []
    answer = generator.stream(items[1], pieces.append, DECODING)
    assert answer.text == generator.generate([items[1]], DECODING)[0].text
    # Streaming leaves special tokens out of what it prints.
    assert len("".join(pieces)) <= len(answer.text) + 2
