"""The processes that share an evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qa_train.utils.process import check_ranks_announced


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the work. ``gather`` gives every rank the values of all, in their order."""

    rank: int = 0
    world: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    def meet(self) -> None:
        """Wait for all."""
        self.gather(None)


def ranks_from_environment() -> Ranks:
    """The ranks that torchrun or SLURM announced, joined by gloo; one process without them.

    Raises:
        ValueError: what announces them is not whole: left over from another session.
    """
    check_ranks_announced(local=False)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return Ranks()
    from datetime import timedelta

    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=1))

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * world
        dist.all_gather_object(values, value)
        return values

    return Ranks(rank, world, gather)
