"""Gates of DPO: which readings count as a drift."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from qa_train.callbacks.gates import Gates, Reading
from qa_train.config import GatesConfig


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (Reading(5, 0.209, 10.0), None),
        (Reading(5, 0.221, 10.0), "rose by 2.1 points to 22.1%"),
        (Reading(5, 0.1, 13.1), "13.1 words instead of 10.0"),
        (Reading(5, 0.1, 7.6), "7.6 words instead of 10.0"),
        (Reading(5, 0.1, 7.7), None),
    ],
)
def test_limits(now: Reading, words: str | None) -> None:
    gate = SimpleNamespace(options=GatesConfig(), questions=[None] * 8)
    found = Gates.verdict(gate, Reading(0, 0.2, 10.0), now)  # type: ignore[arg-type]
    assert found is None if words is None else words in str(found)


def test_readings_of_steps_that_are_taken_again_go(tmp_path: Path) -> None:
    gate = SimpleNamespace(path=tmp_path / "gates.jsonl")
    for step in (0, 2, 4):
        Gates._keep(gate, Reading(step, 0.1, 5.0))  # type: ignore[arg-type]
    with gate.path.open("a") as file:
        file.write('{"step": 6, "we')
    assert Gates._forget_after(gate, 3)  # type: ignore[arg-type]
    assert [json.loads(line)["step"] for line in gate.path.read_text().splitlines()] == [0, 2]
    # A run from the beginning compares with its own start.
    assert not Gates._forget_after(gate, 0)  # type: ignore[arg-type]
    assert gate.path.read_text() == ""
