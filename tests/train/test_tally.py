"""The sums of a step by source, against a plain loop; what two ranks add up, against one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qa_train.train.numbers import tally as tally_module
from qa_train.train.numbers.tally import PAIR_VALUES, Tally, pair_curves, pair_values, peak_memory_gb, token_curves

ALONE = SimpleNamespace(num_processes=1, process_index=0)


def micro_batch(sources: list[int], labels: list[list[int]], passes: list[float]) -> dict[str, torch.Tensor]:
    return {
        "labels": torch.tensor(labels),
        "row_sources": torch.tensor(sources, dtype=torch.long),
        "passes": torch.tensor(passes, dtype=torch.float64),
    }


BATCHES = [
    ([0, 2, 0], [[-100, 5, 6, 7], [-100, -100, 8, -100], [9, -100, -100, 3]], [0.0, 0.0, 0.0]),
    ([2], [[-100, 4, 4, 4]], [1.5, 0.0, 0.25]),
]
LOSSES = [torch.tensor([6.0, 2.0, 0.5]), torch.tensor([1.0])]


def step(batches: list[Any], losses: list[torch.Tensor]) -> Tally:
    tally = Tally(["a", "never", "c"], [0, 2], ("loss",))
    given = [micro_batch(*batch) for batch in batches]
    tally.begin(given)
    assert all(set(batch) == {"labels"} for batch in given), "the model knows nothing of sources"
    for loss in losses:
        tally.add(loss[:, None])
    return tally


def test_loss_is_per_supervised_token_of_its_source() -> None:
    record = token_curves(step(BATCHES, LOSSES).record(ALONE))
    # The first label of a row is predicted from nothing and does not count.
    assert record["tokens/a"] == 4
    assert record["tokens/c"] == 4
    assert record["loss/a"] == pytest.approx(6.5 / 4)
    assert record["loss/c"] == pytest.approx(3.0 / 4)
    assert (record["epoch/a"], record["epoch/c"]) == (1.5, 0.25)
    assert not [name for name in record if "never" in name]
    assert 0 < record["peak_memory_gb"] < 1000


def test_two_ranks_add_up_to_one() -> None:
    halves = [step(BATCHES[:1], LOSSES[:1]), step(BATCHES[1:], LOSSES[1:])]
    sent: list[torch.Tensor] = []
    accelerator = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda value, how: sent.append(value) or value)
    for rank, half in enumerate(halves):
        accelerator.process_index = rank
        half.record(accelerator)
    accelerator.reduce = lambda value, how: sum(sent)
    together = token_curves(halves[0].record(accelerator))
    alone = token_curves(step(BATCHES, LOSSES).record(ALONE))
    together.pop("peak_memory_gb"), alone.pop("peak_memory_gb")
    assert together == alone


def test_a_batch_without_a_usable_sample_counts_nowhere() -> None:
    tally = step([([], [[-100, -100]], [0.1, 0.0, 0.0])], [torch.tensor([0.0])])
    record = token_curves(tally.record(ALONE))
    assert record["tokens/a"] == 0
    assert "loss/a" not in record


def test_a_gpu_also_records_what_torch_holds_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 64e9)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 69.7e9)
    assert peak_memory_gb() == {"peak_memory_gb": 64.0, "peak_reserved_gb": 69.7}
    record = token_curves(step(BATCHES, LOSSES).record(ALONE))
    assert (record["peak_memory_gb"], record["peak_reserved_gb"]) == (64.0, 69.7)


def test_of_two_ranks_the_one_that_needs_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each figure by itself: one rank may use more, and the other hold more."""
    sent: list[torch.Tensor] = []
    accelerator = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda value, how: sent.append(value) or value)
    for rank, peaks in enumerate(({"a": 5.0, "b": 6.0}, {"a": 4.0, "b": 8.0})):
        monkeypatch.setattr(tally_module, "peak_memory_gb", lambda peaks=peaks: peaks)
        accelerator.process_index = rank
        step(BATCHES, LOSSES).record(accelerator)
    accelerator.reduce = lambda value, how: sum(sent)
    assert step(BATCHES, LOSSES).record(accelerator)["memory"] == {"a": 5.0, "b": 8.0}


def test_values_leave_their_device_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = step(BATCHES * 4, LOSSES * 4)
    copies: list[int] = []
    copy = torch.Tensor.cpu
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda self: (self.dtype == torch.float32 and copies.append(1)) or copy(self)
    )
    tally.record(ALONE)
    assert len(copies) == 1


CHOSEN, REJECTED = torch.tensor([0.3, -0.1]), torch.tensor([0.1, 0.2])
MASK = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]])
# TRL's means; those of earlier micro-batches come first.
REPORTED = {
    name: [9.0, mean]
    for name, mean in {
        "entropy": 2.0, "logits/chosen": 2.0, "logits/rejected": 3.0, "mean_token_accuracy": 0.75,
        "rewards/chosen": 0.1, "rewards/rejected": 0.15, "rewards/accuracies": 0.5, "rewards/margins": -0.05,
        "logps/chosen": -3.5, "logps/rejected": -5.5,
    }.items()
}  # fmt: skip


def gathered() -> list[torch.Tensor]:
    """What TRL gathers, in its order."""
    # Entropy, tokens of answers, of the batch, logits and tokens of both answers, right tokens and tokens of chosen.
    sums = [torch.tensor(value) for value in (18.0, 9, 30, 8.0, 4, 15.0, 5, 3, 4)]
    logps = [torch.tensor([-3.0, -4.0]), torch.tensor([-5.0, -6.0])]
    return [*sums, CHOSEN, REJECTED, (CHOSEN > REJECTED).float(), CHOSEN - REJECTED, *logps]


def test_values_of_another_trl_are_refused() -> None:
    whole = gathered()
    for other in (whole[::-1], whole[:-1], whole[1:], [*whole, whole[-1]], [*whole[8::-1], *whole[9:]]):
        with pytest.raises(RuntimeError, match=r"not those known here: use the TRL version of constraints\.txt"):
            pair_values(other, MASK, REPORTED, training=True)
    with pytest.raises(RuntimeError, match="not those known here"):
        pair_values(whole, MASK, REPORTED, training=False)


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (0, 3, "entropy"), (3, 5, "logits/chosen"), (5, 0, "entropy"), (3, 7, "logits/chosen"),
        (9, 10, "rewards/chosen"), (9, 11, "rewards/chosen"), (10, 12, "rewards/rejected"),
        (11, 12, "rewards/accuracies"), (12, 13, "rewards/margins"), (13, 14, "logps/chosen"),
    ],
)  # fmt: skip
def test_values_in_each_others_place_are_refused_by_name(one: int, other: int, named: str) -> None:
    kept = gathered()
    kept[one], kept[other] = kept[other], kept[one]
    with pytest.raises(RuntimeError, match=rf"reports {named} as .* use the TRL version of constraints\.txt"):
        pair_values(kept, MASK, REPORTED, training=True)


@pytest.mark.parametrize("name", REPORTED)
def test_values_that_trl_does_not_report_any_more_are_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"reports {name} as None"):
        pair_values(gathered(), MASK, {**REPORTED, name: []}, training=True)
    with pytest.raises(RuntimeError, match=f"reports {name} as 9.0"):
        pair_values(gathered(), MASK, {**REPORTED, name: [9.0]}, training=True)


def test_what_is_not_finite_is_left_to_the_guards() -> None:
    kept = [value * float("nan") if value.is_floating_point() else value for value in gathered()]
    assert pair_values(kept, MASK, REPORTED, training=True).shape == (2, len(PAIR_VALUES))


def test_pairs_by_source() -> None:
    tally = Tally(["speech", "sounds"], [0, 1], PAIR_VALUES)
    pairs = {"completion_mask": MASK, "row_sources": torch.tensor([1, 0]), "passes": torch.zeros(2).double()}
    tally.begin([pairs])
    tally.add(pair_values(gathered(), MASK, REPORTED, training=True))
    record = pair_curves(tally.record(ALONE), beta=0.5)
    assert record["rewards/accuracies"] == 0.5
    assert record["rewards/accuracies/sounds"] == 1
    assert record["rewards/margins/speech"] == pytest.approx(-0.3)
    assert record["rewards/margins"] == pytest.approx(-0.05)
    assert record["kl/chosen"] == pytest.approx(0.2)
    assert (record["lengths/chosen"], record["lengths/rejected"]) == (2, 2.5)
    assert (record["logps/chosen"], record["logps/rejected"]) == (-3.5, -5.5)
    assert (record["entropy"], record["mean_token_accuracy"]) == (2, 0.75)
    assert (record["logits/chosen"], record["logits/rejected"]) == (2, 3)
    assert (record["tokens/speech"], record["tokens/sounds"]) == (4, 5)
