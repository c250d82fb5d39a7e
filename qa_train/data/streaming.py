"""Shards and mixtures as a stream of decoded samples, for code that is not ours."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from qa_train.config import DataConfig, SourceConfig, StorageConfig
from qa_train.data.audio.waveform import SAMPLE_RATE
from qa_train.data.clips import Clip, ClipReader, SkipSample
from qa_train.data.open_sources import BUDGET_FLOOR, open_sources
from qa_train.data.order.batch_plan import Plan, SampleRef
from qa_train.data.order.epoch import EpochOrder, Ints
from qa_train.data.order.shuffle_window import Lengths
from qa_train.data.shards import wds
from qa_train.data.shards.catalog import ShardTable, open_shards
from qa_train.data.shards.row_reader import CLIP_COLUMNS, RowReader
from qa_train.data.source import Source
from qa_train.data.text.content import plain_messages
from qa_train.data.text.records import stored_record
from qa_train.utils.masking import masked

log = logging.getLogger(__name__)
# Rows of a shuffled order at a time.
_BLOCK = 8192
_Shards = str | Path | Sequence[str | Path]
_Mixture = DataConfig | Mapping[str, SourceConfig | Mapping[str, Any]]


def stream(
    data: _Shards | _Mixture, *, seed: int | None = None, start: int = 0, storage: StorageConfig | None = None,
    error_budget: float = 0.01,
) -> Any:  # fmt: skip
    """A ``webdataset.DataPipeline`` of the decoded samples of shards, or of a mixture.

    Shards give every record once: in their order, or with ``seed`` in a shuffled one. A mixture gives samples without
    end, in the shares of its sources, and with the wording of their tasks.

    A sample is a dict of the record's fields (``text``, ``language``, ``messages``, ...) and of

    - ``audio``: a list of its clips, float32 [n] in [-1, 1], mono;
    - ``sampling_rate``: 16,000, whatever the file has;
    - ``__key__`` and ``__url__``: its key, and the path or address of its shard;
    - of a mixture also ``source``, ``task``, ``epoch``, and ``messages``: its turns, with ``<audio>`` for a clip.

    Samples are dealt out one by one to the ranks (torch.distributed, or RANK and WORLD_SIZE), and those of a rank to
    the workers of its ``DataLoader``: all follow the same order, and none has the sample of another.

    Args:
        data: paths, folders, globs, braces, URLs and catalogs of indexed shards; or the ``data`` section of a
            configuration; or sources by name, ``{"asr": {"shards": [...], "task": "asr", "weight": 3}}``.
        seed: of the order, and of the wordings of a mixture (default: the section's, or 0).
        start: samples to pass over, of all processes together: a stream of the same data and seed goes on there.
        storage: how remote shards are read. A configuration has its own.
        error_budget: share of the samples of a process that may be unreadable (at least 10 samples at 1 %); they are
            skipped with a warning. A configuration has its own.

    Raises:
        ValueError: a source without a task or with an unknown setting; an index is missing or stale, nothing is
            usable, or, later, too many samples are unreadable.
    """
    if isinstance(data, Mapping):
        sources = {name: _source(name, given) for name, given in data.items()}
        data = DataConfig(sources=sources, storage=storage or StorageConfig(), error_budget=error_budget)
    elif isinstance(data, DataConfig) and (storage is not None or error_budget != 0.01):
        raise ValueError("storage and error_budget are those of the configuration: set them there")
    if isinstance(data, DataConfig):
        samples: _ShardSamples | _MixtureSamples = _MixtureSamples(data, data.seed if seed is None else seed)
        storage, error_budget = data.storage, data.error_budget
        reader = ClipReader(0, storage, data.decode_timeout_s)
    else:
        samples = _ShardSamples(open_shards(data, cfg=storage), seed)
        reader = ClipReader(0, storage)
    return wds.shared_out(partial(samples.places, start), _Decoded(samples, reader, error_budget))


def _source(name: str, given: SourceConfig | Mapping[str, Any]) -> SourceConfig:
    if not isinstance(given, SourceConfig | Mapping):
        raise ValueError(f"source {name!r} is {given!r}, expected its settings: {{'shards': [...], 'task': 'asr'}}")
    settings = vars(given) if isinstance(given, SourceConfig) else {"name": name, **given}
    known = [field.name for field in fields(SourceConfig)]
    if unknown := sorted({*settings} - {*known}):
        raise ValueError(f"source {name!r}: there is no setting {', '.join(unknown)}; it has {', '.join(known)}")
    if settings.get("task", MISSING) == MISSING:
        raise ValueError(
            f"source {name!r} has no task, such as asr; to stream records as they are, give the shards alone"
        )
    shards = settings.get("shards", [])
    named = [shards] if isinstance(shards, str | Path) else shards
    return SourceConfig(**settings | {"shards": [*map(str, named)]})


class _ShardSamples:
    """The records of shards, each once; a place is the number of a row."""

    def __init__(self, table: ShardTable, seed: int | None) -> None:
        self._table, self._seed = table, seed
        self._at = RowReader(table, table.rows)
        if table.problems or table.copies:
            log.warning("not in the stream: %s", dict(table.problems + Counter({"copies of a shard": table.copies})))

    def places(self, start: int) -> Iterator[int]:
        """Rows in their order, from number ``start`` on."""
        total = int(self._table.rows.sum())
        order = None if self._seed is None else EpochOrder(self._table.rows, self._seed, "stream")
        for first in range(start, total, _BLOCK):
            stop = min(first + _BLOCK, total)
            yield from range(first, stop) if order is None else order.rows(first, stop - first).tolist()

    def read(self, row: int) -> tuple[dict[str, Any], list[Clip]]:
        """The record of a row, and its clips."""
        key, lengths, meta = self._at.cells(("key", "num_samples", "meta"), row)
        shard = self._table.paths[self._at.shard_of(row)]
        columns = self._at.cells(CLIP_COLUMNS, row, clips=True)
        clips = [Clip("", shard, f"{key}.{name}", *numbers) for name, *numbers in zip(*columns, lengths, strict=True)]
        return stored_record(meta) | {"__key__": key, "__url__": shard}, clips


class _MixtureSamples:
    """The samples of a mixture without end; a place names source, row and epoch."""

    def __init__(self, data: DataConfig, seed: int) -> None:
        self._sources = open_sources(data, _NoTokenizer(), seed=seed, preference=False)
        self._plan = Plan(
            [_OneToken(source) for source in self._sources],
            seed=seed, tokens_per_batch=1, batches_per_step=1, shuffle_window=data.shuffle_window,
        )  # fmt: skip

    def places(self, start: int) -> Iterator[SampleRef]:
        """Samples in their order, from number ``start`` on."""
        for number in count(start):
            yield from self._plan.batch(number)

    def read(self, ref: SampleRef) -> tuple[dict[str, Any], list[Clip]]:
        """The record of a sample with the messages of its task, and its clips."""
        source = self._sources[ref.source]
        known = {
            "messages": plain_messages(source.sample(ref.row, ref.epoch)),
            "source": source.name,
            "task": source.cfg.task,
            "epoch": ref.epoch,
            "__key__": source.key(ref.row),
            "__url__": source.shard(ref.row),
        }
        return source.record(ref.row) | known, source.clips(ref.row)


class _NoTokenizer:
    """Nothing is tokenized: a source has a vocabulary in its fingerprint alone."""

    def get_vocab(self) -> dict[str, int]:
        """No words."""
        return {}


class _OneToken:
    """A source for a plan whose batches have one token: every sample has one, so each batch is one sample."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name, self.weight, self.fingerprint = source.name, source.weight, source.fingerprint
        self.shard_lengths, self.max_epochs = source.shard_lengths, source.max_epochs
        self.settings, self.shard_ids = source.settings, source.shard_ids

    def lengths(self, rows: Ints, epoch: int) -> Lengths:
        """One for every row that qualifies."""
        reasons = self._source.eligible.of_rows(rows)
        none = np.zeros(len(rows), dtype=np.int64)
        return Lengths((reasons == "").astype(np.int64), none, none, none, none, reasons)


class _Decoded:
    """The stage that reads and decodes: places in, samples out."""

    def __init__(self, samples: _ShardSamples | _MixtureSamples, reader: ClipReader, error_budget: float) -> None:
        self._samples, self._reader, self._budget = samples, reader, error_budget

    def __call__(self, places: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Unreadable samples are skipped with a warning; ValueError beyond the budget."""
        bad = 0
        for seen, place in enumerate(places, 1):
            sample, clips = self._samples.read(place)
            try:
                audio = [self._reader.wave(clip) for clip in clips]
            except SkipSample as skip:
                bad += 1
                shard, why = masked(sample["__url__"]), masked(skip)
                log.warning("skipped %s of %s (%s): %s", sample["__key__"], shard, skip.reason, why)
                if bad > self._budget * max(seen, BUDGET_FLOOR):
                    raise ValueError(
                        f"{bad} of {seen} samples could not be read, more than error_budget={self._budget:g} allows; "
                        f"the last: {sample['__key__']} of {shard} ({skip.reason}): {why}. Repair or index the shards "
                        "again, or raise the budget."
                    ) from None
                continue
            yield sample | {"audio": audio, "sampling_rate": SAMPLE_RATE}
