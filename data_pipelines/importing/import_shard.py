"""One shard of an import, made from its listing in a separate process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator  # noqa: F401 (pdoc looks up inherited annotations here)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.clips.make_shards import Job
from data_pipelines.corpora.recordings import Recording, TooLong, duration_s, raw_bytes, wave_of
from data_pipelines.importing.in_place import InFile
from qa_train.config import StorageConfig
from qa_train.data.audio.waveform import SAMPLE_RATE, BadAudio, stored_kind
from qa_train.data.shards.clip_files import ROUNDED_S
from qa_train.data.shards.index import Placed, index_places
from qa_train.data.shards.sidecar import SUFFIX, Problem, origin_of, write_index
from qa_train.data.shards.tar import AUDIO_EXTENSIONS
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores.folders import companion
from qa_train.data.text.records import BadRecord
from qa_train.utils.atomic import json_text
from qa_train.utils.masking import masked

DROPPED_SUFFIX = ".dropped.jsonl"
COPIED_SUFFIX = "-copied.tar"
# Part of the message when a shard alone exceeds the budget.
BAD = "recordings cannot be used, allowed are"


class LeftOut(BadRecord):
    """A record that a filter leaves out: it is counted, and no error."""


@dataclass(frozen=True)
class CountedJob(Job):
    """A shard without what cannot be used, which is listed beside it; more than ``max_bad`` errors end the command."""

    max_bad: int = 0

    @property
    def complete(self) -> bool:
        """Shards with their indexes; or none, when every entry was skipped."""
        indexed = all(companion(path, SUFFIX).exists() for path in self.shards)
        return indexed and (bool(self.shards) or len(list(dropped_of(self.path))) == self.num_clips)


@dataclass(frozen=True)
class ImportJob(CountedJob):
    """A shard to be made from ``listing``.

    With ``target``, a file of another layout, ``path`` becomes a link to it with an index of our own; what no byte
    range can name goes into ``copied``.
    """

    listing: Path = Path()
    target: str = ""
    origin: str = ""
    # How remote recordings are read: no part of the recipe, which keys may not enter.
    storage: StorageConfig = field(default_factory=StorageConfig)

    @property
    def copied(self) -> Path:
        """The shard of what cannot stay in ``target``."""
        return self.path.with_name(f"{self.path.stem}{COPIED_SUFFIX}")

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The shards that it may make."""
        return self.path, self.copied

    @property
    def complete(self) -> bool:
        """As of any counted job; a link to another file is made again."""
        if self.target and self.path.exists() and not origin_of(str(self.path)):
            return False
        return super().complete

    def write(self) -> int:
        """Write the shard, and its skipped entries; returns the number of its records."""
        return write_entries(self)


class Made:
    """Counts what becomes a record, and what is dropped; ValueError beyond ``max_bad`` unusable recordings."""

    def __init__(self, max_bad: int) -> None:
        self.number = self._bad = 0
        self.dropped: list[dict[str, Any]] = []
        self._max_bad = max_bad

    @contextlib.contextmanager
    def counting(self, key: str) -> Iterator[None]:
        """Count one record. Recordings that are too long, or left out by a filter, are dropped and are not bad."""
        try:
            yield
            self.number += 1
        except (BadAudio, BadRecord) as error:
            is_error = not isinstance(error, TooLong | LeftOut)
            self._bad += is_error
            reason = getattr(error, "reason", "bad record")
            self.drop(key, reason, str(error), error=is_error)
        if self._bad > self._max_bad:
            last = self.dropped[-1]
            raise ValueError(f"{self._bad} {BAD} {self._max_bad}, e.g. {last['key']}: {last['detail']}")

    def note(self, problems: Iterable[Problem]) -> None:
        """Records that an index skips."""
        for problem in problems:
            self.drop(problem.key, problem.reason, problem.detail, error=True)

    def drop(self, key: str, reason: str, detail: str, *, error: bool) -> None:
        """What does not become a record."""
        self.dropped.append({"key": key, "reason": reason, "detail": masked(detail), "error": error})

    def save(self, path: Path) -> None:
        """Write what was dropped next to the shard at ``path``."""
        text = "".join(json_text(entry) + "\n" for entry in self.dropped)
        companion(path, DROPPED_SUFFIX).write_text(text, encoding="utf-8")


def write_entries(job: ImportJob) -> int:
    """Write the records of a job's listing, and ``SHARD.dropped.jsonl``; returns the number of records.

    Raises ValueError when more than ``max_bad`` recordings or records cannot be used.
    """
    audio, max_duration_s = job.arguments[1:3]
    made = Made(job.max_bad)
    placed: list[Placed] = []
    where = InFile(job.target) if job.target else None
    with ShardWriter(job.copied if where else job.path, max_samples=1 << 40, max_bytes=1 << 50) as writer:
        for line in job.listing.read_text(encoding="utf-8").split("\n"):
            entry = json.loads(line)
            key, record = entry["key"], entry["record"]
            with made.counting(key):
                places = [Recording(**place) for place in entry["audio"]]
                joined = entry.get("joined", False)
                kinds, clips = clips_of(places, audio, max_duration_s, job.storage, joined=joined)
                found = where.members(key, places, kinds or [], clips) if where else None
                if found is None:
                    writer.write(key, record, clips, SAMPLE_RATE, extension=kinds)
                else:
                    placed.append(Placed(key, record, found))
        indexes = writer.close()
    if placed:
        job.path.symlink_to(job.target)
        indexes.append(index_places(str(job.path), placed, job.origin))
        write_index(indexes[-1])
    made.note(problem for index in indexes for problem in index.problems)
    made.save(job.path)
    return made.number


def dropped_of(path: Path) -> Iterator[dict[str, Any]]:
    """Skipped entries of the shard at ``path``: key, reason, detail, and whether it counts as an error."""
    side = companion(path, DROPPED_SUFFIX)
    if side.exists():
        yield from (json.loads(line) for line in side.read_text(encoding="utf-8").split("\n") if line)


def clips_of(
    places: list[Recording], audio: str, max_duration_s: float, storage: StorageConfig, *, joined: bool
) -> tuple[list[str] | None, list[np.ndarray | bytes]]:
    """(extensions, clips) as the writer takes them: files as they are, or waveforms at 16 kHz without extensions."""
    if joined:
        return None, [_joined(places, max_duration_s, storage)]
    kept = [_kept(place, max_duration_s, storage) for place in places] if audio != "flac" else [None]
    whole = [found for found in kept if found is not None]
    if whole and len(whole) == len(kept):
        return [kind for kind, _ in whole], [raw for _, raw in whole]
    return None, [wave_of(place, max_duration_s, storage) for place in places]


def _joined(places: list[Recording], max_duration_s: float, storage: StorageConfig) -> np.ndarray:
    """The parts as one waveform at 16 kHz. Raises TooLong when they are longer together."""
    whole = np.concatenate([wave_of(place, max_duration_s, storage) for place in places])
    if len(whole) > max_duration_s * SAMPLE_RATE:
        raise TooLong(f"{places[0].name}: {len(whole) / SAMPLE_RATE:.1f} s with what follows it")
    return whole


def _kept(place: Recording, max_duration_s: float, storage: StorageConfig) -> tuple[str, bytes] | None:
    """The shard's extension for a whole recording, by its content, and its bytes; None when it must be decoded: shards
    do not hold such files, or only a part of it is meant.
    """
    if place.start_s or place.channel is not None:
        return None
    raw = raw_bytes(place, storage)
    length = duration_s(raw)
    if place.end_s is not None and abs(place.end_s - length) > ROUNDED_S:
        return None
    if length > max_duration_s:
        raise TooLong(f"{place.name}: {length:.1f} s")
    kind = stored_kind(raw)
    return (kind, raw) if kind in AUDIO_EXTENSIONS else None
