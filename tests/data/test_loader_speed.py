"""A short run of scripts/benchmark_loader.py: the reading path stays well ahead of the stock one."""

from __future__ import annotations

import torch

from tests import by_path


def test_reading_is_faster_than_a_plain_pipeline_of_the_stock_parts() -> None:
    module = by_path.script("benchmark_loader")
    threads = torch.get_num_threads()
    try:
        result = module.measure(clips=20, seconds=5.0, rounds=2)
    finally:
        torch.set_num_threads(threads)
    # CPU time on a busy machine varies by a factor of two; docs/lab/data.md has the figures of a quiet one.
    assert result["ours"]["clips_per_s"] > 1.8 * result["webdataset"]["clips_per_s"]
    assert result["ours"]["times_real_time"] > 300
