"""What a run remembers of its data, so that it goes on when they grow.

A saved state names the data of a source by a digest. A `PlanRecord`, one small file for each version of the data a run
has seen, gives that digest's settings and shards. With it a grown source continues in the epoch that it was reading:
records that were read are not read again, and the new shards join those that are still to come. Without it, or when
records were removed or changed, the source starts its next epoch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.data.order.epoch import EpochOrder, Ints
from qa_train.data.order.seek import Read, Saved, number_of
from qa_train.data.order.shuffle_window import Lengths, PlanSource
from qa_train.utils import draws
from qa_train.utils.atomic import write_json

# Bytes of a shard's digest in a record; and the first fields of a plan's settings, which are not about sources.
_SHARD_BYTES = 12
GLOBAL = 5


@dataclass(frozen=True)
class Version:
    """A source as it was: its share, the digest of all settings that its order depends on, and its shards in order.

    ``shards`` is None for a source that cannot grow in place.
    """

    name: str
    weight: float
    max_epochs: int | None
    fingerprint: str
    settings: str
    shards: list[str] | None


@dataclass(frozen=True)
class PlanRecord:
    """Settings (as in a plan's state) and sources of one version of a run's data."""

    settings: str
    sources: list[Version]


@dataclass(frozen=True)
class Generation:
    """The shards that made up an epoch until ``read``, where others joined."""

    shards: Ints
    read: Read


@dataclass(frozen=True)
class Continued:
    """Where a source goes on: epoch and position, the generations of that epoch, and what has changed, as a line."""

    cursor: tuple[int, int]
    generations: list[Generation] = field(default_factory=list)
    told: str = ""


class GrownOrder:
    """An epoch that other shards join at ``position``: the rest of the group that is being read, then everything that
    was still to come, shuffled together with the new shards. Same interface as `EpochOrder`.
    """

    def __init__(self, before: EpochOrder | GrownOrder, position: int, lengths: Ints, new: Ints, *key: Any) -> None:
        """``lengths``: rows of all shards; ``new``: numbers of those that join; ``key``: of the epoch."""
        self._before = before
        self._joined, unread = before.split(position)
        shards = np.sort(np.concatenate([unread, new]))
        self._after = EpochOrder(lengths, *key, "grown", position, shards=shards)
        self.total = self._joined + self._after.total

    def rows(self, position: int, count: int) -> Ints:
        """Row numbers at the positions ``position`` to ``position + count``, cut at the end of the epoch."""
        first = self._before.rows(position, max(0, min(count, self._joined - position)))
        return np.concatenate([first, self._after.rows(max(0, position - self._joined), count - len(first))])

    def split(self, position: int) -> tuple[int, Ints]:
        """As `EpochOrder.split`."""
        if position <= self._joined:
            return self._joined, self._after.shards
        end, unread = self._after.split(position - self._joined)
        return self._joined + end, unread


class Earlier:
    """A source of now with the share and the fingerprint that it had in an earlier version of the data."""

    def __init__(self, now: PlanSource, weight: float, fingerprint: str, max_epochs: int | None) -> None:
        self._now, self.weight, self.fingerprint, self.max_epochs = now, weight, fingerprint, max_epochs
        self.name, self.settings = now.name, now.settings
        # Rows keep the numbers of now.
        self.shard_lengths: Ints = now.shard_lengths
        self.shard_ids: Sequence[str] | None = now.shard_ids

    def lengths(self, rows: Ints, epoch: int) -> Lengths:
        """As the source of now."""
        return self._now.lengths(rows, epoch)


def record(settings: str, sources: Iterable[PlanSource]) -> PlanRecord:
    """The record of a plan."""
    versions = []
    for s in sources:
        shards = None if s.shard_ids is None else [*_numbered(s.shard_ids, s.shard_lengths)]
        versions.append(Version(s.name, s.weight, s.max_epochs, s.fingerprint, s.settings, shards))
    return PlanRecord(settings, versions)


class Records:
    """The versions of its data that a run has seen, in a folder of JSON files."""

    def __init__(self, records: Sequence[PlanRecord] = ()) -> None:
        self._records = records

    @classmethod
    def read(cls, folder: Path) -> Records:
        """All records of a folder; none if it does not exist. ValueError names a damaged one."""
        return cls([_parsed(path) for path in sorted(folder.glob("*.json"))])

    def version(self, name: int, data: int) -> Version | None:
        """The version of a source by the numbers that a state has of its name and its data."""
        found = (each for one in self._records for each in one.sources)
        return next((v for v in found if (number_of(v.name), number_of(v.fingerprint)) == (name, data)), None)

    def of(self, saved: Saved) -> PlanRecord | None:
        """The record of the plan that a state is of."""
        wanted = {name: versions[0].data for name, versions in saved.sources.items()}
        for one in self._records:
            used = {number_of(v.name): number_of(v.fingerprint) for v in one.sources if v.weight > 0}
            if number_of(one.settings) == saved.settings and used == wanted:
                return one
        return None


def write_record(folder: Path, fingerprint: str, made: PlanRecord) -> None:
    """Keep the record of the plan with that fingerprint; what is there stays."""
    path = folder / f"{fingerprint[:16]}.json"
    if not path.is_file():
        folder.mkdir(exist_ok=True)
        write_json(path, asdict(made), durable=True)


def placed(version: Version | None, source: PlanSource) -> Ints | None:
    """The numbers, in their order of then, of a version's shards in the source of now.

    None if nothing is known of the version, if other settings changed, or if one of its shards is gone or has changed.
    """
    if version is None or version.shards is None or source.shard_ids is None or version.settings != source.settings:
        return None
    numbers = _numbered(source.shard_ids, source.shard_lengths)
    found = [numbers.get(shard, -1) for shard in version.shards]
    return None if -1 in found else np.asarray(found, dtype=np.int64)


def continued(
    source: PlanSource, shards: int, cursor: tuple[int, int] | None, saved: Saved, records: Records
) -> Continued:
    """Where a source of so many ``shards`` goes on; ``cursor``: how far it was read, None if the state lacks it."""
    if cursor is None:
        return Continued((0, 0), told=f"source {source.name!r} is new: it begins with its first epoch")
    now, *earlier = saved.sources[number_of(source.name)]
    epoch, position = cursor
    reads = [read for read in earlier if read.epoch == epoch]
    changed = now.data != number_of(source.fingerprint)
    read_whole = changed and source.max_epochs is not None and epoch >= source.max_epochs
    if read_whole:
        # Its last epoch goes on with the new shards alone.
        epoch, reads = epoch - 1, []
    if changed:
        reads.append(Read(now.name, now.data, epoch, position))
    parts = [placed(records.version(read.name, read.data), source) for read in reads]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        told = f"source {source.name!r} has other records or settings: it starts its next epoch"
        return Continued((now.epoch + 1, 0), told=told)
    told = ""
    if changed:
        joined = shards - len(known[-1])
        what = f"{joined} new shards: they join" if joined else "the same shards under other names: it is in"
        told = f"source {source.name!r} has {what} epoch {epoch}"
    if read_whole:
        position = int(np.asarray(source.shard_lengths)[known[-1]].sum())
        reads = [replace(reads[-1], position=position)]
    # At its very start, an epoch is simply that of all shards.
    generations = [Generation(part, read) for part, read in zip(known, reads, strict=True)] if position else []
    return Continued((epoch, position), generations, told)


def earlier_sources(
    made: PlanRecord, sources: Sequence[PlanSource]
) -> tuple[list[PlanSource], Mapping[int, Ints]] | None:
    """The sources of a record, in places of those of now (weight 0 where there was none), and their shards by place.

    None if one of them cannot be had back.
    """
    then = {version.name: version for version in made.sources if version.weight > 0}
    names = [source.name for source in sources if source.name in then]
    # Another order of the sources may round their shares differently.
    if names != list(then):
        return None
    back: list[PlanSource] = []
    shards: dict[int, Ints] = {}
    for i, source in enumerate(sources):
        version = then.get(source.name)
        if version is None:
            back.append(Earlier(source, 0.0, source.fingerprint, None))
            continue
        found = placed(version, source)
        if found is None:
            return None
        shards[i] = found
        back.append(Earlier(source, version.weight, version.fingerprint, version.max_epochs))
    return back, shards


def _numbered(ids: Sequence[str], lengths: Ints) -> dict[str, int]:
    """Number by short digest of the shards that have rows, in order."""
    return {draws.digest(ids[n], _SHARD_BYTES).hex(): n for n in np.flatnonzero(lengths).tolist()}


def _parsed(path: Path) -> PlanRecord:
    try:
        value = json.loads(path.read_text())
        versions = [Version(**each) for each in value["sources"]]
        for v in versions:
            texts = [v.name, v.fingerprint, v.settings, *(v.shards or [])]
            limit = v.max_epochs is None or (type(v.max_epochs) is int and v.max_epochs > 0)
            if not all(isinstance(text, str) for text in texts) or not limit or not 0 <= float(v.weight) < float("inf"):
                raise ValueError(f"source {v.name!r} has values of another kind")
        settings = json.loads(value["settings"])
        if not isinstance(settings, list) or len(settings) < GLOBAL:
            raise ValueError("its settings are not those of a plan")
        return PlanRecord(value["settings"], versions)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is not the record of a plan ({type(error).__name__}: {error}). Restore it, or delete it: sources "
            "that have grown then start their next epoch"
        ) from error
