"""Rewards of ranks with unequal numbers of pairs."""

from __future__ import annotations

import torch

from qa_train.train.gather import gather_ragged


def test_every_value_of_every_rank_comes_back_once() -> None:
    ranks = [torch.arange(3.0), torch.arange(10.0, 15.0), torch.zeros(0)]
    longest = 5

    def gather(values: torch.Tensor) -> torch.Tensor:
        """What all ranks would send in this turn, given what rank 0 sends."""
        if values.dtype == torch.int64:
            return torch.tensor([len(rank) for rank in ranks])
        assert len(values) == longest, "gloo needs the same size from every rank"
        others = [torch.cat([rank, torch.full((longest - len(rank),), -1.0)]) for rank in ranks[1:]]
        return torch.cat([values, *others])

    assert gather_ragged(gather, ranks[0]).tolist() == [0, 1, 2, 10, 11, 12, 13, 14]


def test_scalars_are_gathered_as_they_are() -> None:
    assert gather_ragged(lambda value: value.repeat(2), torch.tensor(3.0)).tolist() == [3.0, 3.0]
