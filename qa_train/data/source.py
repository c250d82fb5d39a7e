"""One line of the mixture: indexed shards, filtered, seen as one task. Rows are read when they are needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.audio.front_end import FRONT_END, Length
from qa_train.data.audio.waveform import audio_tokens
from qa_train.data.clips import Clip
from qa_train.data.eligible import BEYOND, Eligible
from qa_train.data.order import mixture
from qa_train.data.order.epoch import Ints
from qa_train.data.order.shuffle_window import Lengths
from qa_train.data.shards.catalog import ShardTable, open_shards
from qa_train.data.shards.row_reader import CLIP_COLUMNS, PLAN_COLUMNS, RowReader, records_of
from qa_train.data.shards.token_counts import CountReader
from qa_train.data.text.counting import UNQUALIFIED, TokenCounts, Use
from qa_train.data.text.prompts import CHAT, PromptBank, Unqualified
from qa_train.data.text.sample import Sample
from qa_train.data.text.template import Outline, measure, outline_documents
from qa_train.utils import draws
from qa_train.utils.masking import name_of


class Source:
    """The records of one source. A row number counts all records of the shards that may hold a sample.

    Opening it reads no rows. Whether a row qualifies for the task is determined when its window is planned (see
    `Eligible`).
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
        table: ShardTable | None = None,
    ) -> None:
        self.name, self.cfg, self.bank, self.tokenizer = name, cfg, bank, tokenizer
        self.weight, self.seed, self.pairs, self.max_epochs = cfg.weight, seed, pairs, cfg.max_epochs
        if cfg.task != CHAT:
            bank.task(cfg.task)
        elif cfg.template != "chat":
            raise ValueError(f"source {name!r}: task chat has its own turns; set template: chat")
        self.table = table or open_shards(cfg.shards, cfg.where, data.storage)
        self.shards = self.table.paths
        self.problems = self.table.problems
        self.records_read = int(self.table.rows.sum()) + self.table.copies
        # Samples of each shard at most, when max_samples cuts the source.
        self.quotas = mixture.quotas(self.table.matching, cfg.max_samples)
        holds = self.table.matching > 0 if self.quotas is None else self.quotas > 0
        self.shard_lengths: Ints = np.where(holds, self.table.rows, 0)
        self._at = RowReader(self.table, self.shard_lengths)
        self.use = Use(bank, tokenizer, cfg.task, cfg.template, cfg.where, pairs, cfg.last_turn_only)
        self._counted = CountReader(self.table, self.use, data.storage)
        # Shards whose rows were planned without counts.
        self._wanted: dict[int, None] = {}
        limits = data.min_duration_s, data.max_duration_s
        self.eligible = Eligible(self.table, self.shard_lengths, self.quotas, self.use, self._at, self._counted, limits)
        # With max_samples, new shards change which records of the others are taken.
        self.shard_ids: Sequence[str] | None = self.eligible.shard_ids() if self.quotas is None else None
        self.settings, self.fingerprint = self._fingerprints(data)

    def rows(self) -> Iterator[int]:
        """Numbers of the rows that qualify, in shard order."""
        for shard in range(len(self.shards)):
            yield from self.eligible.rows_of(shard)

    def clips_of_shard(self, shard: int) -> Iterator[Clip]:
        """The clips of a shard's rows that qualify, in order."""
        for row in self.eligible.rows_of(shard):
            yield from self.clips(row)

    def check(self) -> None:
        """Raises ValueError when no record qualifies; stops at the first that does."""
        reasons = (reason for shard in range(len(self.shards)) for reason in self.eligible.each(shard))
        if all(reasons):
            raise ValueError(
                f"source {self.name!r}: none of {self.records_read} records in {len(self.shards)} shards is "
                f"usable for task {self.cfg.task!r}; skipped: {dict(self.eligible.counts.skipped)}. Check its task and "
                f"where{self._fits()}"
            )

    def _fits(self) -> str:
        """Tasks that the first record qualifies for, for a message."""
        if not self.shard_lengths.sum():
            return ""
        record, bank = self.record(0), self.bank
        chat = [f"{CHAT} (with template: chat)"] if record.get("messages") and bank.qualifies(record, CHAT) else []
        # Questions of audio analysis fit almost everything: last.
        names = sorted(bank.tasks, key=lambda name: (bank.tasks[name].family == "analysis", name))
        tasks = [*chat, *(name for name in names if bank.qualifies(record, name))]
        return f"; its first record fits {', '.join(tasks[:8]) or 'no task of the bank'}"

    def key(self, row: int) -> str:
        """The key of a row's record in its shard."""
        return str(self._at.cell("key", row))

    def shard(self, row: int) -> str:
        """The path of a row's shard."""
        return self.shards[self._at.shard_of(row)]

    def shard_digest(self, row: int) -> str:
        """The digest of the index of a row's shard."""
        return self.table.fingerprints[self._at.shard_of(row)]

    def record(self, row: int) -> dict[str, Any]:
        """The JSON of a row's record."""
        return self._stored(row, self._at.cell("meta", row))

    def _stored(self, row: int, meta: str) -> dict[str, Any]:
        shard = self._at.shard_of(row)
        return next(records_of([meta], self.shards[shard], row - self._at.first(shard)))

    def sample(self, row: int, epoch: int) -> Sample:
        """The training sample of a row, with the wording of that epoch."""
        return self._sample(self.record(row), self.key(row), epoch)

    def clips(self, row: int) -> list[Clip]:
        """The clips of a row, in the order of the sample's audio parts."""
        (key, lengths), shard = self._at.cells(("key", "num_samples"), row), self.shard(row)
        columns = self._at.cells(CLIP_COLUMNS, row, clips=True)
        return [
            Clip(f"{key}.{name}/{size}/{crc:08x}", shard, f"{key}.{name}", offset, size, crc, samples)
            for name, offset, size, crc, samples in zip(*columns, lengths, strict=True)
        ]

    def clip_tokens(self, row: int) -> list[int]:
        """Audio tokens of each clip of a row."""
        return [audio_tokens(n) for n in self._at.cell("num_samples", row)]

    def lengths(self, rows: Ints, epoch: int) -> Lengths:
        """Exact lengths with the wording of that epoch, and why rows are skipped; a pair counts its two rows.

        Rows of shards with token counts are summed as arrays; the texts of others are tokenized.
        """
        numbers = np.zeros((5, len(rows)), dtype=np.int64)
        reasons = np.full(len(rows), "", dtype=object)
        shards = self._at.shards_of(rows)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            local = rows[places] - self._at.first(shard)
            counts = self._counted.find(shard)
            if counts is None:
                self._wanted[shard] = None
                numbers[:, places], reasons[places] = self._measured(shard, local, epoch)
            else:
                numbers[:, places], reasons[places] = self._summed(shard, local, epoch, counts)
        tokens, tokens_squared, audio, audio_squared, scored = numbers
        return Lengths(tokens, tokens_squared, audio, audio_squared, scored, reasons)

    def _summed(self, shard: int, local: Ints, epoch: int, counts: TokenCounts) -> tuple[Ints, NDArray[np.object_]]:
        """[5, rows] and reasons, from the counts of the texts."""
        table = self._at.rows(shard)
        reasons = self.eligible.of_counted(shard, local, counts)
        audio, audio_squared = _audio(table["num_samples"].take(local))
        wordings = counts.wordings[counts.kind[local]]
        choices = (wordings >= 0).sum(1)
        drawn = np.zeros(len(local), dtype=np.int64)
        open_ = np.flatnonzero((choices > 1) & (reasons == ""))
        keys = table["key"].take(local[open_]).to_pylist()
        drawn[open_] = draws.below_each(choices[open_], [self.seed, epoch], keys, [self.cfg.task])
        asked = wordings[np.arange(len(local)), drawn].astype(np.int64)
        texts = counts.text[local].astype(np.int64) + (audio + asked)[:, None]
        numbers = np.stack([texts.sum(1), (texts**2).sum(1), audio, audio_squared, counts.scored[local]])
        return numbers * (reasons == ""), reasons

    def _measured(self, shard: int, local: Ints, epoch: int) -> tuple[Ints, NDArray[np.object_]]:
        """What `_summed` gives, of texts that are tokenized now."""
        numbers = np.zeros((5, len(local)), dtype=np.int64)
        reasons = np.full(len(local), "", dtype=object)
        table = self._at.rows(shard).take(local)
        columns = [table[name].to_pylist() for name in PLAN_COLUMNS]
        kept = self.eligible.kept(shard)
        room = None if kept is None else set(kept.tolist())
        good: list[tuple[int, list[Outline], list[int]]] = []
        for place, number, *cells in zip(range(len(local)), local.tolist(), *columns, strict=True):
            found = self._documents(number + self._at.first(shard), epoch, *cells)
            if isinstance(found, str):
                reasons[place] = found
            elif room is not None and number not in room:
                reasons[place] = BEYOND
            else:
                good.append((place, *found))
        measured = iter(measure([each for _, documents, _ in good for each in documents], self.tokenizer).tolist())
        for place, documents, clips in good:
            of_each, learned = zip(*(next(measured) for _ in documents), strict=True)
            of_clips = sum(clips), sum(map(_squared, clips))
            numbers[:, place] = sum(of_each), sum(n**2 for n in of_each), *of_clips, sum(learned)
        return numbers, reasons

    def count_one(self) -> bool:
        """Count the tokens of one shard that was planned without, for the processes of this node; False if none is
        left."""
        if not self._wanted:
            return False
        shard, _ = self._wanted.popitem()
        metas = self._at.rows(shard)["meta"].to_pylist
        self._counted.make(shard, lambda: records_of(metas(), self.shards[shard]))
        return True

    def _documents(
        self, row: int, epoch: int, key: str, samples: list[int], seconds: float, meta: str
    ) -> tuple[list[Outline], list[int]] | str:
        """The documents of a row (a pair has two) and its clips' audio tokens; or why the row is skipped."""
        record = self._stored(row, meta)
        if reason := self.eligible.of_record(row, record, seconds):
            return reason
        clips = [audio_tokens(n) for n in samples]
        try:
            sample = self._sample(record, key, epoch)
        except Unqualified:
            return UNQUALIFIED
        last_turn_only = self.cfg.last_turn_only
        return outline_documents(sample, self.tokenizer, clips, pair=self.pairs, last_turn_only=last_turn_only), clips

    def _sample(self, record: dict[str, Any], key: str, epoch: int) -> Sample:
        return self.bank.sample(record, self.cfg.task, self.cfg.template, key, self.seed, epoch, pair=self.pairs)

    def _fingerprints(self, data: DataConfig) -> tuple[str, str]:
        """Of the settings that the order depends on, and of these with the shards."""
        cfg = self.cfg
        parts: list[Any] = [cfg.task, cfg.template, sorted(cfg.where.items()), cfg.max_samples]
        parts.append(self.bank.digest(cfg.task))
        if cfg.last_turn_only:
            # Scored rows are part of the cost.
            parts.append("last_turn_only")
        parts += [
            data.min_duration_s,
            data.max_duration_s,
            self.pairs,
            self.seed,
            vocabulary_digest(self.tokenizer),
        ]
        digest = hashlib.sha256(json.dumps(parts, default=str).encode())
        settings = digest.hexdigest()
        for path, fingerprint in zip(self.shards, self.table.fingerprints, strict=True):
            digest.update(f"{name_of(path)} {fingerprint}\n".encode())
        return settings, digest.hexdigest()


def _audio(samples: pyarrow.ChunkedArray) -> tuple[Ints, Ints]:
    """Audio tokens of each row's clips, and their squares (`_squared`), from lists of sample counts."""
    clips = FRONT_END.tokens(pyarrow.compute.list_flatten(samples).to_numpy())
    ends = np.cumsum(pyarrow.compute.list_value_length(samples).to_numpy())
    sums = (np.concatenate([[0], np.cumsum(each)])[ends] for each in (clips, _squared(clips)))
    tokens, squared = (np.diff(each, prepend=0) for each in sums)
    return tokens, squared


def _squared(tokens: Length) -> Length:
    """Sum of squares over the segments of at most 30 s that a clip of so many audio tokens is cut into."""
    whole = FRONT_END.segment_tokens
    return tokens // whole * whole**2 + (tokens % whole) ** 2


@lru_cache(maxsize=4)
def vocabulary_digest(tokenizer: Any) -> str:
    """Token counts decide the packing, so the vocabulary is part of the order."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(vocabulary.encode()).hexdigest()
