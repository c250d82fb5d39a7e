"""A short run of scripts/benchmark_loader.py: the reading path stays well ahead of the stock one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_loader.py"


def test_reading_is_faster_than_a_plain_pipeline_of_the_stock_parts() -> None:
    spec = importlib.util.spec_from_file_location("benchmark_loader", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    try:
        result = module.measure(clips=20, seconds=5.0, rounds=2)
    finally:
        torch.set_num_threads(threads)
    # CPU time on a busy machine varies by a factor of two; docs/lab/data.md has the figures of a quiet one.
    assert result["ours"]["clips_per_s"] > 1.8 * result["webdataset"]["clips_per_s"]
    assert result["ours"]["times_real_time"] > 300
