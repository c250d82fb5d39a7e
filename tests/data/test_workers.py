"""Dead loader workers, with real DataLoaders."""

from __future__ import annotations

import os
import signal
import time

import pytest
from torch.utils.data import DataLoader

from qa_train.data.workers import WorkerDied, explain, explained_worker_death


class Kills:
    """A dataset that ends its own worker at item 3."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return 8

    def __getitem__(self, item: int) -> int:
        # After the other items: a worker that dies while it hands over a tensor names no signal.
        if item == 3:
            time.sleep(0.3)
            os.kill(os.getpid(), self.number)
        return item


@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGKILL, "out-of-memory"), (signal.SIGSEGV, "decode_timeout_s"), (signal.SIGTERM, "")]
)
def test_a_killed_worker_is_explained(number: int, cause: str) -> None:
    loader = DataLoader(Kills(number), batch_size=1, num_workers=2)  # type: ignore[arg-type]
    with (
        pytest.raises(WorkerDied, match=rf"data loader worker [\d, ]+ .*{cause}.*last checkpoint"),
        explained_worker_death(),
    ):
        list(loader)


def test_a_connection_that_a_dying_worker_closed_is_explained() -> None:
    loader = DataLoader(Kills(0), batch_size=1)  # type: ignore[arg-type]

    def collate(_: object) -> None:
        raise EOFError

    loader.collate_fn = collate
    with pytest.raises(WorkerDied, match="data loader worker ended"), explained_worker_death():
        list(loader)
    with pytest.raises(EOFError), explained_worker_death():
        raise EOFError


class Stalls(Kills):
    def __getitem__(self, item: int) -> int:
        time.sleep(30)
        return item


def test_a_silent_worker_is_explained() -> None:
    loader = DataLoader(Stalls(0), batch_size=1, num_workers=1, timeout=1)  # type: ignore[arg-type]
    with pytest.raises(WorkerDied, match="storage stalls, or a decoder hangs"), explained_worker_death():
        next(iter(loader))


def test_other_errors_pass() -> None:
    assert explain("CUDA out of memory") is None
    with pytest.raises(RuntimeError, match="mine"), explained_worker_death():
        raise RuntimeError("mine")
