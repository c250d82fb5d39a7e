"""What a DataLoader makes of batch numbers: tensors in training, sample names in checks of the order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from qa_train.data.batches import Batches
from qa_train.data.order.passes import Passes
from qa_train.data.workers import begin_worker, share

# Batches whose remote clips a process fetches ahead: building a small one takes no longer than a request.
_AHEAD = 2


class Collator:
    """Builds the batch whose number is the only item of the list: {"batch": k}, or k itself.

    It adds to the model's inputs ``row_sources`` [B] (of pairs: [B / 2]), the number of each row's source, and
    ``passes`` [sources], the number of passes over each source at the end of the step: zeros except in the last batch
    of a step, so that ranks can sum them. ``mel_dtype``: that of the model's first product, which would round the mels
    all the same; half the memory and copies of float32.
    """

    def __init__(self, batches: Batches, mel_dtype: torch.dtype = torch.float32) -> None:
        self.batches, self._mel_dtype = batches, mel_dtype
        self._passes = Passes(batches.plan)
        self._last: int | None = None

    def __call__(self, numbers: list[Any]) -> dict[str, Tensor]:
        """Build the one batch of ``numbers``, a list of one batch number (or of a row with it under "batch")."""
        if get_worker_info() is not None:
            begin_worker()
        if len(numbers) != 1:
            raise ValueError(f"{len(numbers)} batch numbers at once: set per_device_train_batch_size=1")
        (item,) = numbers
        k = int(item["batch"] if isinstance(item, dict) else item)
        # A loader's process is asked for batches at equal distances: the next ones' clips are fetched meanwhile.
        distance = 0 if self._last is None or self._last >= k else k - self._last
        later = range(k + distance, k + 1 + _AHEAD * distance, distance) if distance else ()
        self._last = k
        built, refs = self.batches.build_named(k, later, self._mel_dtype)
        if get_worker_info() is not None:
            # What cannot be planned is raised when the batch is asked for, which may be never.
            with suppress(OSError, ValueError):
                self.batches.ahead(k)
        plan = self.batches.plan
        last = (k + 1) % plan.batches_per_step == 0
        passes = self._passes.after(k) if last else [0.0] * len(plan.sources)
        batch = built | {
            "row_sources": torch.tensor([ref.source for ref in refs], dtype=torch.long),
            "passes": torch.tensor(passes, dtype=torch.float64),
        }
        return batch if get_worker_info() is None else share(batch)


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
