"""The first screen: its figures follow from the model and from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from qa_train.config import EncoderConfig, ModelConfig, RunConfig, StageConfig
from qa_train.train.first_screen import expected_time, parameters, product_rate, weights
from qa_train.train.run import RunFolder


def test_parameters_by_part() -> None:
    model = torch.nn.Module()
    model.model = torch.nn.ModuleDict(
        {"audio_tower": torch.nn.Linear(1000, 300), "language_model": torch.nn.Linear(9, 9)}
    )
    model.model["audio_tower"].requires_grad_(False)
    assert parameters(model) == "0.3 M parameters, 0.0 M of them train (llm 0.0 M)"
    model.requires_grad_(False)
    assert parameters(model).endswith("(nothing)")


def test_a_checkpoint_says_which_sources_it_replaces() -> None:
    fresh = ModelConfig(name="nano", encoder=EncoderConfig(source="package:whisper-tiny.en"))
    assert weights(fresh) == "encoder package:whisper-tiny.en, projector random, llm random"
    fresh.checkpoint = "runs/pretrain"
    assert weights(fresh) == "runs/pretrain, all parts (not read: model.encoder.source)"


def test_a_resumed_run_takes_as_long_as_its_steps_did(tmp_path: Path) -> None:
    cfg = StageConfig(stage="sft", run=RunConfig(dir=str(tmp_path)))
    rows = [{"step": step, "loss": 1.0, "seconds": 60.0 if step == 1 else 2.0} for step in range(1, 41)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage: Any = SimpleNamespace(cfg=cfg, run=RunFolder(cfg, is_main=True), resume=tmp_path / "checkpoint-40")
    # 60 of 100 steps are left; the slow first one does not count.
    assert expected_time(stage, {}, [], 1) == "2 min for 60 steps (2 s each, as before the restart)"


def test_the_rate_of_products_is_plausible() -> None:
    assert 1e9 < product_rate() < 1e15
