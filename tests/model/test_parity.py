"""A short run of scripts/check_parity.py: waveforms to gradients, against the stock model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_parity.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_parity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_parity"] = module
    spec.loader.exec_module(module)
    return module


def test_random_batches_equal_stock(script: ModuleType) -> None:
    found = script.check(batches=4, seed=1)
    assert found.counts["clips"] >= 4
    assert found.within, found


def test_a_difference_is_seen(script: ModuleType) -> None:
    ours, stock, processor = script.make_models("qwen2", moved=True)
    with torch.no_grad():
        ours.model.audio_tower.layers[1].fc2.bias[0] += 0.01
    found = script.Differences()
    for seed in range(3):
        script.compare(ours, stock, script.make_batch(np.random.default_rng(seed), processor, found.counts), found)
    assert not found.within
