"""What transformers' own model and generation tests ask of a class, asked of ours.

Each test names the test of transformers' repository whose contract it checks ("mirrors ..."). The code is our own. What
differs by design is the table of docs/model_class.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from qa_train.model import UnpaddedQwen2AudioForConditionalGeneration
from qa_train.model.layers.attention import UNPADDED
from qa_train.model.layers.head import Head
from qa_train.model.unpadded import UnpaddedQwen2AudioModel
from tests.model.conftest import AUDIO_ID, Batch, Twins, make_config, make_twins

Ours = UnpaddedQwen2AudioForConditionalGeneration
SHORT = [[3, -20, 2], [5, -133, 4], [9]]
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def with_labels(twins: Twins, batch: Batch, **options: Any) -> tuple[Any, Any]:
    stock = twins.stock(**batch.padded(), labels=batch.labels, use_cache=False)
    return twins.ours(**batch.joined(), labels=batch.labels, **options), stock


def resized(model: Ours) -> None:
    """Mirrors test_resize_tokens_embeddings and test_resize_embeddings_untied."""
    model.resize_token_embeddings(97, mean_resizing=False)
    assert type(model.lm_head) is Head
    assert (model.lm_head.out_features, model.config.text_config.vocab_size) == (97, 97)
    with torch.no_grad():
        model.lm_head.weight[90:] = -30.0 * torch.sign(model.lm_head.weight[90:])


def plain(model: Ours) -> None:
    head = nn.Linear(32, 90, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head


def in_a_row(model: Ours) -> None:
    model.lm_head = nn.Sequential(model.lm_head, nn.Identity())


@pytest.mark.parametrize("change", [plain, in_a_row])
def test_another_head_gives_the_same_loss(twins: Twins, change: Any) -> None:
    change(twins.ours)
    found, stock = with_labels(twins, Batch(SHORT))
    close(found.loss, stock.loss)
    found.loss.backward()
    assert all(p.grad is not None for p in twins.ours.lm_head.parameters())


def test_a_resized_head_stays_a_head(twins: Twins) -> None:
    resized(twins.ours)
    twins.stock.resize_token_embeddings(97, mean_resizing=False)
    twins.stock.load_state_dict(twins.ours.state_dict())
    found, stock = with_labels(twins, Batch(SHORT))
    close(found.loss, stock.loss)
    twins.ours.resize_token_embeddings(80)
    assert twins.ours.lm_head.out_features == 80
    assert type(twins.ours.lm_head) is Head


def test_a_head_with_a_bias_uses_it(twins: Twins) -> None:
    linear = nn.Linear(32, 90)
    twins.ours.set_output_embeddings(linear)
    assert twins.ours.lm_head.weight is linear.weight
    batch = Batch(SHORT)
    found = twins.ours(**batch.joined(), labels=batch.labels).loss
    twins.ours.lm_head = linear
    close(found, twins.ours(**batch.joined(), labels=batch.labels).loss)


@pytest.mark.parametrize("saved", [None, ["lm_head"]], ids=["adapters", "copies"])
def test_peft_on_the_head(twins: Twins, saved: list[str] | None) -> None:
    peft = pytest.importorskip("peft")
    targets = ["q_proj"] if saved else ["q_proj", "lm_head"]
    config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=saved)
    adapted = peft.get_peft_model(twins.ours, config)
    batch = Batch(SHORT)
    _, stock = with_labels(twins, batch)
    loss = adapted(**batch.joined(), labels=batch.labels).loss
    close(loss, stock.loss)
    loss.backward()
    trained = [n for n, p in adapted.named_parameters() if "lm_head" in n and p.requires_grad]
    assert trained
    merged = adapted.merge_and_unload()
    assert type(merged.lm_head) is Head
    close(merged(**batch.joined(), labels=batch.labels).loss, stock.loss)


@pytest.mark.parametrize("main", ["ours", "stock"])
def test_an_assistant_hears_the_audio(twins: Twins, main: str) -> None:
    """Mirrors test_assisted_decoding_matches_greedy_search: same text; and unlike stock, the assistant is not deaf."""
    batch = Batch([[3, -133, 4]])
    inputs = batch.joined() if main == "ours" else batch.padded()
    assistant = make_twins().ours
    encoded, accepted = [], []
    assistant.model.audio_tower.register_forward_hook(lambda _m, _i, out: encoded.append(out[0].shape[0]))
    model = getattr(twins, main)
    model.model.language_model.register_forward_hook(lambda *_: accepted.append(1))
    found = model.generate(**inputs, assistant_model=assistant, **GREEDY)
    assert torch.equal(found, twins.stock.generate(**batch.padded(), **GREEDY))
    assert encoded == [33]
    # The assistant has the same weights: several of its tokens are right each time, and few calls of the main model do.
    assert len(accepted) < found.shape[1] - batch.input_ids.shape[1] or main == "stock"


def test_generate_from_embeddings(twins: Twins) -> None:
    """Mirrors test_generate_from_inputs_embeds."""
    ids = Batch([[6], [6]]).input_ids
    for options in ({}, {"num_beams": 2}, {"use_cache": False}):
        found = [
            model.generate(inputs_embeds=model.get_input_embeddings()(ids), **GREEDY, **options)
            for model in (twins.ours, twins.stock)
        ]
        assert torch.equal(*found)
        assert torch.equal(found[0], twins.ours.generate(input_ids=ids, **GREEDY, **options)[:, ids.shape[1] :])


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_lookup_num_tokens": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ],
    ids=lambda options: next(iter(options)) + "=" + str(next(iter(options.values()))),
)
def test_ways_to_generate_equal_stock(twins: Twins, options: dict[str, Any]) -> None:
    """Mirrors test_prompt_lookup_decoding_matches_greedy_search, test_beam_search_generate and their like."""
    batch = Batch([[3, -133, 4]])
    settings = {**GREEDY, "disable_compile": True, **options}
    assert torch.equal(
        twins.ours.generate(**batch.joined(), **settings), twins.stock.generate(**batch.padded(), **settings)
    )


@pytest.mark.parametrize("asked", [True, [1], [0, -1], 2])
def test_chosen_hidden_states(twins: Twins, asked: Any) -> None:
    """Mirrors test_hidden_states_output with a selection."""
    batch = Batch(SHORT)
    found = twins.ours(**batch.joined(), output_hidden_states=asked).hidden_states
    expected = twins.stock(**batch.padded(), output_hidden_states=asked, use_cache=False).hidden_states
    assert len(found) == len(expected)
    real = batch.attention_mask.bool()
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            close(one[real], other[real])


@pytest.mark.parametrize("kept", [0, 1, 3, torch.tensor([0, 4, 5]), torch.tensor([-1])], ids=str)
def test_logits_to_keep(twins: Twins, kept: Any) -> None:
    """Mirrors test_forward_with_logits_to_keep, with an index as the causal models of transformers take it."""
    batch = Batch(SHORT)
    whole = twins.ours(**batch.joined()).logits
    expected = whole[:, kept] if isinstance(kept, torch.Tensor) else whole[:, -kept:]
    close(twins.ours(**batch.joined(), logits_to_keep=kept).logits, expected)


def test_audio_under_a_mask_is_dropped_as_in_stock(twins: Twins) -> None:
    """transformers' tests of the class hide most of the audio's places by their mask."""
    batch = Batch(SHORT)
    batch.attention_mask[0, 5:] = 0
    batch.attention_mask[1, :9] = 0
    found = twins.ours(**batch.joined()).logits
    expected = twins.stock(**batch.padded(), use_cache=False).logits
    real = batch.attention_mask.bool()
    close(found[real], expected[real])


def test_the_class_without_head_loads_and_saves(twins: Twins, tmp_path: Path) -> None:
    """Mirrors test_save_load and test_model_is_loadable_from_base for the class without head."""
    twins.ours.save_pretrained(tmp_path / "whole")
    model = UnpaddedQwen2AudioModel.from_pretrained(tmp_path / "whole")
    batch = Batch(SHORT)
    expected = twins.ours.model(**batch.joined()).last_hidden_state
    assert torch.equal(model(**batch.joined()).last_hidden_state, expected)
    model.save_pretrained(tmp_path / "base")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["architectures"] == ["Qwen2AudioModel"]
    again = UnpaddedQwen2AudioModel.from_pretrained(tmp_path / "base")
    assert torch.equal(again(**batch.joined()).last_hidden_state, expected)


def test_eager_attention_is_honoured(twins: Twins, tmp_path: Path) -> None:
    """Mirrors test_sdpa_can_dispatch_composite_models, test_attention_outputs and test_eager_matches_sdpa_inference."""
    twins.ours.save_pretrained(tmp_path)
    model = Ours.from_pretrained(tmp_path, attn_implementation="eager")
    parts = (model.config, model.model.audio_tower.config, model.model.language_model.config)
    assert [part._attn_implementation for part in parts] == ["eager"] * 3
    batch = Batch(SHORT)
    found = model(**batch.joined(), output_attentions=True)
    length = batch.input_ids.shape[1]
    assert [tuple(a.shape) for a in found.attentions] == [(3, 4, length, length)] * 2
    real = batch.attention_mask.bool()
    close(found.logits[real], twins.ours(**batch.joined()).logits[real])


@pytest.mark.parametrize(
    ("asked", "of_parts"),
    [
        ("eager", ["eager", "eager"]),
        ("sdpa", ["sdpa", "sdpa"]),
        ({"text_config": "eager"}, [UNPADDED, "eager"]),
        ({"audio_config": "sdpa"}, ["sdpa", UNPADDED]),
    ],
    ids=str,
)
def test_attention_can_be_switched_later(twins: Twins, asked: Any, of_parts: list[str]) -> None:
    """Mirrors test_can_set_attention_dynamically and its composite form."""
    batch = Batch(SHORT)
    real = batch.attention_mask.bool()
    before = twins.ours(**batch.joined()).logits[real]
    twins.ours.set_attn_implementation(asked)
    parts = (twins.ours.model.audio_tower, twins.ours.model.language_model)
    assert [part.config._attn_implementation for part in parts] == of_parts
    close(twins.ours(**batch.joined()).logits[real], before)


def test_sdpa_and_a_stock_configuration_mean_our_own(twins: Twins) -> None:
    for config in (twins.stock.config, make_config()):
        model = Ours(config)
        assert model.model.audio_tower.config._attn_implementation == UNPADDED
        assert model.model.language_model.config._attn_implementation == UNPADDED


@pytest.mark.parametrize("asked", ["flash_attention_2", "flex_attention", "no_such_attention"])
def test_other_attention_is_refused_by_name(asked: str) -> None:
    config = make_config()
    config._attn_implementation = asked
    with pytest.raises(ValueError, match=asked):
        Ours(config)


def test_an_encoder_switched_to_attention_without_masks_is_refused(twins: Twins) -> None:
    setattr(twins.ours.config.audio_config, "_attn_implementation", "flash_attention_2")  # noqa: B010 (a private name)
    with pytest.raises(ValueError, match="takes no mask between segments"):
        twins.ours(**Batch(SHORT).joined())


def test_logits_beside_the_loss_on_request(twins: Twins) -> None:
    batch = Batch(SHORT)
    found, stock = with_labels(twins, batch, return_logits=True)
    real = batch.attention_mask.bool()
    close(found.logits[real], stock.logits[real])
    close(found.loss, stock.loss)
    assert list(found) == [name for name in stock if name not in ("past_key_values", "cache")]
    assert list(with_labels(twins, batch)[0]) == ["loss"]


class Rows(Dataset[dict[str, Any]]):
    """Two batches; each item is a whole one, so that no collator is needed."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> dict[str, Any]:
        batch = Batch([[3, -20, 2], [4, -50, 3]], seed=i)
        return {**batch.padded(), "labels": batch.labels}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_plain_trainer(twins: Twins, tmp_path: Path, smoothing: float) -> None:
    """Mirrors test_training and the Trainer's evaluation with metrics: equal numbers from both classes."""
    seen: dict[str, Any] = {}
    for name, model in (("ours", twins.ours), ("stock", twins.stock)):
        model.return_logits = True

        def metrics(found: Any, name: str = name) -> dict[str, float]:
            logits = found.predictions[0]
            real = found.label_ids != -100
            seen[name] = logits[real]
            return {"right": float((logits.argmax(-1) == found.label_ids)[real].mean())}

        arguments = TrainingArguments(
            output_dir=str(tmp_path / name),
            max_steps=2,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=1,
            label_smoothing_factor=smoothing,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=3,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Rows(),
            eval_dataset=Rows(),
            data_collator=lambda items: items[0],
            compute_metrics=metrics,
        )
        before = trainer.evaluate()
        seen[name + " loss"] = [before["eval_loss"], trainer.train().training_loss, before["eval_right"]]
    assert seen["ours loss"] == pytest.approx(seen["stock loss"], rel=1e-4)
    assert torch.as_tensor(seen["ours"]).shape == torch.as_tensor(seen["stock"]).shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_the_cpu(twins: Twins, dtype: torch.dtype) -> None:
    """Logits in the precision of the weights, and finite."""
    batch = Batch(SHORT)
    model = twins.ours.to(dtype)
    found = model(**batch.joined(), labels=batch.labels, return_logits=True)
    assert found.logits.dtype == dtype
    assert torch.isfinite(found.loss)


def test_without_audio_its_marks_are_refused(twins: Twins) -> None:
    """By design: stock answers deaf."""
    ids = torch.full((1, 4), AUDIO_ID)
    with pytest.raises(ValueError, match="no audio was given"):
        twins.ours(input_ids=ids)
    assert twins.stock(input_ids=ids).logits is not None
