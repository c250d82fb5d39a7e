"""Jobs that do not depend on each other: the one place that runs them, on this machine or on a Ray cluster.

A job is a function of a module, called with an item (a shard) and arguments. Each runs in a process of its own, so
that its result does not depend on what ran before, and its end is the end of one job alone (jobs of a model share
processes, one after the other, so that it is loaded once: ``Engine.keep``):

- a job that raises ends the run with its error;
- a job whose process dies (a native decoder crashed, memory ran out) is tried again, `ATTEMPTS` times in all;
- a job whose node is lost is tried again, ten times at most.

So a job must be repeatable: the same item gives the same result, and what it writes appears whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from qa_train.jobs.processes import Died, Here, NodeLost, Pool, Processes
from qa_train.utils.progress import progress, say

Item = TypeVar("Item")
Result = TypeVar("Result")
ENGINES = ("local", "ray")
# How often a job is begun whose process dies. Deaths for want of memory may pass; a decoder crashes again.
ATTEMPTS = 3
# And how often one whose node is lost: a job may be what takes its node down.
_LOSSES = 10


@dataclass(frozen=True)
class Engine:
    """Where jobs run: ``num_workers`` processes of this machine (0: this process), or a Ray cluster.

    ``keep``: a process takes job after job, and what it has loaded stays. ``cores``, ``gpus``: of a node of Ray, that
    each job takes.
    """

    num_workers: int = 0
    name: str = "local"
    ray_address: str = ""
    keep: bool = False
    cores: int = 1
    gpus: float = 0.0

    def pool(self, modules: Sequence[str]) -> Pool:
        """Open it; ``modules`` are imported once, before the processes are forked.

        Raises ValueError for settings that are wrong or would be ignored, and for a cluster that does not answer.
        """
        if self.name not in ENGINES:
            raise ValueError(f"engine={self.name!r}: use one of {', '.join(ENGINES)}")
        if self.name == "ray":
            from qa_train.jobs.ray_pool import RayPool

            return RayPool(self.ray_address, modules, keep=self.keep, cores=self.cores, gpus=self.gpus)
        if self.ray_address:
            raise ValueError(f"ray_address={self.ray_address!r} is only used with engine=ray")
        if self.cores != 1 or self.gpus:
            raise ValueError(f"cores={self.cores} and gpus={self.gpus:g} are only used with engine=ray")
        return Processes(self.num_workers, modules, keep=self.keep) if self.num_workers else Here()


HERE = Engine()


@dataclass
class EngineOptions:
    """Options of every command that works shard by shard."""

    is_shared = True
    # Where shards are worked on: local (processes of this machine), or ray (a cluster, with a process per core; extra
    # cluster).
    engine: str = "local"
    # HOST:PORT of a Ray cluster that runs; empty: RAY_ADDRESS, else one of this machine alone.
    ray_address: str = ""

    def engine_with(self, num_workers: int) -> Engine:
        """The engine that was chosen; ``num_workers``: processes of engine=local."""
        return Engine(num_workers, self.engine, self.ray_address)


def each(
    work: Callable[..., Result],
    items: Sequence[Item],
    *arguments: Any,
    engine: Engine = HERE,
    what: str = "shards",
    unit: str = "shards",
    initial: int = 0,
    size: Callable[[Item], int] = lambda item: 1,
    ready: Callable[[Item, Result], object] = lambda item, result: None,
    died: Callable[[Item, str], Result] | None = None,
    preload: Sequence[str] = (),
) -> Generator[Result, None, None]:
    """``work(item, *arguments)`` for every item: the results in the order of the items, and a progress bar of all.

    Args:
        work: a function of a module; it, the items and the arguments go to other processes.
        items: what to work on; ``str(item)`` names one in messages.
        arguments: the same for all items.
        engine: where.
        what: name of the bar.
        unit: what the bar counts.
        initial: how many of these were done before.
        size: how many of these an item is.
        ready: called with every item and its result as soon as it is there, in any order; what it raises ends the run.
            Not for those that died.
        died: what takes the place of a result when the job's process died `ATTEMPTS` times; None: ValueError.
        preload: modules that jobs import late, to be imported once and not in every process.

    Raises:
        ValueError: a job's process died `ATTEMPTS` times.
        Exception: what a job raised. The other jobs that run are ended.
    """
    modules = sorted({work.__module__, *(type(item).__module__ for item in items), *preload} - {"__main__"})
    total = initial + sum(map(size, items))
    with (
        progress(total=total, initial=initial, desc=what, unit=unit) as bar,
        closing(engine.pool(modules)) as pool,
    ):
        running: dict[Future[Result], tuple[int, int]] = {}  # future -> (position, attempt)
        finished: dict[int, Result] = {}
        lost = Counter[int]()

        def begin(position: int, attempt: int) -> None:
            running[pool.submit(work, items[position], *arguments)] = position, attempt

        begun = given = 0
        while given < len(items):
            while begun < min(len(items), given + pool.ahead):
                begin(begun, 1)
                begun += 1
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                position, attempt = running.pop(future)
                item = items[position]
                try:
                    result = pool.result(future)
                except NodeLost as error:
                    lost[position] += 1
                    if lost[position] == _LOSSES:
                        raise ValueError(f"{item}: {error}, {_LOSSES} times: it may take its nodes down") from error
                    say(f"{item}: {error}; tried again", error=True)
                    begin(position, attempt)
                    continue
                except Died as error:
                    if attempt < ATTEMPTS:
                        say(f"{item}: {error}; tried again, {attempt + 1} of {ATTEMPTS}", error=True)
                        begin(position, attempt + 1)
                        continue
                    told = f"{error} ({ATTEMPTS} times): a decoder crashed, or memory ran out"
                    if died is None:
                        raise ValueError(f"{item}: {told}") from error
                    result = died(item, told)
                else:
                    ready(item, result)
                finished[position] = result
                bar.update(size(item))
            while given in finished:
                yield finished.pop(given)
                given += 1
