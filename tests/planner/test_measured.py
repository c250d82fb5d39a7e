"""The planner's bytes against what small models really hold: within 10 %."""

from __future__ import annotations

import contextlib
import gc
import io
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from qa_train.config import EncoderConfig, LanguageModelConfig, LoraSettings, ModelConfig, StageConfig
from qa_train.model import build_model, freeze
from qa_train.model.flops import Shapes, Work
from qa_train.model.layers.costs import Precision, Trained
from qa_train.model.layers.lengths import audio_tokens, mel_columns
from qa_train.planner.activations import activations
from qa_train.planner.memory import memory
from qa_train.planner.sizes import measure
from tests.cuda_without_gpu.pretended import Held

pytestmark = pytest.mark.slow
RANK = 4
SEGMENTS = [800, 1000, 600]
TEXT, ANSWER = 60, 30
ENCODER = {"num_mel_bins": 80, "max_source_positions": 1500, "d_model": 160, "encoder_layers": 3,
           "encoder_attention_heads": 4, "encoder_ffn_dim": 640}  # fmt: skip
LLM = {"model_type": "qwen2", "vocab_size": 600, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
       "num_key_value_heads": 4, "intermediate_size": 700, "max_position_embeddings": 8192}  # fmt: skip


def model_config(dtype: str = "float32", family: str = "qwen2", **more: Any) -> ModelConfig:
    llm = LanguageModelConfig(config={**LLM, "model_type": family})
    encoder = EncoderConfig(config=dict(ENCODER))
    return ModelConfig(name="small", tokenizer="builtin:nano", dtype=dtype, encoder=encoder, llm=llm, **more)


def inputs(audio_id: int) -> tuple[dict[str, torch.Tensor], Work]:
    """Three clips, each with 30 tokens of prompt and 30 of answer behind its audio."""
    audio = [audio_tokens(n) for n in SEGMENTS]
    documents = [n + TEXT for n in audio]
    ids, mask = torch.full((3, max(documents)), 5), torch.zeros(3, max(documents), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, n in enumerate(audio):
        ids[row, :n], mask[row, : n + TEXT], labels[row, n + TEXT - ANSWER : n + TEXT] = audio_id, 1, 5
    lengths = torch.tensor(SEGMENTS)
    features = torch.randn(80, int(mel_columns(lengths, 3000).sum()))
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "input_features": features}
    return {**batch, "feature_lengths": lengths}, Work(SEGMENTS, documents, 3 * ANSWER)


def held(model: Any, batch: dict[str, torch.Tensor], autocast: bool) -> int:
    """Bytes that live after the forward pass, without the weights themselves: what the backward pass needs."""
    with contextlib.ExitStack() as stack:
        if autocast:
            stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        counter = stack.enter_context(Held(model, "cpu", batch.values()))
        loss = model(**batch, use_cache=False).loss
        gc.collect()
        found = counter.now
    assert loss.requires_grad
    return found


ADAPTED = {False: r"model\.language_model\.layers\..*_proj", True: r"model\..*\.layers\..*(_proj|fc1|fc2)"}
WHOLE, FROZEN, PASSED = Trained(whole=True), Trained(), Trained(passes=True)


@pytest.mark.parametrize(
    ("dtype", "autocast", "mode", "frozen", "encoder", "llm"),
    [
        ("float32", False, "none", [], WHOLE, WHOLE),
        ("bfloat16", False, "none", [], WHOLE, WHOLE),
        ("float32", True, "none", [], WHOLE, WHOLE),
        ("float32", False, "full", [], WHOLE, WHOLE),
        ("bfloat16", False, "full", [], WHOLE, WHOLE),
        ("float32", False, "selective", [], WHOLE, WHOLE),
        ("bfloat16", False, "selective", [], WHOLE, WHOLE),
        ("float32", True, "selective", [], WHOLE, WHOLE),
        ("float32", False, "none", ["encoder"], FROZEN, WHOLE),
        ("float32", False, "none", ["llm"], WHOLE, PASSED),
        ("bfloat16", False, "none", ["encoder", "projector"], FROZEN, Trained(rank=RANK, adapter_copy=4)),
        ("float32", True, "none", ["encoder", "projector"], FROZEN, Trained(rank=RANK, adapter_copy=2)),
        ("bfloat16", True, "none", ["encoder", "projector"], FROZEN, Trained(rank=RANK, adapter_copy=2)),
        ("float32", False, "selective", ["encoder", "projector"], FROZEN, Trained(rank=RANK)),
        ("float32", False, "none", ["encoder", "projector"], FROZEN, Trained(rank=RANK)),
        ("float32", False, "none", ["encoder", "projector"], Trained(rank=RANK), Trained(rank=RANK)),
        ("float32", False, "selective", ["encoder", "projector"], Trained(rank=RANK), Trained(rank=RANK)),
        ("float32", False, "full", ["encoder", "projector"], Trained(rank=RANK), Trained(rank=RANK)),
        ("bfloat16", False, "none", ["encoder", "projector"], *[Trained(rank=RANK, adapter_copy=4)] * 2),
        ("float32", True, "none", ["encoder", "projector"], *[Trained(rank=RANK, adapter_copy=2)] * 2),
        ("bfloat16", True, "none", ["encoder", "projector"], *[Trained(rank=RANK, adapter_copy=2)] * 2),
        ("bfloat16", True, "selective", ["encoder", "projector"], *[Trained(rank=RANK, adapter_copy=2)] * 2),
    ],
)  # fmt: skip
def test_activations_are_what_autograd_saves(
    dtype: str, autocast: bool, mode: str, frozen: list[str], encoder: Trained, llm: Trained
) -> None:
    saved, planned = saved_and_planned(model_config(dtype), autocast, mode, frozen, encoder, llm)
    assert saved == pytest.approx(planned, rel=0.1)


@pytest.mark.parametrize(
    ("dtype", "mode", "frozen", "encoder", "llm"),
    [
        ("bfloat16", "none", [], WHOLE, WHOLE),
        ("bfloat16", "selective", [], WHOLE, WHOLE),
        ("float32", "none", ["llm"], WHOLE, PASSED),
    ],
)
def test_norms_of_queries_and_keys_are_counted(
    dtype: str, mode: str, frozen: list[str], encoder: Trained, llm: Trained
) -> None:
    """Without them 10 to 20 % would be missing."""
    saved, planned = saved_and_planned(model_config(dtype, "qwen3"), False, mode, frozen, encoder, llm)
    assert saved == pytest.approx(planned, rel=0.03)


def saved_and_planned(
    cfg: ModelConfig, autocast: bool, mode: str, frozen: list[str], encoder: Trained, llm: Trained
) -> tuple[float, float]:
    """Bytes that autograd keeps for the backward pass, and those of the plan."""
    dtype = cfg.dtype
    torch.manual_seed(0)
    model: Any = build_model(cfg)[0].train()
    freeze(model, frozen)
    shapes, base = Shapes.of(model.config), model
    batch, work = inputs(model.config.audio_token_id)
    if llm.adapters:
        model = get_peft_model(base, LoraConfig(r=RANK, target_modules=ADAPTED[encoder.adapters]))
    base.set_recompute(encoder=mode, llm=mode)
    planned = activations(shapes, work, Precision.of(dtype, autocast=autocast, cpu=True), encoder, llm, (mode, mode))
    # The head keeps the log-probabilities of its rows until the backward pass, which makes two more of them.
    expected = planned.encoder + planned.llm + planned.logits / 3
    if autocast and dtype == "float32":
        # Every weight of a product has a copy in bfloat16.
        expected += 2 * (shapes.llm_weights + (0 if llm.adapters else shapes.encoder.weights))
    return held(model, batch, autocast), expected


def test_weights_gradients_and_states_of_plain_training() -> None:
    cfg = StageConfig(stage="sft", model=model_config(freeze=["encoder"]))
    model: Any = build_model(cfg.model)[0].train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    batch, work = inputs(model.config.audio_token_id)
    model(**batch, use_cache=False).loss.backward()
    optimizer.step()
    shapes = Shapes.of(model.config)
    kept = activations(shapes, work, Precision.of("float32", cpu=True), FROZEN, WHOLE, ("none", "none"))
    planned = memory(cfg, measure(cfg.model), 1, kept).kinds
    states = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert planned["weights"] == pytest.approx(sum(p.nbytes for p in model.parameters()), rel=0.001)
    assert planned["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert planned["optimizer states"] == sum(value.nbytes for value in states)
    written = io.BytesIO()
    torch.save(optimizer.state_dict(), written)
    assert written.tell() == pytest.approx(planned["optimizer states"], rel=0.1)


@pytest.mark.parametrize(("parts", "frozen"), [(["llm"], ["encoder"]), (["llm", "encoder"], ["projector"])])
def test_adapters_are_counted_as_peft_makes_them(parts: list[str], frozen: list[str]) -> None:
    from qa_train.model.lora import add_adapters, plan_adapters

    cfg = model_config(freeze=frozen, lora=LoraSettings(parts=parts, r=5))
    model, _ = build_model(cfg)
    plan = plan_adapters(model, cfg, seed=0)
    assert plan is not None
    adapted: Any = add_adapters(model, plan)
    sizes = measure(cfg)
    assert sizes.trained_parameters == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert sizes.parameters == sum(p.numel() for p in adapted.parameters())
