"""What a step records: useful operations, skipped samples by reason, learning rates by part."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qa_train.config import PartConfig, PartsConfig, StageConfig, TrainerConfig
from qa_train.model import build_model
from qa_train.model.flops import Regime, Shapes, Work, training_flops
from qa_train.train.numbers import throughput
from qa_train.train.numbers.throughput import Throughput, peak_flops
from qa_train.train.optimizer.groups import learning_rates
from tests.planner.test_measured import inputs, model_config


def test_useful_operations_are_those_of_the_formula() -> None:
    cfg = StageConfig(stage="sft", model=model_config(freeze=["encoder"]))
    model, _ = build_model(cfg.model)
    batch, work = inputs(model.config.audio_token_id)
    found = Throughput(cfg, model.config)
    numbers = dict(zip(found.NAMES, found.count(batch).tolist(), strict=True))
    expected = training_flops(Shapes.of(model.config), work, Regime(False, True, True, 0)).total
    assert numbers["useful_flops"] == pytest.approx(expected)
    assert numbers["tokens"] == sum(work.documents)
    # Of a pair, both answers are useful.
    pair = {key: batch[key][:2] for key in ("input_ids", "attention_mask")}
    pair["completion_mask"] = torch.zeros_like(pair["attention_mask"]).index_fill(1, torch.tensor([5, 6]), 1)
    numbers = dict(zip(found.NAMES, found.count(pair).tolist(), strict=True))
    alone = Work([], pair["attention_mask"].sum(1).tolist(), 4)
    expected = training_flops(Shapes.of(model.config), alone, Regime(False, True, True, 0)).total
    assert numbers["useful_flops"] == pytest.approx(expected)


def test_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = StageConfig(stage="sft", model=model_config())
    config = build_model(cfg.model)[0].config
    monkeypatch.setattr(throughput, "peak_flops", lambda: 0.5e12)
    numbers = dict.fromkeys(Throughput.NAMES, 0.0) | {
        "rows": 4.0,
        "useful_flops": 2e12,
        "data_wait_s": 0.0,
        "checkpoint_s": 0.0,
    }
    record = Throughput(cfg, config, devices=2).rates({**numbers, "skipped": {"bad audio": 2, "unreadable": 0}}, 4.0)
    assert record["useful_tflops_per_s"] == pytest.approx(0.5)
    assert record["useful_mfu"] == pytest.approx(0.5)
    assert record["skipped_samples"] == record["skipped/bad audio"] == 2
    assert "skipped/unreadable" not in record
    monkeypatch.setattr(throughput, "peak_flops", lambda: None)
    assert "useful_mfu" not in Throughput(cfg, config).rates({**numbers, "skipped": {}}, 4.0)


def test_cards_are_known_by_the_names_that_drivers_give(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops() is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA GeForce RTX 4090": 165e12,
             "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA L40S": 362e12, "Something else": None}  # fmt: skip
    for name, expected in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert peak_flops() == expected, name


def test_learning_rates_by_part() -> None:
    options = TrainerConfig(learning_rate=1e-3, parts=PartsConfig(encoder=PartConfig(learning_rate=1e-4)))
    scheduler = SimpleNamespace(base_lrs=[1e-4, 1e-3])
    found = learning_rates(5e-5, scheduler, options)
    assert found["learning_rate/encoder"] == pytest.approx(5e-5)
    assert found["learning_rate/llm"] == pytest.approx(5e-4)
    assert learning_rates(5e-5, scheduler, TrainerConfig()) == {}
