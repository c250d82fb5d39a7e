"""Steps of a number of epochs, counted by the plan."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from qa_train.config import MixtureConfig
from qa_train.data import mixture_report
from qa_train.data.batches import open_data
from qa_train.data.mixture_report import steps_of_epochs
from tests.data.conftest import mixture


@pytest.mark.parametrize("epochs", [0.5, 1, 3])
@pytest.mark.parametrize("by", ["weight", "epochs"])
def test_the_last_step_is_the_one_that_completes_the_epochs(
    shards: dict[str, str], tokenizer: Any, by: str, epochs: float
) -> None:
    cfg = mixture(shards, mixture=MixtureConfig(by=by), shuffle_window=40)
    for source in cfg.sources.values():
        source.weight = 1.0
    if by == "epochs":
        # Few of its records have a translation, and records are what the mixture counts.
        del cfg.sources["st"]
    data = open_data(cfg, tokenizer, 80, seed=3, batches_per_step=2)
    steps = steps_of_epochs(data.plan, data.sources, epochs)
    samples = sum(source.eligible.counts.samples for source in data.sources)
    refs = [ref for k in range(2 * steps) for ref in data.plan.batch(k)]
    last = sum(len(data.plan.batch(k)) for k in range(2 * steps - 2, 2 * steps))
    assert len(refs) - last < epochs * samples <= len(refs)
    if by == "epochs":
        seen = Counter((ref.source, ref.row) for ref in refs)
        # All sources come to their ends together, but for the last window, which is shuffled and not read to its end.
        assert sum(count >= int(epochs) for count in seen.values()) >= 0.85 * samples or epochs < 1


def test_many_samples_are_extrapolated(shards: dict[str, str], tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(mixture(shards), tokenizer, 80, seed=3, batches_per_step=1)
    monkeypatch.setattr(mixture_report, "_EPOCH_WINDOWS", 40)
    exact = steps_of_epochs(data.plan, data.sources, 20)
    monkeypatch.setattr(mixture_report, "_EPOCH_WINDOWS", 4)
    assert steps_of_epochs(data.plan, data.sources, 20) == pytest.approx(exact, rel=0.03)


def test_a_source_with_max_epochs_counts_so_often(shards: dict[str, str], tokenizer: Any) -> None:
    cfg = mixture(shards)
    plain = open_data(cfg, tokenizer, 80, seed=3, batches_per_step=1)
    cfg.sources["asr"].max_epochs = 1
    limited = open_data(cfg, tokenizer, 80, seed=3, batches_per_step=1)
    saved = steps_of_epochs(plain.plan, plain.sources, 3) - steps_of_epochs(limited.plan, limited.sources, 3)
    mean = sum(len(plain.plan.batch(k)) for k in range(40)) / 40
    assert saved == pytest.approx(2 * plain.sources[0].eligible.counts.samples / mean, rel=0.25)
