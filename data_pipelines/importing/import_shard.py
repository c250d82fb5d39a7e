"""One shard of an import, made from its listing in a separate process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator  # noqa: F401 (pdoc looks up inherited annotations here)
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.clips.make_shards import Job
from data_pipelines.corpora.recordings import Recording, TooLong, duration_s, raw_bytes, wave_of
from qa_train.data.audio.waveform import SAMPLE_RATE, BadAudio, stored_kind
from qa_train.data.shards.tar import AUDIO_EXTENSIONS
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.text.records import BadRecord

DROPPED_SUFFIX = ".dropped.jsonl"
# Part of the message when a shard alone exceeds the budget.
BAD = "recordings cannot be read, allowed are"


@dataclass(frozen=True)
class ImportJob(Job):
    """A shard to be made from ``listing``; more than ``max_bad`` unreadable recordings end the import."""

    listing: str = ""
    max_bad: int = 0

    @property
    def complete(self) -> bool:
        """A shard with its index; or none, when every entry was skipped."""
        return super().complete or (not self.path.exists() and len(list(dropped_of(self.path))) == self.num_clips)

    def write(self) -> int:
        """Write the shard, and its skipped entries; returns the number of its records."""
        _, audio, max_duration_s = self.arguments
        return write_entries(self.path, Path(self.listing), audio, max_duration_s, self.max_bad)


def write_entries(path: Path, listing: Path, audio: str, max_duration_s: float, max_bad: int) -> int:
    """Write the records of ``listing`` to the shard ``path``, and ``path.dropped.jsonl``.

    ``audio``: "flac" (16 kHz mono) or "keep" (whole files as they are). Raises ValueError when more than
    ``max_bad`` recordings or records cannot be used; recordings that are only too long do not count.
    """
    dropped: list[dict[str, Any]] = []
    made = bad = 0
    with ShardWriter(path, max_samples=1 << 40, max_bytes=1 << 50) as writer:
        for line in listing.read_text(encoding="utf-8").split("\n"):
            entry = json.loads(line)
            try:
                places = [Recording(**place) for place in entry["audio"]]
                extension, clips = (
                    _joined(places, max_duration_s) if entry.get("joined") else clips_of(places, audio, max_duration_s)
                )
                writer.write(entry["key"], entry["record"], clips, SAMPLE_RATE, extension=extension)
                made += 1
            except (BadAudio, BadRecord) as error:
                is_error = not isinstance(error, TooLong)
                bad += is_error
                reason = getattr(error, "reason", "bad record")
                dropped.append({"key": entry["key"], "reason": reason, "detail": str(error), "error": is_error})
            if bad > max_bad:
                last = dropped[-1]
                raise ValueError(f"{bad} {BAD} {max_bad}, e.g. {last['key']}: {last['detail']}")
        indexes = writer.close()
    dropped += [
        {"key": problem.key, "reason": problem.reason, "detail": problem.detail, "error": True}
        for index in indexes
        for problem in index.problems
    ]
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in dropped)
    Path(f"{path}{DROPPED_SUFFIX}").write_text(text, encoding="utf-8")
    return made


def dropped_of(path: Path) -> Iterator[dict[str, Any]]:
    """Skipped entries of the shard at ``path``: key, reason, detail, and whether it counts as an error."""
    side = Path(f"{path}{DROPPED_SUFFIX}")
    if side.exists():
        yield from (json.loads(line) for line in side.read_text(encoding="utf-8").splitlines())


def clips_of(places: list[Recording], audio: str, max_duration_s: float) -> tuple[str | None, list[np.ndarray | bytes]]:
    """(extension, clips) as the writer takes them: bytes of one kind, or waveforms at 16 kHz."""
    if audio == "keep" and places and all(place.whole for place in places):
        raws = [raw_bytes(place) for place in places]
        kinds = {_kind(raw, place, max_duration_s) for raw, place in zip(raws, places)}
        if len(kinds) == 1 and None not in kinds:
            return kinds.pop(), list(raws)
    return None, [wave_of(place, max_duration_s) for place in places]


def _joined(places: list[Recording], max_duration_s: float) -> tuple[None, list[np.ndarray | bytes]]:
    """The parts as one waveform at 16 kHz. Raises TooLong when they are longer together."""
    whole = np.concatenate([wave_of(place, max_duration_s) for place in places])
    if len(whole) > max_duration_s * SAMPLE_RATE:
        raise TooLong(f"{places[0].name}: {len(whole) / SAMPLE_RATE:.1f} s with what follows it")
    return None, [whole]


def _kind(raw: bytes, place: Recording, max_duration_s: float) -> str | None:
    """The shard's extension for this file, by its content; None when shards do not hold such files."""
    if duration_s(raw) > max_duration_s:
        raise TooLong(f"{place.name}: {duration_s(raw):.1f} s")
    kind = stored_kind(raw)
    return kind if kind in AUDIO_EXTENSIONS else None
