"""Making shards: clips in, a ``.tar`` with its index out, in parallel and resumable.

A shard is made by one process of its own, whole or not at all. Beside a finished shard lies
``X.tar.recipe`` with the digest of what it was made from: the same recipe again is skipped, another
recipe or a missing digest makes the shard anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from data_pipelines.clip import SAMPLE_RATE, Clip
from qa_train.data.shards import ShardWriter

RECIPE_SUFFIX = ".recipe"
# Part of every recipe: raise it when a change of the code changes what is made.
RECIPE_VERSION = 2


def opus(wave: np.ndarray, compression: float) -> bytes:
    """Ogg Opus at 16 kHz. ``compression`` 0.95 gives about 22 kbit/s for speech, 0.97 about 17."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=compression)
    return buffer.getvalue()


def write_shard(path: Path, clips: Iterable[Clip], *, opus_compression: Callable[[Clip], float] | None = None) -> int:
    """Writes one shard (FLAC, or Opus when ``opus_compression`` says how much); returns the clips written."""
    num = 0
    with ShardWriter(path) as writer:
        for clip in clips:
            if opus_compression is None:
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
    maker: Callable[..., Iterable[Clip]]
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
        return made == self.recipe and self.path.exists() and Path(f"{self.path}.index.parquet").exists()


def _run(job: Job) -> int:
    marker = Path(f"{job.path}{RECIPE_SUFFIX}")
    marker.unlink(missing_ok=True)
    num = write_shard(job.path, job.maker(*job.arguments))
    # The marker comes last and appears whole: a killed job leaves none and is redone.
    part = marker.with_name(marker.name + ".part")
    part.write_text(job.recipe + "\n", encoding="utf-8")
    part.replace(marker)
    return num


def make(jobs: Sequence[Job], *, num_workers: int, progress: Callable[[int], object] = lambda clips: None) -> int:
    """Runs the unfinished jobs in ``num_workers`` processes; returns the number of clips made.

    ``progress`` is called with the number of clips of each shard that is ready (also the skipped ones).
    """
    todo = [job for job in jobs if not job.finished]
    progress(sum(job.num_clips for job in jobs) - sum(job.num_clips for job in todo))
    if not todo:
        return 0
    # Children of a fork server start from a clean process with the libraries already imported:
    # cheap, safe beside threads, and with a speech engine that has spoken nothing yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_pipelines.shards", "data_pipelines.synth"])
    made = 0
    with context.Pool(num_workers, maxtasksperchild=1) as pool:
        for num in pool.imap_unordered(_run, todo, chunksize=1):
            made += num
            progress(num)
    return made
