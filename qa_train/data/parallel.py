"""The same work for many shards, in separate processes, with results in the order of the shards."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from qa_train.utils.launch import end_with_parent
from qa_train.utils.progress import progress

Result = TypeVar("Result")
# Shards handed out per process before the first result is taken: results wait in memory no longer than that.
_AHEAD = 4


def each_shard(
    work: Callable[..., Result], paths: Sequence[str], *arguments: Any, num_workers: int = 0, what: str = "shards"
) -> Iterator[Result]:
    """``work(path, *arguments)`` for every path, in order, telling its progress.

    ``num_workers`` 0 or 1 works in this process. With more, ``work`` must be a function of a module, and a
    process that dies (a crash of a native decoder, the kernel's out-of-memory killer) is a ValueError that
    names the shards in work.
    """
    with progress(total=len(paths), desc=what, unit="shards") as bar:
        for result in _results(work, paths, arguments, num_workers):
            bar.update()
            yield result


def _results(
    work: Callable[..., Result], paths: Sequence[str], arguments: tuple[Any, ...], num_workers: int
) -> Iterator[Result]:
    if num_workers <= 1 or len(paths) <= 1:
        for path in paths:
            yield work(path, *arguments)
        return
    # Forked like the workers of a DataLoader: a new interpreter would import torch for seconds.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(num_workers, len(paths)), context, end_with_parent) as pool:
        waiting: list[tuple[str, Future[Result]]] = []
        remaining = list(reversed(paths))
        try:
            while remaining or waiting:
                while remaining and len(waiting) < _AHEAD * num_workers:
                    path = remaining.pop()
                    waiting.append((path, pool.submit(work, path, *arguments)))
                yield waiting.pop(0)[1].result()
        except BrokenProcessPool as error:
            at_work = [path for path, future in waiting if not future.done() or future.exception() is error]
            raise ValueError(
                f"a worker process died (crashed decoder or out of memory) on one of {at_work[:num_workers] or paths}: "
                "run again with num_workers=0 on these to see which"
            ) from error
        finally:
            for _, future in waiting:
                future.cancel()
