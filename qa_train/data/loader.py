"""Batch numbers through real DataLoaders, as the ranks of a run read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from torch.utils.data import DataLoader

from qa_train.data.batches import Batches


class Keys:
    """Collator that gives the sample names of a batch number instead of its tensors."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __call__(self, numbers: list[int]) -> list[str]:
        """The keys of the samples of these batches, in order."""
        return [key for k in numbers for key in self.batches.keys(k)]


def rank_numbers(first: int, count: int, rank: int, world_size: int) -> range:
    """Batch numbers that a rank reads: first + rank, first + rank + world size, ..."""
    return range(first + rank, first + count, world_size)


def delivered(batches: Batches, first: int, count: int, world_size: int, num_workers: int) -> Iterator[list[str]]:
    """Sample names of ``count`` batches from number ``first``, in the order of training: every
    rank's own loader is read in turn."""
    if count % world_size:
        raise ValueError(
            f"{count} batches do not divide over {world_size} ranks: the world size must divide "
            f"the batches per step ({batches.plan.batches_per_step})"
        )
    ranks = [
        iter(
            DataLoader(
                list(rank_numbers(first, count, rank, world_size)),  # type: ignore[arg-type]
                batch_size=1,
                num_workers=num_workers,
                collate_fn=Keys(batches),
            )
        )
        for rank in range(world_size)
    ]
    for _ in range(count // world_size):
        for rank in ranks:
            yield next(rank)


def order_digest(batches: Batches, steps: int, world_size: int = 1, num_workers: int = 0) -> str:
    """SHA-256 over the names of all samples of the first ``steps`` steps, one line each, in the order in which the
    loaders of a run of that shape deliver them. It must not depend on the shape."""
    digest = hashlib.sha256()
    for names in delivered(batches, 0, steps * batches.plan.batches_per_step, world_size, num_workers):
        digest.update("".join(name + "\n" for name in names).encode())
    return digest.hexdigest()
