"""What the builders of chats share: options, chats with several clips as shards, and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path  # noqa: F401 (pdoc looks up inherited annotations here)
from typing import Any

import numpy as np
from omegaconf import MISSING

from data_pipelines.clips.make_shards import Job, make, refuse_others
from data_pipelines.importing.import_report import Report
from qa_train.data.audio.waveform import SAMPLE_RATE
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores.folders import open_folder
from qa_train.jobs.executor import Engine, EngineOptions


@dataclass
class BuilderConfig(EngineOptions):
    """Options of every builder."""

    is_shared = True
    # The folder for the new shards, or s3://, gs://.
    out: str = MISSING
    # Processes of engine=local; 0: this one.
    workers: int = 2
    # Random seed.
    seed: int = 0


@dataclass
class SpokenConfig(BuilderConfig):
    """Options of a builder that speaks."""

    # espeak: built in, English (pip install espeakng-loader). 'command:PROGRAM --voice {voice} --out {out}': any
    # program. http://HOST/v1/audio/speech: an OpenAI-compatible endpoint.
    tts: str = "espeak"
    # Names of voices of the program or endpoint: voices=[A,B,...].
    voices: list[str] = field(default_factory=list)
    # Name of the model at the endpoint.
    tts_model: str = "tts-1"
    # Environment variable that holds the key of the endpoint.
    key_env: str = ""
    # train or test; test uses voices that train never uses.
    split: str = "train"
    # Chats of one shard.
    samples_per_shard: int = 200


@dataclass(frozen=True)
class Chat:
    """One chat: its shard record, and a mono float32 waveform at 16 kHz for each ``<audio>`` in its messages."""

    key: str
    record: dict[str, Any]
    waves: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class ChatJob(Job):
    """A shard of chats; ``maker(*arguments)`` yields them."""

    def write(self) -> int:
        """Write the shard; returns the number of its chats. ValueError when there is none."""
        made = 0
        with ShardWriter(self.path, max_samples=1 << 40, max_bytes=1 << 50) as writer:
            for chat in self.maker(*self.arguments):
                writer.write(chat.key, chat.record, list(chat.waves), SAMPLE_RATE)
                made += 1
        if not made:
            raise ValueError(f"{self.path}: it would be empty")
        return made


def in_parts(items: Sequence[Any], size: int) -> list[list[Any]]:
    """The items in lists of at most ``size``."""
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def build(
    name: str,
    place: str,
    maker: Callable[..., Any],
    parts: Sequence[tuple[tuple[Any, ...], int]],
    report: Report,
    engine: Engine,
) -> Report:
    """Make the shards ``NAME-NNNNN.tar`` in the folder at ``place``, and its NAME.report.json.

    parts: of each shard, the arguments of ``maker`` and the number of chats. Shards that were made from the same are
    not made again.

    Raises:
        ValueError: nothing to make, shards of an earlier and larger build in the way, or a shard that failed.
    """
    if not parts:
        raise ValueError(f"nothing to make\n{report.text()}")
    out = open_folder(place)
    jobs = [ChatJob(out / f"{name}-{i:05d}.tar", maker, arguments, size) for i, (arguments, size) in enumerate(parts)]
    out.mkdir(parents=True, exist_ok=True)
    refuse_others(out, name, [job.path.name for job in jobs], "another build")
    report.listed = sum(job.num_clips for job in jobs)
    make(jobs, engine=engine, what=f"making {name}", unit="chats")
    for job in jobs:
        index = load_index(str(job.path))
        report.count_shard(index)
        for problem in index.problems:
            report.drop(problem.key, problem.reason, problem.detail)
    report.save(out / f"{name}.report.json")
    return report
