"""The Python blocks of the page on the model class, executed in order."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.model import test_stock_contracts
from tests.model.stored import write_model
from tests.train.conftest import ROOT

PAGE = (ROOT / "docs/model_class.md").read_text()


def test_the_blocks_of_the_page_work(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    names: dict[str, Any] = {"FOLDER": str(write_model(tmp_path / "model")), "OUT": str(tmp_path / "out"), "WAVE": wave}
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == PAGE.count("```") // 2
    for block in blocks:
        exec(block, names)
    rows, length = names["inputs"]["input_ids"].shape
    vocabulary = names["last"].shape[2]
    assert names["last"].shape == (rows, 2, vocabulary)
    assert names["both"].logits.shape == (rows, length, vocabulary)
    assert torch.equal(names["both"].loss, names["loss"])
    assert [h is None for h in names["chosen"]].count(False) == 1
    assert names["by_row"].shape == (rows,)
    assert names["maps"][0].shape[-2:] == (length, length)
    architectures = json.loads((tmp_path / "out/config.json").read_text())["architectures"]
    assert architectures == ["Qwen2AudioForConditionalGeneration"]


def test_the_contracts_of_the_page_are_those_of_the_tests() -> None:
    tests = Path(test_stock_contracts.__file__).read_text()
    named = set(re.findall(r"`(test_\w+)`", PAGE.partition("## Whose contracts")[2]))
    assert named == set(re.findall(r"\btest_\w+", "".join(re.findall(r'"""Mirrors (.*?)"""', tests, flags=re.DOTALL))))
