"""Filters over indexed shards: measure every record, decide, explain, and drop failing records from the index. The
shards are not changed. A dropped record is no longer in the index that training reads, and is listed there as "ignored"
with the filter's reason; ``qa-train data index`` restores it. So nothing is copied, and no other part needs a second
list.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.config import CleanConfig, StorageConfig
from qa_train.data.audio.waveform import SAMPLE_RATE, BadAudio, read_clip
from qa_train.data.shards.index import index_place, load_index, shard_fingerprint, write_index
from qa_train.data.shards.sidecar import IGNORED, Problem
from qa_train.data.stores.storage import RangeReader
from qa_train.data.text.script import script_share, spoken_characters
from qa_train.jobs.executor import HERE, Engine, each
from qa_train.utils import draws
from qa_train.utils.progress import duration

_SILENCE_FRAME = SAMPLE_RATE // 50
_CLIPPED = 0.999
# Every text field that may be a training target.
_SAID = ("text", "caption", "label", "answer")


@dataclass(frozen=True)
class Measures:
    """Measurements for the filters, from the worst clip of a record; None where not applicable."""

    key: str
    offset: int
    duration_s: float
    silence: float | None
    clipped: float | None
    sample_rate: int | None
    script: float | None
    chars_per_s: float | None
    audio: int | None
    text: int | None
    problem: str | None = None
    dense_script: bool = False


@dataclass(frozen=True)
class Drop:
    """A record that a filter refuses: the measured value and the limit that it breaks."""

    shard: str
    key: str
    offset: int
    filter: str
    value: float | str | None
    limit: float | None

    def __str__(self) -> str:
        return f"{self.filter}: {self.value} (limit {self.limit})"


@dataclass
class Cleaned:
    """Totals: records read, and dropped ones by filter."""

    records: int = 0
    seconds: float = 0.0
    seconds_dropped: float = 0.0
    dropped: Counter[str] | None = None

    def __str__(self) -> str:
        counts = self.dropped or Counter()
        by = ", ".join(f"{n} {name}" for name, n in counts.most_common()) or "none"
        return (
            f"{self.records} records ({duration(self.seconds)}); "
            f"dropped: {counts.total()} ({duration(self.seconds_dropped)}): {by}"
        )


def clean(
    paths: Sequence[str],
    cfg: CleanConfig,
    *,
    apply: bool = False,
    report: str | Path | None = None,
    engine: Engine = HERE,
    storage: StorageConfig | None = None,
) -> Cleaned:
    """Measure indexed shards and drop what breaks a limit; with ``apply`` the indexes are rewritten.

    ``report`` is a JSONL file with one line per dropped record. Records dropped by an earlier run stay dropped.
    ``storage``: how remote shards are read, and their indexes written.
    """
    if apply:
        for path in paths:
            index_place(path)
    total = Cleaned(dropped=Counter())
    seen: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(Path(report).open("w", encoding="utf-8")) if report is not None else None
        measured = each(measure_shard, paths, cfg.silence_db, storage, engine=engine, what="clean")
        for path, measures in zip(paths, measured, strict=True):
            drops = []
            for measure in measures:
                drop = decide(measure, cfg, seen)
                total.records += 1
                total.seconds += measure.duration_s
                if drop is None:
                    continue
                drops.append(replace(drop, shard=path))
                total.seconds_dropped += measure.duration_s
            total.dropped.update(drop.filter for drop in drops)  # type: ignore[union-attr]
            if file is not None:
                file.writelines(json.dumps(asdict(drop), ensure_ascii=False) + "\n" for drop in drops)
            if apply and drops:
                _take_out(path, drops, storage)
    return total


def decide(m: Measures, cfg: CleanConfig, seen: tuple[Counter[int], Counter[int]]) -> Drop | None:
    """The first filter that refuses a record, or None. ``seen`` counts the audio and the texts kept so far."""
    fastest = cfg.max_chars_per_s
    if fastest is not None and m.dense_script:
        fastest /= 2
    checks: list[tuple[str, float | None, float | None, bool]] = [
        ("too short", m.duration_s, cfg.min_duration_s, True),
        ("too long", m.duration_s, cfg.max_duration_s, False),
        ("sample rate", m.sample_rate, cfg.min_sample_rate, True),
        ("silence", m.silence, cfg.max_silence, False),
        ("clipping", m.clipped, cfg.max_clipped, False),
        ("language and script", m.script, cfg.min_script, True),
        ("too few characters per second", m.chars_per_s, cfg.min_chars_per_s, True),
        ("too many characters per second", m.chars_per_s, fastest, False),
    ]
    if m.problem is not None:
        return Drop("", m.key, m.offset, "unreadable audio", m.problem, None)
    for name, value, limit, least in checks:
        # A text-only record has no audio to be too short.
        if value is None or limit is None or (m.audio is None and name in ("too short", "too long")):
            continue
        if value < limit if least else value > limit:
            return Drop("", m.key, m.offset, name, round(value, 4), limit)
    for name, digest, most, counts in (
        ("same audio", m.audio, cfg.max_same_audio, seen[0]),
        ("same text", m.text, cfg.max_same_text, seen[1]),
    ):
        if digest is not None and most is not None and counts[digest] >= most:
            return Drop("", m.key, m.offset, name, counts[digest] + 1, most)
    for digest, most, counts in ((m.audio, cfg.max_same_audio, seen[0]), (m.text, cfg.max_same_text, seen[1])):
        if digest is not None and most is not None:
            counts[digest] += 1
    return None


def measure_shard(path: str, silence_db: float, storage: StorageConfig | None = None) -> list[Measures]:
    """Every record of an indexed shard, decoded and measured."""
    reader = RangeReader(storage)
    return [_measure(reader, path, row, silence_db) for row in load_index(path, storage).table.to_pylist()]


def _measure(reader: RangeReader, path: str, row: dict[str, Any], silence_db: float) -> Measures:
    record = json.loads(row["meta"])
    offset = row["offsets"][0] if row["offsets"] else 0
    text, language = record.get("text"), record.get("language")
    share, dense = script_share(text, language) if text else (None, False)
    rate = None
    if text and row["duration_s"]:
        rate = spoken_characters(text) / row["duration_s"]
    common = Measures(
        row["key"], offset, row["duration_s"], None, None, min(row["sample_rates"], default=None), share, rate, None,
        _text_digest(record), dense_script=dense,
    )  # fmt: skip
    if not row["offsets"]:
        return common
    silence, clipped = 0.0, 0.0
    digest = hashlib.blake2b(digest_size=8)
    try:
        for wave in _waves(reader, path, row):
            silence, clipped = max(silence, silent_share(wave, silence_db)), max(clipped, clipped_share(wave))
            # The sound itself, at 16 bits: the same recording in another lossless container counts as the same.
            digest.update((wave * 32767).round().astype(np.int16).tobytes())
    except BadAudio as error:
        # A failure of disk or server is not a fault of the record: it ends the command.
        return replace(common, problem=str(error))
    return replace(common, silence=silence, clipped=clipped, audio=int.from_bytes(digest.digest()))


def silent_share(wave: np.ndarray, silence_db: float) -> float:
    """Share of 20 ms frames of a waveform [n] with a root mean square below ``silence_db`` of full scale."""
    usable = len(wave) // _SILENCE_FRAME * _SILENCE_FRAME
    frames = (wave[:usable] if usable else wave).reshape(-1, _SILENCE_FRAME if usable else len(wave))
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return float((power < 10 ** (silence_db / 10)).mean())


def clipped_share(wave: np.ndarray) -> float:
    """Share of samples at full scale."""
    return float((np.abs(wave) >= _CLIPPED).mean())


def _waves(reader: RangeReader, path: str, row: dict[str, Any]) -> Iterator[np.ndarray]:
    columns = (row[name] for name in ("offsets", "sizes", "crc32c", "num_samples"))
    for *place, samples in zip(*columns, strict=True):
        yield read_clip(reader.read(path, *place), max_duration_s=samples / SAMPLE_RATE + 1)


def _text_digest(record: dict[str, Any]) -> int | None:
    """Letters and digits of the record's texts, in lower case."""
    said = " ".join(str(record[name]) for name in _SAID if record.get(name))
    said += json.dumps(record["messages"], ensure_ascii=False) if record.get("messages") else ""
    plain = re.sub(r"[\W_]+", " ", said).strip().lower()
    return int.from_bytes(draws.digest(plain)) if plain else None


def _take_out(path: str, drops: list[Drop], storage: StorageConfig | None) -> None:
    index = load_index(path, storage)
    dropped = {drop.key: drop for drop in drops}
    rows = [row for row in index.table.to_pylist() if row["key"] not in dropped]
    table = index.table.schema.remove_metadata().empty_table().from_pylist(rows, index.table.schema.remove_metadata())
    problems = [Problem(drop.key, drop.offset, IGNORED, f"data clean, {drop}") for drop in drops]
    made = replace(index, table=table, fingerprint=shard_fingerprint(rows), problems=index.problems + problems)
    write_index(made, cfg=storage)
