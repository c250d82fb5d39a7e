"""A run that is killed at random moments ends as one that was not; the long version is scripts/check_faults.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.train.conftest import ROOT, TIMEOUT_S, environment

TWO = ["--ranks", "2", "--deepspeed"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], [*TWO, "zero2"], [*TWO, "zero3"]], ids=["one process", "ZeRO-2", "ZeRO-3"])
def test_three_kills_change_nothing(more: list[str]) -> None:
    words = ["--kills", "3", "--steps", "8", "--save-steps", "2", "--seed", "1", *more]
    done = subprocess.run(
        [sys.executable, "scripts/check_faults.py", *words], env=environment(), cwd=ROOT, capture_output=True,
        text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    figures = json.loads(done.stdout.splitlines()[-1].removeprefix("results: "))
    assert figures["kills"] == 3
    assert figures["faults"] == []
    assert figures["most_lost_steps"] <= 2
