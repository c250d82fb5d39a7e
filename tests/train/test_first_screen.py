"""The first screen: its figures follow from the model and from what was measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qa_train.config import EncoderConfig, ModelConfig, RunConfig, StageConfig
from qa_train.train import forecast
from qa_train.train.first_screen import _planning, parameters, weights
from qa_train.train.forecast import expected_time
from qa_train.train.job.run import RunFolder


def test_parameters_by_part() -> None:
    model = torch.nn.Module()
    model.model = torch.nn.ModuleDict(
        {"audio_tower": torch.nn.Linear(1000, 300), "language_model": torch.nn.Linear(9, 9)}
    )
    model.model["audio_tower"].requires_grad_(False)
    assert parameters(model) == "0.3 M parameters, 90 of them train (llm 90)"
    model.requires_grad_(False)
    assert parameters(model).endswith("(nothing)")


def test_the_screen_knows_how_fast_data_are_planned() -> None:
    assert _planning(None, 27.3) == "27 samples per step, planned by another process of this machine"
    said = "4,000 samples per step; each machine plans 50,000 per second, enough for steps of 0.08 s or more"
    assert _planning(50_000.0, 4000.0) == said


def test_a_checkpoint_says_which_sources_it_replaces() -> None:
    fresh = ModelConfig(name="nano", encoder=EncoderConfig(source="package:whisper-tiny.en"))
    assert weights(fresh) == "encoder package:whisper-tiny.en, projector random, llm random"
    fresh.checkpoint = "runs/pretrain"
    assert weights(fresh) == "runs/pretrain, all parts (not read: model.encoder.source)"


def test_nothing_is_said_of_time_that_was_not_measured(tmp_path: Path) -> None:
    cfg = StageConfig(stage="sft", run=RunConfig(dir=str(tmp_path)))
    stage: Any = SimpleNamespace(cfg=cfg, run=RunFolder(cfg, is_main=True), resume=None, first_step=0)
    assert expected_time(stage, None, {}, [], 1) == "to be measured: shown after 3 steps"


def test_the_rehearsed_batch_stands_for_those_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "_operations", lambda *_: 3e9)
    cfg = StageConfig(stage="sft", run=RunConfig(dir=str(tmp_path)))
    cfg.trainer.max_steps, cfg.trainer.batches_per_step = 100, 4
    stage: Any = SimpleNamespace(cfg=cfg, resume=None, first_step=0)
    found = forecast.Rehearsal(batch_s=0.5, operations=1.5e9, update_s=1.0)
    # The usual batch has twice the operations: two of them in each of two processes, and the update.
    said = "about 5 min for 100 steps of 3 s, from a rehearsal step; shown again after 3 steps"
    assert expected_time(stage, found, {}, [], 2) == said
    assert "steps of 5 s" in expected_time(stage, found, {}, [], 1)
