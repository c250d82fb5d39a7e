"""Log-probabilities of answers and the accuracy on pairs, against a plain computation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qa_train.preferences.pair_accuracy import answer_logps, pair_accuracy


class Fixed:
    """A "model" whose logits prefer token t by ``strength[t]`` everywhere."""

    def __init__(self, strength: list[float]) -> None:
        self.strength = torch.tensor(strength)

    def __call__(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.strength.expand(*input_ids.shape, -1))


def batch() -> dict[str, Tensor]:
    ids = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 2, 2], [0, 2, 0]])  # two chosen rows, then two rejected
    mask = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}


class Data:
    """Batches of two pairs: the first of one family, the second of another in every other batch, else of none."""

    sources = (SimpleNamespace(record=lambda row: [{"family": "words"}, {"family": "sounds"}, {}][row]),)

    def build_named(self, k: int) -> tuple[dict[str, Tensor], list[SimpleNamespace]]:
        return batch(), [SimpleNamespace(source=0, row=0), SimpleNamespace(source=0, row=1 + k % 2)]


class Unreadable(Data):
    """Every second batch has lost its pairs."""

    def build_named(self, k: int) -> tuple[dict[str, Tensor], list[SimpleNamespace]]:
        return super().build_named(k) if k % 2 else (batch(), [])


def test_logps_sum_over_answer_tokens_only() -> None:
    model = Fixed([0.0, 2.0, -1.0])
    logp = torch.log_softmax(model.strength, 0)
    expected = torch.stack([2 * logp[1], logp[1], 2 * logp[2], logp[2]])
    torch.testing.assert_close(answer_logps(model, batch()), expected)


def test_accuracy_by_probability_and_by_reward() -> None:
    likes_chosen, likes_rejected = Fixed([0.0, 2.0, -1.0]), Fixed([0.0, -1.0, 2.0])
    assert pair_accuracy(likes_chosen, None, Data(), 3)["value"] == 100  # type: ignore[arg-type]
    result = pair_accuracy(likes_chosen, likes_rejected, Data(), 3)  # type: ignore[arg-type]
    assert (result["value"], result["n"]) == (100, 6)
    assert result["margin"] > 0
    # A model equal to its reference prefers nothing: ties are not counted as right.
    assert pair_accuracy(likes_chosen, likes_chosen, Data(), 1)["value"] == 0  # type: ignore[arg-type]


def test_accuracy_by_family() -> None:
    result = pair_accuracy(Fixed([0.0, 0.2, 0.1]), None, Data(), 3)  # type: ignore[arg-type]
    assert {family: found["n"] for family, found in result["by_family"].items()} == {"sounds": 2, "words": 3}
    assert result["n"] == 6
    # Two tokens of difference 0.1 in the first pair of a batch, one in the second.
    assert result["by_family"]["words"]["margin"] == pytest.approx(0.2, abs=1e-5)
    assert result["by_family"]["sounds"]["margin"] == pytest.approx(0.1, abs=1e-5)
    assert result["margin"] == pytest.approx(0.15, abs=1e-5)


def test_a_batch_that_lost_its_pairs_counts_nothing() -> None:
    assert pair_accuracy(Fixed([0.0, 2.0, -1.0]), None, Unreadable(), 4)["n"] == 4  # type: ignore[arg-type]


def test_no_pairs_is_an_error() -> None:
    with pytest.raises(ValueError, match="no pair"):
        pair_accuracy(Fixed([0.0]), None, Data(), 0)  # type: ignore[arg-type]
