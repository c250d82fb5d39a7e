"""Short runs of scripts/benchmark_loader.py, whose path stays well ahead of the stock one, and benchmark_formats.py."""

from __future__ import annotations

import pytest
import torch

from tests import by_path


@pytest.mark.slow
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


def test_formats_are_read_in_place(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A short run of scripts/benchmark_formats.py, which refuses formats whose mel frames differ."""
    monkeypatch.syspath_prepend(by_path.SCRIPTS)
    monkeypatch.setattr("sys.argv", ["benchmark_formats.py", "4", "1", "1"])
    threads = torch.get_num_threads()
    try:
        by_path.script("benchmark_formats").main()
    finally:
        torch.set_num_threads(threads)
    rows = capsys.readouterr().out.splitlines()[-6:]
    assert [row[:12].strip() for row in rows][:3] == ["own shards", "WebDataset", "NeMo, tarred"]
    assert all("ms a clip" in row for row in rows if "not installed" not in row)
    assert sum("not installed" in row for row in rows) <= 2
