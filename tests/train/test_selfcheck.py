"""What a start finds out before it costs hours."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qa_train.config import StageConfig
from qa_train.train.safety import selfcheck
from qa_train.train.safety.guards import StopRun


def test_ranks_that_differ_are_named() -> None:
    facts = [{"torch": "2.13", "settings": "a"}, {"torch": "2.13", "settings": "a"}, {"torch": "2.12", "settings": "a"}]
    assert selfcheck.differences(facts[:2]) == ""
    assert selfcheck.differences(facts) == "torch is 2.13 on rank 0 and 2.12 on rank 2"
    assert selfcheck.check_ranks(StageConfig()) == "1 process"


def test_a_checkpoint_that_would_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1000, 1000, bias=False)
    model.weight.requires_grad_(False)
    assert selfcheck.checkpoint_bytes(model) == 4_000_000
    model.weight.requires_grad_(True)
    assert selfcheck.checkpoint_bytes(model) == 16_000_000
    assert "GB free" in selfcheck.check_storage(tmp_path, model)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 15_000_000))
    with pytest.raises(ValueError, match=r"one checkpoint takes about 0\.02 GB"):
        selfcheck.check_storage(tmp_path, model)


class Listener(torch.nn.Module):
    """Its loss depends on the audio as much as ``ear``; dropout would show a forgotten training mode."""

    def __init__(self, ear: float) -> None:
        super().__init__()
        self.ear = ear
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, input_ids: torch.Tensor, input_features: torch.Tensor, **kwargs: Any) -> Any:
        assert (kwargs["labels"] != -100).sum() == 2
        return SimpleNamespace(loss=self.dropout(self.ear * input_features).sum() + input_ids.sum())


def batch(stage: str) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 2, 3, 4]])
    more = {"labels": torch.tensor([[-100, -100, 3, 4]])}
    if stage == "dpo":
        more = {"completion_mask": torch.tensor([[0, 0, 1, 1]]), "ref_chosen_logps": torch.zeros(1)}
    return {"input_ids": ids, "input_features": torch.ones(8, 10), **more}


@pytest.mark.parametrize("stage", ["pretrain", "dpo"])
def test_the_probe_finds_a_deaf_model(stage: str) -> None:
    model = Listener(0.3).train()
    random = torch.get_rng_state()
    assert selfcheck.probe_audio(model, batch(stage)) == "audio reaches the model"
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(StopRun, match="does not reach the model"):
        selfcheck.probe_audio(Listener(0.0), batch(stage))
    silence = batch(stage) | {"input_features": torch.zeros(8, 10)}
    assert "not probed" in selfcheck.probe_audio(Listener(0.0), silence)
