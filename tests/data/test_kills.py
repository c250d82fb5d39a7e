"""A job killed at random points, resumed at other shapes: nothing is repeated or lost.

KILLS=50 pytest tests/data/test_kills.py -k exactly
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qa_train.data.batches import Batches, open_data
from qa_train.data.loader import delivered
from tests.data import killed_jobs
from tests.data.conftest import mixture


@pytest.mark.slow
def test_killed_jobs_continue_exactly() -> None:
    kills = int(os.environ.get("KILLS", "5"))
    result = killed_jobs.check(kills=kills, steps=45, seed=1)
    assert result["kills"] >= kills
    assert result["steps"] == 45


def test_a_wrong_order_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself can fail: a job that forgets its state."""
    monkeypatch.setattr(killed_jobs, "COMMIT_STEPS", 1)
    real = killed_jobs.life

    def forgetful(cfg: Any, folder: Path, steps: int, *shape: Any) -> bool:
        done = bool(real(cfg, folder, steps, *shape))
        state = folder / "state.json"
        state.write_text(state.read_text().replace('"log": ["', '"log": ["lost", "'))
        return done

    monkeypatch.setattr(killed_jobs, "life", forgetful)
    with pytest.raises(ValueError, match="the order differs"):
        killed_jobs.check(kills=0, steps=3, seed=0)


def test_the_shape_may_change_in_mid_run(shards: dict[str, str], tokenizer: Any) -> None:
    """World size, workers and batches per step change at every stop; the order of samples does not."""

    def opened(per_step: int) -> Batches:
        return open_data(mixture(shards), tokenizer, 80, seed=3, batches_per_step=per_step)

    whole = list(delivered(opened(4), 0, 48, 1, 0))
    seen: list[list[str]] = []
    state: tuple[int, ...] | None = None
    first, before = 0, 4
    for per_step, world, workers, steps in ((4, 1, 3, 3), (4, 4, 0, 3), (8, 2, 1, 2), (2, 2, 0, 4)):
        data = opened(per_step)
        if state is not None:
            data.plan.seek(*state)
            # The trainer counts in steps: the next one has another first batch when steps have another size.
            first = first // before * per_step
        seen += delivered(data, first, steps * per_step, world, workers)
        first, before = first + steps * per_step, per_step
        state = data.plan.seek_hint(first)
    assert seen == whole
