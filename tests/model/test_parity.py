"""A short run of scripts/check_parity.py: waveforms to gradients, against the stock model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests import by_path


@pytest.fixture(scope="module")
def script() -> Any:
    return by_path.script("check_parity")


def test_random_batches_equal_stock(script: Any) -> None:
    found = script.check(batches=2, seed=144)
    # This seed draws one of each kind: a row without audio, a clip of one token, one above 30 s.
    assert all(found.counts.values()), found.counts
    assert found.within, found


def test_a_difference_is_seen(script: Any) -> None:
    ours, stock, processor = script.make_models("qwen2", moved=True)
    with torch.no_grad():
        ours.model.audio_tower.layers[1].fc2.bias[0] += 0.01
    found = script.Differences()
    script.compare(ours, stock, script.make_batch(np.random.default_rng(0), processor, found.counts), found)
    assert found.counts["clips"]
    assert not found.within
