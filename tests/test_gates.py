"""Gates of DPO: which readings count as a drift."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qa_train.config import GatesConfig
from qa_train.gates import Gates, Reading


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
