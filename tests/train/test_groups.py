"""Rates by part and by layer: each parameter gets the rate its place asks for, with every optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from qa_train.config import LoraSettings, ModelConfig, PartConfig, PartsConfig, TrainerConfig
from qa_train.model import freeze
from qa_train.model.lora import add_adapters, plan_adapters
from qa_train.train.optimizer.groups import PartRates
from qa_train.train.optimizer.muon import muon_with_adamw
from qa_train.train.pretrain import PretrainTrainer
from tests.model.conftest import make_twins
from tests.train.conftest import metrics, run

PARTS = PartsConfig(
    encoder=PartConfig(learning_rate=1e-4, layer_decay=0.5),
    projector=PartConfig(weight_decay=0.0),
    llm=PartConfig(learning_rate=2e-3, weight_decay=0.3),
)


def rates_of(groups: list[dict[str, Any]], model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return found


def check_adamw(found: dict[str, tuple[float, float]]) -> None:
    # Two encoder layers: convolutions are layer 0, the norm after the layers is layer 3.
    for name, rate in (
        ("conv1.weight", 1e-4 / 8),
        ("layers.0.fc1.weight", 1e-4 / 4),
        ("layers.1.fc1.weight", 1e-4 / 2),
    ):
        assert found[f"model.audio_tower.{name}"] == pytest.approx((rate, 0.1))
    assert found["model.audio_tower.layer_norm.weight"] == pytest.approx((1e-4, 0.0))
    assert found["model.multi_modal_projector.linear.weight"] == pytest.approx((1e-3, 0.0))
    assert found["model.language_model.layers.1.mlp.up_proj.weight"] == pytest.approx((2e-3, 0.3))
    assert found["lm_head.weight"] == pytest.approx((2e-3, 0.3))
    assert found["model.language_model.norm.weight"] == pytest.approx((2e-3, 0.0))


def test_the_stock_optimizer_on_groups_of_the_parts(tmp_path: Path) -> None:
    model = make_twins().ours
    freeze(model, [])
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], learning_rate=1e-3, weight_decay=0.1, adam_beta2=0.9
    )
    trainer = PretrainTrainer(model=model, args=args)
    trainer.options = TrainerConfig(learning_rate=1e-3, weight_decay=0.1, parts=PARTS)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.9)
    found = rates_of(optimizer.param_groups, model)
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    check_adamw(found)


def test_muon_is_scaled_as_the_part_is() -> None:
    model = make_twins().ours
    freeze(model, [])
    rates = PartRates(model, PARTS, 1e-3)
    options = TrainerConfig(muon_learning_rate=4e-3, learning_rate=1e-3, weight_decay=0.1)
    optimizer = muon_with_adamw(model, options, rates=rates)
    found = rates_of(optimizer.param_groups, model)
    assert found["model.audio_tower.layers.1.fc1.weight"] == pytest.approx((4e-4 / 2, 0.1))
    assert found["model.language_model.layers.0.mlp.up_proj.weight"] == pytest.approx((8e-3, 0.3))
    assert found["lm_head.weight"] == pytest.approx((2e-3, 0.3))
    assert found["model.audio_tower.layers.1.fc1.bias"] == pytest.approx((1e-4 / 2, 0.0))


def test_adapters_have_the_rate_of_their_part() -> None:
    model = make_twins().ours
    cfg = ModelConfig(name="test", lora=LoraSettings(parts=["llm"], r=2), freeze=["encoder"])
    adapters = plan_adapters(model, cfg, seed=0)
    assert adapters is not None
    model = add_adapters(model, adapters)
    parts = PartsConfig(llm=PartConfig(layer_decay=0.5))
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = PartRates(model, parts, 1e-3).split([{"params": trained, "weight_decay": 0.0}])
    found = rates_of(groups, model)
    lora = {name: rate for name, (rate, _) in found.items() if "lora_" in name}
    assert {rate for name, rate in lora.items() if ".layers.0." in name} == {1e-3 * 0.5**2}
    assert {rate for name, rate in lora.items() if ".layers.1." in name} == {1e-3 * 0.5}
    assert {rate for name, (rate, _) in found.items() if name not in lora} == {1e-3}
    # Muon's orthogonal update is not for the two factors of an adapter.
    with pytest.raises(ValueError, match="no hidden matrix trains"):
        muon_with_adamw(model, TrainerConfig(muon_learning_rate=1.0))


def test_a_setting_without_effect_is_an_error() -> None:
    model = make_twins().ours
    freeze(model, ["encoder"])
    with pytest.raises(ValueError, match=r"trainer\.parts\.encoder has no effect"):
        PartRates(model, PARTS, 1e-3)


@pytest.mark.slow
def test_deepspeed_keeps_the_rates_and_recomputing_changes_nothing(tmp_path: Path, options: Any) -> None:
    words = [
        "trainer.parts.encoder.learning_rate=1e-4", "trainer.parts.encoder.layer_decay=0.5",
        "trainer.parts.projector.learning_rate=1e-2", "trainer.parts.llm.weight_decay=0.3",
    ]  # fmt: skip
    recompute = ["trainer.gradient_checkpointing.encoder=full", "trainer.gradient_checkpointing.llm=selective"]
    run("pretrain", *options("pretrain", tmp_path / "one"), *words)
    run("pretrain", *options("pretrain", tmp_path / "two"), *words, *recompute, "deepspeed=zero2", processes=2)
    losses = [[record["loss"] for record in metrics(tmp_path / name)] for name in ("one", "two")]
    np.testing.assert_allclose(*losses, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [[], ["model.freeze=[projector]", "model.lora.parts=[encoder,llm]"]], ids=["all", "lora"]
)
def test_selective_recomputation_finds_the_weights_that_zero3_has_cut(
    more: list[str], tmp_path: Path, options: Any
) -> None:
    recompute = [f"trainer.gradient_checkpointing.{part}=selective" for part in ("encoder", "llm")]
    # Cut are the smallest, too: norms are made again when their weights are elsewhere.
    zero = ["deepspeed=zero3", "deepspeed.config.zero_optimization.stage3_param_persistence_threshold=0"]
    run("pretrain", *options("pretrain", tmp_path / "one"), *more)
    run("pretrain", *options("pretrain", tmp_path / "two"), *more, *recompute, *zero, processes=2)
    for name in ("loss", "grad_norm"):
        found = [[record[name] for record in metrics(tmp_path / folder)] for folder in ("one", "two")]
        np.testing.assert_allclose(*found, rtol=2e-5 if name == "loss" else 1e-3)
