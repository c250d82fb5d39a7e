"""Making shards: clips in, a ``.tar`` with its index out, in parallel and resumable.

A shard is made by a separate process, completely or not at all. Beside a finished shard lies
``X.tar.recipe`` with the digest of what it was made from: the same recipe again is skipped, another
recipe or a missing digest makes the shard again.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qa_train.data.shards.sidecar import SUFFIX
from qa_train.data.stores.folders import companion, publish, write_text
from qa_train.jobs.executor import Engine, each

RECIPE_SUFFIX = ".recipe"
# Part of every recipe: raise it when a change of the code changes what is made.
RECIPE_VERSION = 2
# Imported by the writer when it writes; brings torch: 1.5 s, once and not for every shard.
_PRELOAD = ("webdataset",)


@dataclass(frozen=True)
class Job(ABC):
    """One shard to make: ``maker(*arguments)`` yields its clips. All of it must pickle.

    ``arguments`` must be JSON-able: they are what the recipe's digest is computed from.
    """

    path: Path
    maker: Callable[..., Any]
    arguments: tuple[Any, ...]
    num_clips: int

    def __str__(self) -> str:
        return str(self.path)

    @property
    def recipe(self) -> str:
        """Digest of the maker's name and arguments."""
        text = json.dumps(
            [RECIPE_VERSION, self.maker.__module__, self.maker.__qualname__, self.arguments], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The shards that it may make."""
        return (self.path,)

    @property
    def shards(self) -> list[Path]:
        """The shards that are there."""
        return [path for path in self.outputs if path.exists()]

    @property
    def finished(self) -> bool:
        """Whether the shard exists whole and was made from this recipe."""
        marker = companion(self.path, RECIPE_SUFFIX)
        made = marker.read_text(encoding="utf-8").strip() if marker.exists() else ""
        return made == self.recipe and self.complete

    @property
    def complete(self) -> bool:
        """Whether the files that ``write`` makes are there."""
        return self.path.exists() and companion(self.path, SUFFIX).exists()

    @abstractmethod
    def write(self) -> int:
        """Writes the shard; returns the number of its clips. ValueError ends the run."""


def make(
    jobs: Sequence[Job], *, engine: Engine, what: str = "making shards", unit: str = "clips",
    ready: Callable[[Job], object] = lambda job: None, died: Callable[[Job, str], int] | None = None,
) -> int:  # fmt: skip
    """Runs the unfinished jobs; returns the number of clips made.

    ``ready`` is called with each job whose shard is there, as soon as it is; it may end the run. ``what``, ``unit``: of
    the progress bar. ``died``: as in `qa_train.jobs.executor.each`.
    Raises ValueError when a job fails, naming the shard; the other running jobs are ended.
    """
    todo: list[Job] = []
    for job in jobs:
        if job.finished:
            ready(job)
        else:
            todo.append(job)
    done = sum(job.num_clips for job in jobs) - sum(job.num_clips for job in todo)
    return sum(
        each(
            _run, todo, engine=engine, what=what, unit=unit, initial=done, size=lambda job: job.num_clips,
            ready=lambda job, made: ready(job), died=died, preload=_PRELOAD,
        )
    )  # fmt: skip


def refuse_others(out: Path, prefix: str, names: Collection[str], of: str, kinds: Sequence[str] = (".tar",)) -> None:
    """ValueError for shards PREFIX-NNNNN of another, larger run: they would be trained on together with ``names``."""
    there = {path.name for kind in kinds for path in out.glob(f"{prefix}-[0-9][0-9][0-9][0-9][0-9]{kind}")}
    if left := sorted(there - set(names)):
        raise ValueError(f"{out} holds {len(left)} shards of {of} ({left[0]}): delete them, or choose another out=")


def _run(job: Job) -> int:
    if job.finished:
        return job.num_clips  # by a node that was lost before it could answer
    marker, folder = companion(job.path, RECIPE_SUFFIX), job.path.parent
    # Of an earlier recipe; with no clip to keep, no shard takes its place.
    for old in (marker, *job.outputs):
        old.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    hidden, here = f".making-{job.path.name}-", folder if isinstance(folder, Path) else None
    for killed in here.glob(f"{glob.escape(hidden)}*") if here else ():
        shutil.rmtree(killed, ignore_errors=True)
    # A folder of this attempt alone: one that was given up, on a node that only seemed lost, may still write.
    with tempfile.TemporaryDirectory(prefix=hidden, dir=here) as scratch:
        try:
            num = replace(job, path=Path(scratch) / job.path.name).write()
        except ValueError as error:
            raise ValueError(f"{job.path} was not made: {error}") from error
        for file in sorted(Path(scratch).iterdir()):
            publish(file, folder)
    # The marker comes last and appears whole: a killed job leaves none and is redone.
    write_text(marker, job.recipe + "\n")
    return num
