"""One line of the mixture: indexed shards, filtered, seen as one task."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow

from qa_train.config import DataConfig, SourceConfig
from qa_train.data import storage
from qa_train.data.audio import audio_tokens
from qa_train.data.clips import Clip
from qa_train.data.index import ShardIndex, load_index
from qa_train.data.plan import Ints
from qa_train.data.prompts import CHAT, PromptBank
from qa_train.data.sample import Sample
from qa_train.data.template import encode, encode_pair


class Source:
    """The records of one source that qualify for its task, in shard order.

    A row number counts these records only. ``left_out`` says why others are not among them.
    """

    def __init__(
        self,
        name: str,
        cfg: SourceConfig,
        data: DataConfig,
        bank: PromptBank,
        tokenizer: Any,
        *,
        seed: int,
        pairs: bool,
    ) -> None:
        self.name, self.cfg, self.bank, self.tokenizer = name, cfg, bank, tokenizer
        self.weight, self.seed, self.pairs = cfg.weight, seed, pairs
        if cfg.task != CHAT:
            bank.task(cfg.task)
        elif cfg.template != "chat":
            raise ValueError(f"source {name!r}: task chat has its own turns; set template: chat")
        indexes = [load_index(path) for path in storage.expand(cfg.shards)]
        self.shards = [index.path for index in indexes]
        self.problems = [(index.path, problem) for index in indexes for problem in index.problems]
        self.records_read = sum(map(len, indexes))
        self.left_out: Counter[str] = Counter()
        table = pyarrow.concat_tables([index.table.replace_schema_metadata(None) for index in indexes])
        # Large strings: a combined column may pass 2 GiB.
        large = [f.with_type(pyarrow.large_string()) if f.type == pyarrow.string() else f for f in table.schema]
        self._table = table.cast(pyarrow.schema(large)).combine_chunks()
        shard_of = np.repeat(np.arange(len(indexes)), [len(index) for index in indexes])
        self._rows = self._select(data)
        self._shard_of = shard_of[self._rows]
        self.shard_lengths = np.bincount(self._shard_of, minlength=len(indexes)).tolist()
        self.fingerprint = self._fingerprint(data, indexes)
        self._record = lru_cache(maxsize=50_000)(self._parse)

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_record": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._record = lru_cache(maxsize=50_000)(self._parse)

    @property
    def hours(self) -> float:
        """Audio of the qualifying records."""
        return float(self._table["duration_s"].to_numpy()[self._rows].sum()) / 3600

    def key(self, row: int) -> str:
        return str(self._cell("key", row))

    def shard(self, row: int) -> str:
        return self.shards[self._shard_of[row]]

    def record(self, row: int) -> dict[str, Any]:
        return self._record(row)

    def sample(self, row: int, epoch: int) -> Sample:
        """The training sample of a row, with the wording of that epoch."""
        return self.bank.sample(
            self.record(row), self.cfg.task, self.cfg.template, self.key(row), self.seed, epoch, pair=self.pairs
        )

    def clips(self, row: int) -> list[Clip]:
        """The clips of a row, in the order of the sample's audio parts."""
        key, shard = self.key(row), self.shard(row)
        columns = ("names", "offsets", "sizes", "crc32c", "num_samples")
        return [
            Clip(f"{key}.{name}/{size}/{crc:08x}", shard, f"{key}.{name}", offset, size, crc, samples)
            for name, offset, size, crc, samples in zip(*(self._cell(c, row) for c in columns), strict=True)
        ]

    def clip_tokens(self, row: int) -> list[int]:
        return [audio_tokens(n) for n in self._cell("num_samples", row)]

    def token_counts(self, rows: Ints, epochs: Ints) -> Ints:
        """Exact row lengths; a pair counts its two rows."""
        counts = np.empty(len(rows), dtype=np.int64)
        for i, (row, epoch) in enumerate(zip(rows.tolist(), epochs.tolist(), strict=True)):
            sample, clip_tokens = self.sample(row, epoch), self.clip_tokens(row)
            if self.pairs:
                prompt, chosen, rejected = encode_pair(sample, self.tokenizer, clip_tokens)
                counts[i] = 2 * len(prompt) + len(chosen) + len(rejected)
            else:
                counts[i] = len(encode(sample, self.tokenizer, clip_tokens).input_ids)
        return counts

    def _cell(self, column: str, row: int) -> Any:
        return self._table[column][int(self._rows[row])].as_py()

    def _parse(self, row: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._cell("meta", row))
        return record

    def _select(self, data: DataConfig) -> Ints:
        """Numbers of the table's rows that stay; counts the others by reason."""
        keep = []
        seen: set[tuple[str, str]] = set()
        metas = self._table["meta"].to_pylist()
        durations = self._table["duration_s"].to_pylist()
        keys = self._table["key"].to_pylist()
        for row, (key, meta, duration) in enumerate(zip(keys, metas, durations, strict=True)):
            reason = self._reason(json.loads(meta), duration, data)
            if reason is None and (key, meta) in seen:
                # The same record in two shards of one source would silently double its weight.
                reason = "duplicate record"
            if reason is None:
                keep.append(row)
                seen.add((key, meta))
            else:
                self.left_out[reason] += 1
        limit = self.cfg.max_samples
        if limit is not None and len(keep) > limit:
            self.left_out["beyond max_samples"] += len(keep) - limit
            # By hash of the key: the same subset whatever the seed and the number of shards.
            keep = sorted(sorted(keep, key=lambda row: hashlib.blake2b(keys[row].encode()).digest())[:limit])
        return np.asarray(keep, dtype=np.int64)

    def _reason(self, record: dict[str, Any], duration: float, data: DataConfig) -> str | None:
        for name, wanted in self.cfg.where.items():
            if record.get(name) not in (wanted if isinstance(wanted, list) else [wanted]):
                return "filtered by where"
        if self.pairs and "chosen" not in record:
            return "no preference pair"
        if record.get("audios") != [] and duration < data.min_duration_s:
            return "shorter than min_duration_s"
        if duration > data.max_duration_s:
            return "longer than max_duration_s"
        if not self.bank.qualifies(record, self.cfg.task, pair=self.pairs):
            return "does not qualify for the task"
        return None

    def _fingerprint(self, data: DataConfig, indexes: list[ShardIndex]) -> str:
        cfg = self.cfg
        parts: list[Any] = [cfg.task, cfg.template, sorted(cfg.where.items()), cfg.max_samples, self.bank.digest]
        parts += [data.min_duration_s, data.max_duration_s, self.pairs, self.seed]
        parts += [[index.path.rpartition("/")[2], index.fingerprint] for index in indexes]
        # Token counts decide the packing, so the vocabulary is part of the order.
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()), ensure_ascii=False)
        parts.append(hashlib.sha256(vocabulary.encode()).hexdigest())
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
