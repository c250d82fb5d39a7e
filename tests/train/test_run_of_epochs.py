"""A run that is asked for epochs instead of steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.train.conftest import metrics, run

Options = Callable[[str, Path], list[str]]


def test_a_run_of_epochs_counts_its_steps(options: Options, tmp_path: Path) -> None:
    """It says how many, ends there, is finished for as many or fewer epochs, and goes on for more."""
    words = [*options("sft", tmp_path / "run"), "trainer.epochs=0.5", "trainer.label_smoothing_factor=0.1"]
    done = run("sft", *words, "trainer.neftune_noise_alpha=5")
    # TRL takes its options for something else, and would warn of an extra forward pass that nothing here does.
    assert "label_smoothing_factor" not in done.stderr
    steps = len(metrics(tmp_path / "run"))
    assert f"{steps} steps of" in done.stdout
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["steps"] == steps
    assert f"finished after {steps} steps" in run("sft", *words).stdout
    more = run("sft", *words, "trainer.epochs=1")
    assert f"resuming from checkpoint-{steps}" in more.stdout
    assert len(metrics(tmp_path / "run")) > 1.5 * steps
