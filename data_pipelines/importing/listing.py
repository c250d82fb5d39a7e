"""The listing of an import: what goes into each shard, written before any audio is read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipelines.corpora.base import Item
from data_pipelines.corpora.recordings import Recording
from data_pipelines.importing.import_shard import ImportJob, write_entries
from data_pipelines.importing.in_place import container_of
from qa_train.config import StorageConfig
from qa_train.utils.atomic import json_text
from qa_train.utils.digests import sha256_of_file

_DEFAULTS = asdict(Recording(""))


class Listing:
    """Writes ``OUT/listing/PREFIX-00000.jsonl``, one file for each shard; ``close`` returns the jobs that make them.

    A shard has ``samples_per_shard`` records. With ``audio`` in_place one also has the records of one foreign file.
    """

    def __init__(
        self, out: Path, prefix: str, *, origin: str, audio: str, samples_per_shard: int, max_duration_s: float,
        storage: StorageConfig,
    ) -> None:  # fmt: skip
        self._out, self._prefix, self._origin = out, prefix, origin
        self._audio, self._most, self._max_duration_s = audio, samples_per_shard, max_duration_s
        self._storage = storage
        # Of each shard: the foreign file or "", and its records.
        self._shards: list[tuple[str, int]] = []
        self._numbers: dict[str, int] = {}
        self._target = ""
        self._lines: list[str] = []
        (out / "listing").mkdir(parents=True, exist_ok=True)

    def add(self, key: str, item: Item, record: dict[str, Any]) -> None:
        """List one record."""
        target = container_of(item) if self._audio == "in_place" else ""
        if target != self._target or (not target and len(self._lines) == self._most):
            self._flush()
        self._target = target
        audio = [{k: v for k, v in asdict(place).items() if v != _DEFAULTS[k]} for place in item.audio]
        entry = {"key": key, "audio": audio, "record": record} | ({"joined": True} if item.joined else {})
        self._lines.append(json_text(entry, sort_keys=True))

    def close(self) -> list[ImportJob]:
        """Finish the files; the jobs in the order in which their shards were begun."""
        self._flush()
        return [self._job(number, target, records) for number, (target, records) in enumerate(self._shards)]

    def _flush(self) -> None:
        if not self._lines:
            return
        number = self._numbers.get(self._target, len(self._shards))
        more = number < len(self._shards)
        text = "\n".join(self._lines)
        with self._path(number).open("ab" if more else "wb") as file:
            file.write(("\n" + text if more else text).encode())
        records = self._shards[number][1] if more else 0
        self._shards[number : number + 1] = [(self._target, records + len(self._lines))]
        if self._target:
            self._numbers[self._target] = number
        self._lines.clear()

    def _path(self, number: int) -> Path:
        return self._out / "listing" / f"{self._prefix}-{number:05d}.jsonl"

    def _job(self, number: int, target: str, records: int) -> ImportJob:
        path = self._path(number)
        what: tuple[Any, ...] = (sha256_of_file(path), self._audio, self._max_duration_s)
        if target:
            # Another file under the name is indexed again.
            stat = Path(target).stat()
            what = (*what, target, stat.st_size, stat.st_mtime_ns)
        shard = self._out / f"{self._prefix}-{number:05d}.tar"
        return ImportJob(
            shard, write_entries, what, records, listing=path, target=target, origin=self._origin, storage=self._storage
        )
