"""Dead loader workers, with real DataLoaders."""

from __future__ import annotations

import os
import resource
import signal
import time

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from qa_train.data.workers import WorkerDied, explain, explained_worker_death, raise_file_limit, share


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


class Clips:
    """What a worker collates; its /dev/shm has no room after the first items."""

    def __call__(self, items: list[int]) -> dict[str, Tensor]:
        # The kernel's answer to a file in shared memory that may not grow: as on a full one.
        if items[0] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return share({"clip": torch.ones(100_000), "empty": torch.zeros(0, 3)})


def test_a_batch_that_does_not_fit_into_shared_memory_ends_the_wait() -> None:
    loader = DataLoader(list(range(4)), batch_size=1, num_workers=1, collate_fn=Clips())  # type: ignore[arg-type]
    seen = []
    with (
        pytest.raises(WorkerDied, match=r"does not fit into shared memory: enlarge /dev/shm"),
        explained_worker_death(),
    ):
        seen += [float(batch["clip"].sum()) for batch in loader]
    with explained_worker_death():
        for _, batch in zip(range(2), loader, strict=False):
            assert float(batch["clip"].sum()) == 100_000
            assert batch["empty"].shape == (0, 3)


@pytest.mark.parametrize(
    ("limit", "workers", "result"),
    [
        ((100, 5000), 0, 5000),
        ((100, 5000), 8, 5000),
        ((3000, 5000), 2, 5000),
        ((256, resource.RLIM_INFINITY), 2, 65536),
        ((70_000, 80_000), 2, 70_000),
        ((100, 100), 0, "open 100 files, and training with data.num_workers=0 and 0 batches ahead needs 128"),
        (
            (100, 256),
            4,
            "open 256 files, and training with data.num_workers=4 and 12 batches ahead needs 512: "
            ".* lower trainer.dataloader_prefetch_factor or data.num_workers",
        ),
    ],
)
def test_the_limit_on_open_files_is_raised_as_far_as_it_goes(
    limit: tuple[int, int], workers: int, result: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [limit]
    monkeypatch.setattr(resource, "getrlimit", lambda _: now[0])
    monkeypatch.setattr(resource, "setrlimit", lambda _, values: now.__setitem__(0, values))
    if isinstance(result, str):
        with pytest.raises(ValueError, match=result):
            raise_file_limit(workers, 3 if workers else None)
    else:
        raise_file_limit(workers, 3 if workers else None)
        assert now == [(result, limit[1])]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("unable to mmap 8 bytes from file </torch_1_2>: Cannot allocate memory (12)", "/dev/shm"),
        ("unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)", "shm-size"),
        ("unable to open shared memory object </torch_5_1> in read-write mode: Too many open files (24)", "ulimit -n"),
        ("received 0 items of ancdata", "ulimit -n"),
    ],
)
def test_what_torch_says_of_shared_memory_is_explained(message: str, told: str) -> None:
    assert told in str(explain(message))
