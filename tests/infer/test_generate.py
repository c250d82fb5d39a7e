"""Batching, order, padding and stopping of the generator, with a stand-in model."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from fake_model import FakeModel, item, mel_of, processor, tone

from qa_train.data.audio.waveform import audio_tokens
from qa_train.data.text.template import encode_prompt
from qa_train.infer.encoded import EncodedClips, encode
from qa_train.infer.generate import Decoding, Generator, Item, plan_batches


@pytest.fixture
def generator() -> Generator:
    parts = processor()
    return Generator(FakeModel(parts.tokenizer), parts)


def test_plan_covers_every_item_once_within_the_budget() -> None:
    draw = random.Random(1)
    lengths = [draw.randrange(1, 300) for _ in range(200)] + [5000]
    batches = plan_batches(lengths, rows=16, tokens=2000, new_tokens=20)
    assert sorted(i for batch in batches for i in batch) == list(range(201))
    assert batches[0] == [200]
    for batch in batches[1:]:
        assert len(batch) <= 16
        assert len(batch) * (max(lengths[i] for i in batch) + 20) <= 2000
    # Sorted batches hold items of like length: little padding.
    waste = sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches)
    assert waste / sum(lengths) < 0.2


def test_answers_come_in_the_order_of_the_items(generator: Generator) -> None:
    seconds = [0.5, 2.0, 0.2, 1.0, 3.0, 0.3, 0.7]
    items = [item(tone(s)) for s in seconds] + [item(None)]
    answers = generator.generate(items)
    expected = [f"tone {audio_tokens(int(s * 16_000))}" for s in seconds] + ["0"]
    assert [a.text for a in answers] == expected
    assert len(generator.model.calls) == 1
    assert not any(a.truncated for a in answers)
    assert generator.model.training, "the model's mode must be given back"


def test_batch_is_left_padded_and_clips_are_encoded_unpadded(generator: Generator) -> None:
    waves = [tone(1.0), tone(0.3)]
    items = [*map(item, waves), item(None, "Hello")]
    batch = generator.batch(items)
    ((features, lengths),) = generator.model.model.audio_tower.calls
    assert lengths == [100, 30]
    assert torch.equal(features, torch.cat([mel_of(w) for w in waves], dim=1))
    assert batch["audio_states"].shape == (25 + audio_tokens(4800), 1)
    for row, each in enumerate(items):
        kept = batch["attention_mask"][row].bool()
        tokens = [audio_tokens(len(w)) for w in each.waves]
        assert batch["input_ids"][row][kept].tolist() == encode_prompt(each.sample, generator.tokenizer, tokens)
        assert kept[-1], "the last position must be real: the answer follows it"


def test_a_clip_over_30_s_is_given_in_windows(generator: Generator) -> None:
    batch = generator.batch([item(tone(61.0))])
    assert generator.model.model.audio_tower.calls[0][1] == [3000, 3000, 100]
    assert len(batch["audio_states"]) == 750 + 750 + 25
    assert (batch["input_ids"] == generator.tokenizer.convert_tokens_to_ids("<|AUDIO|>")).sum() == 1525


def test_a_clip_is_encoded_once_however_often_it_is_asked_about(generator: Generator) -> None:
    waves = [tone(0.5), tone(0.8), np.zeros(8000, dtype=np.float32)]
    first = generator.generate([item(w, text) for w in waves for text in ("What?", "Who?")])
    assert [a.text.split()[0] for a in first] == ["tone"] * 4 + ["silence"] * 2
    heard = sum(len(lengths) for _, lengths in generator.model.model.audio_tower.calls)
    assert heard == 3
    assert generator.generate([item(w, "Where?") for w in waves])[2].text == first[4].text
    assert sum(len(lengths) for _, lengths in generator.model.model.audio_tower.calls) == 3


def test_encoded_clips_stay_within_their_bytes_and_belong_to_an_encoder(generator: Generator) -> None:
    clips = EncodedClips(max_bytes=100)
    waves = [tone(0.1 * i) for i in range(3, 12)]
    expected = torch.cat(encode(generator.model, waves, 80))
    for _ in range(2):
        assert torch.equal(clips.states(generator.model, "a", waves, 80), expected)
        assert clips.num_bytes <= 100
    roomy = EncodedClips()
    calls = generator.model.model.audio_tower.calls
    before = len(calls)
    for encoder in ("a", "b", "a"):
        roomy.states(generator.model, encoder, waves, 80)
    assert len(calls) == before + 2


def test_truncated_answers_are_named(generator: Generator) -> None:
    (answer,) = generator.generate([item(tone(1.0))], Decoding(max_new_tokens=2))
    assert answer.truncated
    full = generator.generate([item(tone(1.0))])[0].text
    assert full.startswith(answer.text)
    assert answer.text != full


def test_tags_stay_in_the_text_and_end_tokens_do_not(generator: Generator) -> None:
    ids = [generator.tokenizer.convert_tokens_to_ids("<|en|>"), *generator.tokenizer.encode("yes")]
    text, truncated = generator._text([*ids, generator.pad_id, generator.pad_id])
    assert (text, truncated) == ("<|en|>yes", False)


def test_greedy_is_the_default_and_limits_are_explicit(generator: Generator) -> None:
    generator.generate([item(None)])
    call = generator.model.calls[0]
    assert call["do_sample"] is False
    assert (call["max_new_tokens"], call["min_new_tokens"]) == (256, 1)
    assert set(call["eos_token_id"]) == set(generator.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
    assert "audio_states" not in call


def test_sampling_draws_and_gives_the_random_state_back(generator: Generator) -> None:
    before = torch.get_rng_state()
    drawn = generator.sample([item(tone(0.5)), item(None)], 3, Decoding(temperature=0.8, seed=4))
    assert [len(answers) for answers in drawn] == [3, 3]
    assert {a.text for a in drawn[1]} == {"0"}
    assert torch.equal(before, torch.get_rng_state())
    call = generator.model.calls[0]
    assert (call["do_sample"], call["temperature"], call["top_k"]) == (True, 0.8, 0)
    with pytest.raises(ValueError, match="temperature > 0"):
        generator.sample([item(None)], 2, Decoding())


def test_stream_hands_over_the_answer_in_pieces(generator: Generator) -> None:
    pieces: list[str] = []
    answer = generator.stream(item(tone(0.5)), pieces.append)
    assert "".join(pieces) == answer.text == f"tone {audio_tokens(8000)}"


def test_an_item_needs_a_waveform_per_clip() -> None:
    with pytest.raises(ValueError, match="has 1 clips, but 0 waveforms"):
        Item(item(tone(0.5)).sample, ())
