"""Making shards: clips in, a ``.tar`` with its index out, in parallel and resumable.

A shard is made by a separate process, completely or not at all. Beside a finished shard lies
``X.tar.recipe`` with the digest of what it was made from: the same recipe again is skipped, another
recipe or a missing digest makes the shard again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data_pipelines.clips.clip import SAMPLE_RATE, Clip
from qa_train.data.shards.writer import ShardWriter
from qa_train.utils.atomic import write_text

RECIPE_SUFFIX = ".recipe"
# Part of every recipe: raise it when a change of the code changes what is made.
RECIPE_VERSION = 2


def opus(wave: np.ndarray, compression: float) -> bytes:
    """Ogg Opus at 16 kHz. ``compression`` 0.95 gives about 22 kbit/s for speech, 0.97 about 17."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=compression)
    return buffer.getvalue()


def write_shard(path: Path, clips: Iterable[Clip], *, opus_compression: Callable[[Clip], float] | None = None) -> int:
    """Writes one shard (FLAC, or Opus with ``opus_compression``); returns the clips written.

    A clip without samples becomes a text-only record.
    """
    num = 0
    with ShardWriter(path) as writer:
        for clip in clips:
            if not len(clip.wave):
                writer.write(clip.key, clip.record, [])
            elif opus_compression is None:
                writer.write(clip.key, clip.record, clip.wave, SAMPLE_RATE)
            else:
                writer.write(clip.key, clip.record, opus(clip.wave, opus_compression(clip)), extension="opus")
            num += 1
    return num


@dataclass(frozen=True)
class Job:
    """One shard to make: ``maker(*arguments)`` yields its clips. All of it must pickle.

    ``arguments`` must be JSON-able: they are what the recipe's digest is computed from.
    """

    path: Path
    maker: Callable[..., Any]
    arguments: tuple[Any, ...]
    num_clips: int

    @property
    def recipe(self) -> str:
        """Digest of the maker's name and arguments."""
        text = json.dumps(
            [RECIPE_VERSION, self.maker.__module__, self.maker.__qualname__, self.arguments], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def finished(self) -> bool:
        """Whether the shard exists whole and was made from this recipe."""
        marker = Path(f"{self.path}{RECIPE_SUFFIX}")
        made = marker.read_text(encoding="utf-8").strip() if marker.exists() else ""
        return made == self.recipe and self.complete

    @property
    def complete(self) -> bool:
        """Whether the files that ``write`` makes are there."""
        return self.path.exists() and Path(f"{self.path}.index.parquet").exists()

    def write(self) -> int:
        """Writes the shard; returns the number of its clips."""
        return write_shard(self.path, self.maker(*self.arguments))


def _run(job: Job) -> int:
    marker = Path(f"{job.path}{RECIPE_SUFFIX}")
    marker.unlink(missing_ok=True)
    num = job.write()
    # The marker comes last and appears whole: a killed job leaves none and is redone.
    write_text(marker, job.recipe + "\n")
    return num


def make(
    jobs: Sequence[Job], *, num_workers: int, progress: Callable[[int], object] = lambda clips: None,
    ready: Callable[[Job], object] = lambda job: None,
) -> int:  # fmt: skip
    """Runs the unfinished jobs in ``num_workers`` processes (0: in this one); returns the number of clips made.

    ``ready`` is called with each job whose shard is there, ``progress`` then with its clips (skipped ones: together).
    Raises ValueError when a job fails or its process dies, naming the shard; the other running jobs are ended.
    """
    todo: list[Job] = []
    for job in jobs:
        if job.finished:
            ready(job)
        else:
            todo.append(job)
    progress(sum(job.num_clips for job in jobs) - sum(job.num_clips for job in todo))
    if not todo:
        return 0
    made = 0
    # Closed at once when progress() raises: no process goes on writing.
    results = _in_processes(todo, num_workers) if num_workers else ((job, _run(job)) for job in todo)
    with contextlib.closing(results):
        for job, num in results:
            made += num
            ready(job)
            progress(num)
    return made


def _in_processes(jobs: Sequence[Job], num_workers: int) -> Generator[tuple[Job, int], None, None]:
    """Runs each job in a process of its own, so that a decoder that crashes is noticed and named."""
    # Children of a fork server start from a clean process with the libraries already imported:
    # cheap, safe with threads, and with a speech engine that has spoken nothing yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        # The last one brings torch: 1.5 s, once and not for every shard.
        ["data_pipelines.clips.make_shards", "data_pipelines.synthetic.synth", "webdataset"]
    )
    waiting = list(reversed(jobs))
    running: dict[Any, tuple[Job, Any]] = {}  # receiving end -> (job, process)
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                job = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_report, args=(job, sender), daemon=True)
                process.start()
                sender.close()
                running[receiver] = (job, process)
            for ready in multiprocessing.connection.wait(list(running)):
                job, process = running.pop(ready)
                yield job, _result(job, process, ready)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _report(job: Job, sender: Any) -> None:
    # A process that outlives a killed import would keep writing next to the next one.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(_run(job))
    except ValueError as error:
        sender.send(str(error))
    except Exception:
        sender.send(traceback.format_exc())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _result(job: Job, process: Any, receiver: Any) -> int:
    try:
        answer = receiver.recv()
    except EOFError:
        answer = None
    process.join()
    if isinstance(answer, int):
        return answer
    died = f"its process died (exit code {process.exitcode}): a decoder may have crashed, or memory ran out"
    raise ValueError(f"{job.path} was not made: {answer or died}")
