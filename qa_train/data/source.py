"""One line of the mixture: indexed shards, filtered, seen as one task. Rows are read when they are needed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.audio.front_end import FRONT_END, Length
from qa_train.data.audio.waveform import audio_tokens
from qa_train.data.clips import Clip
from qa_train.data.order import mixture
from qa_train.data.order.epoch import Ints
from qa_train.data.order.shuffle_window import Lengths
from qa_train.data.shards.catalog import ShardTable, open_shards
from qa_train.data.shards.row_reader import CLIP_COLUMNS, PLAN_COLUMNS, RowReader, records_of
from qa_train.data.shards.token_counts import CountReader
from qa_train.data.text.counting import REASONS, UNQUALIFIED, TokenCounts, Use
from qa_train.data.text.prompts import CHAT, PromptBank, Unqualified
from qa_train.data.text.sample import Sample
from qa_train.data.text.template import Outline, measure, outline, outline_answers, outline_prompt
from qa_train.utils import draws
from qa_train.utils.identity import ById
from qa_train.utils.masking import name_of

# Sources of up to so many records are searched for records that two shards share; larger ones only for
# shards that are copies of another.
DUPLICATE_RECORDS = 200_000
# Records looked at for the first screen; more than that are extrapolated.
OVERVIEW_RECORDS = 20_000
# Why a record is skipped, apart from its text (`counting.REASONS`).
_SHORT, _LONG = "shorter than min_duration_s", "longer than max_duration_s"
_TWICE, _BEYOND = "duplicate record", "beyond max_samples"
# Of which ``reasons`` keeps its answers: small sources are read again and again.
_JUDGED_SHARDS = 64


@dataclass(frozen=True)
class Overview:
    """Samples that qualify, their seconds of audio, and why other records do not; extrapolated unless ``exact``."""

    samples: int
    seconds: float
    skipped: Counter[str]
    exact: bool


class Source:
    """The records of one source. A row number counts all records of the shards that may hold a sample.

    Opening it reads no rows. Whether a row qualifies for the task is determined when its window is planned; ``len``,
    ``hours``, ``skipped`` and ``rows`` read every record.
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
        self._limits = data.min_duration_s, data.max_duration_s
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
        self._kept_rows: dict[int, Ints] = {}
        self._judged: OrderedDict[int, NDArray[np.object_]] = OrderedDict()
        # With max_samples, new shards change which records of the others are taken.
        self.shard_ids: Sequence[str] | None = None
        self.settings, self.fingerprint = self._fingerprints(data)
        self._duplicates = self._find_duplicates()
        if self.quotas is None:
            self.shard_ids = self._ids()
        self._twice = np.asarray(sorted(self._duplicates), dtype=np.int64)

    def __len__(self) -> int:
        return self.counts.samples

    @property
    def hours(self) -> float:
        """Audio of the qualifying records."""
        return self.counts.seconds / 3600

    @property
    def skipped(self) -> Counter[str]:
        """Records that do not qualify, by reason."""
        return self.counts.skipped

    @cached_property
    def counts(self) -> Overview:
        """Exact counts, from every record."""
        return self._count(range(len(self.shards)), exact=True)

    @cached_property
    def overview(self) -> Overview:
        """Exact counts of a small source; of a large one, what some shards spread over it suggest."""
        if "counts" in self.__dict__ or self.shard_lengths.sum() <= OVERVIEW_RECORDS:
            return self.counts
        used = np.flatnonzero(self.shard_lengths)
        # Shards in an order in which every beginning is spread over the source.
        spread = sorted(range(len(used)), key=lambda n: int(f"{n:032b}"[::-1], 2))
        enough = np.searchsorted(np.cumsum(self.shard_lengths[used[spread]]), OVERVIEW_RECORDS) + 1
        some = self._count(used[spread[:enough]].tolist(), exact=False)
        scale = self.shard_lengths.sum() / self.shard_lengths[used[spread[:enough]]].sum()
        left = Counter({reason: round(n * scale) for reason, n in some.skipped.items()}) + self._dropped()
        return Overview(round(some.samples * scale), some.seconds * scale, left, exact=False)

    def rows(self) -> Iterator[int]:
        """Numbers of the rows that qualify, in shard order."""
        for shard in range(len(self.shards)):
            yield from (np.flatnonzero(self._reasons(shard) == "") + self._at.first(shard)).tolist()

    def clips_of_shard(self, shard: int) -> Iterator[Clip]:
        """The clips of a shard's rows that qualify, in order."""
        for row in (np.flatnonzero(self._reasons(shard) == "") + self._at.first(shard)).tolist():
            yield from self.clips(row)

    def choice(self, shard: int) -> str:
        """Digest of which records of a shard qualify, found without reading them: of the settings that decide it."""
        parts = [self._choice, None if self.quotas is None else int(self.quotas[shard]), self._duplicates_of[shard]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @cached_property
    def _choice(self) -> list[Any]:
        cfg = self.cfg
        where = json.dumps(sorted(cfg.where.items()), default=str)
        return [cfg.task, where, self.bank.digest(cfg.task), *self._limits, self.pairs]

    @cached_property
    def _duplicates_of(self) -> defaultdict[int, list[int]]:
        """Rows of each shard that another shard has too."""
        found = defaultdict[int, list[int]](list)
        for row in sorted(self._duplicates):
            shard = self._at.shard_of(row)
            found[shard].append(row - self._at.first(shard))
        return found

    def reasons(self, rows: Ints) -> NDArray[np.object_]:
        """Why each of the rows is skipped; empty for those that qualify. Nothing is tokenized."""
        found = np.full(len(rows), "", dtype=object)
        shards = self._at.shards_of(rows)
        for shard in np.unique(shards).tolist():
            if shard not in self._judged:
                self._judged[shard] = self._reasons(shard)
                if len(self._judged) > _JUDGED_SHARDS:
                    self._judged.popitem(last=False)
            places = shards == shard
            found[places] = self._judged[shard][rows[places] - self._at.first(shard)]
        return found

    def check(self) -> None:
        """Raises ValueError when no record qualifies; stops at the first that does."""
        reasons = (reason for shard in range(len(self.shards)) for reason in self._each_reason(shard))
        if all(reasons):
            raise ValueError(
                f"source {self.name!r}: none of {self.records_read} records in {len(self.shards)} shards is "
                f"usable for task {self.cfg.task!r}; skipped: {dict(self.skipped)}. Check its task and "
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
        reasons = self._judge(shard, local, counts)
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

    def _judge(self, shard: int, local: Ints, counts: TokenCounts, *, quota: bool = True) -> NDArray[np.object_]:
        """Why rows of a counted shard are skipped; empty for those that qualify."""
        of_text = np.asarray(REASONS, dtype=object)[counts.reason[local]]
        seconds = self._at.rows(shard)["duration_s"].to_numpy()[local]
        rows = local + self._at.first(shard)
        kept = self._kept(shard) if quota else None
        return np.select(
            [
                (of_text != "") & (of_text != UNQUALIFIED),
                ~counts.silent[local] & (seconds < self._limits[0]),
                seconds > self._limits[1],
                np.isin(rows, self._twice),
                of_text != "",
                np.zeros(len(local), dtype=bool) if kept is None else ~np.isin(local, kept),
            ],
            [of_text, _SHORT, _LONG, _TWICE, of_text, _BEYOND],
            "",
        )

    def _measured(self, shard: int, local: Ints, epoch: int) -> tuple[Ints, NDArray[np.object_]]:
        """What `_summed` gives, of texts that are tokenized now."""
        numbers = np.zeros((5, len(local)), dtype=np.int64)
        reasons = np.full(len(local), "", dtype=object)
        table = self._at.rows(shard).take(local)
        columns = [table[name].to_pylist() for name in PLAN_COLUMNS]
        kept = self._kept(shard)
        room = None if kept is None else set(kept.tolist())
        good: list[tuple[int, list[Outline], list[int]]] = []
        for place, number, *cells in zip(range(len(local)), local.tolist(), *columns, strict=True):
            found = self._documents(number + self._at.first(shard), epoch, *cells)
            if isinstance(found, str):
                reasons[place] = found
            elif room is not None and number not in room:
                reasons[place] = _BEYOND
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
        self._counted.make(shard, lambda: self._records(shard))
        return True

    def _records(self, shard: int) -> Iterator[dict[str, Any]]:
        return records_of(self._at.rows(shard)["meta"].to_pylist(), self.shards[shard])

    def _documents(
        self, row: int, epoch: int, key: str, samples: list[int], seconds: float, meta: str
    ) -> tuple[list[Outline], list[int]] | str:
        """The documents of a row (a pair has two) and its clips' audio tokens; or why the row is skipped."""
        record = self._stored(row, meta)
        if reason := self._reason(row, record, seconds):
            return reason
        clips = [audio_tokens(n) for n in samples]
        try:
            sample = self._sample(record, key, epoch)
        except Unqualified:
            return UNQUALIFIED
        if self.pairs:
            prompt = outline_prompt(sample, self.tokenizer, clips)
            return [prompt + answer for answer in outline_answers(sample, self.tokenizer)], clips
        return [outline(sample, self.tokenizer, clips, last_turn_only=self.cfg.last_turn_only)], clips

    def _sample(self, record: dict[str, Any], key: str, epoch: int) -> Sample:
        return self.bank.sample(record, self.cfg.task, self.cfg.template, key, self.seed, epoch, pair=self.pairs)

    def _reason(self, row: int, record: dict[str, Any], seconds: float) -> str:
        """Why a row is skipped, apart from its task; empty if it is not."""
        if reason := self.use.unfit(record):
            return reason
        if record.get("audios") != [] and seconds < self._limits[0]:
            return _SHORT
        if seconds > self._limits[1]:
            return _LONG
        # The same record in two shards of one source would silently double its weight.
        return _TWICE if row in self._duplicates else ""

    def _reasons(self, shard: int, *, quota: bool = True) -> NDArray[np.object_]:
        """Why each row of a shard is skipped; empty for those that qualify."""
        counts = self._counted.find(shard) if self.shard_lengths[shard] else None
        if counts is not None:
            return self._judge(shard, np.arange(len(counts)), counts, quota=quota)
        return np.asarray([*self._each_reason(shard, quota=quota), None], dtype=object)[:-1]

    def _each_reason(self, shard: int, *, quota: bool = True) -> Iterator[str]:
        if not self.shard_lengths[shard]:
            return
        first, seconds = self._at.first(shard), self._at.rows(shard)["duration_s"].to_pylist()
        kept = self._kept(shard) if quota else None
        room = None if kept is None else set(kept.tolist())
        for i, record in enumerate(self._records(shard)):
            reason = self._reason(first + i, record, seconds[i])
            if not reason and not self.bank.qualifies(record, self.cfg.task, pair=self.pairs):
                reason = UNQUALIFIED
            yield reason or ("" if room is None or i in room else _BEYOND)

    def _kept(self, shard: int) -> Ints | None:
        """Rows of a shard that its part of max_samples has room for: by hash of the key, whatever the seed."""
        if self.quotas is None:
            return None
        if shard not in self._kept_rows:
            good = np.flatnonzero(self._reasons(shard, quota=False) == "").tolist()
            keys = self._at.rows(shard)["key"].to_pylist()
            good.sort(key=lambda row: draws.digest(keys[row], 64))
            self._kept_rows[shard] = np.sort(np.asarray(good[: int(self.quotas[shard])], dtype=np.int64))
        return self._kept_rows[shard]

    def _count(self, shards: Any, *, exact: bool) -> Overview:
        samples, seconds = 0, 0.0
        left = self._dropped() if exact else Counter[str]()
        for shard in shards:
            reasons = self._reasons(shard)
            if len(reasons):
                samples += int((reasons == "").sum())
                seconds += float(self._at.rows(shard)["duration_s"].to_numpy()[reasons == ""].sum())
            left.update(reason for reason in reasons if reason)
        return Overview(samples, seconds, left, exact)

    def _dropped(self) -> Counter[str]:
        """Records of shards that no row number leads to."""
        without = int(self.table.rows[self.table.matching == 0].sum())
        beyond = int(self.table.rows.sum()) - without - int(self.shard_lengths.sum())
        return +Counter({_TWICE: self.table.copies, REASONS[1]: without, _BEYOND: beyond})

    def _ids(self) -> list[str]:
        """Digests of the shards, and which of their records are copies of others: both decide what is read."""
        searched = self.shard_lengths.sum() <= DUPLICATE_RECORDS
        return [f"{each} {searched} {self._duplicates_of.get(n, '')}" for n, each in enumerate(self.table.fingerprints)]

    def _find_duplicates(self) -> frozenset[int]:
        """Rows with the same key, JSON and audio in an earlier shard; searched in sources of moderate size. Key and
        JSON alone are not enough: many sets restart their keys in every shard, and labels are few.
        """
        used = np.flatnonzero(self.shard_lengths).tolist()
        if len(used) < 2 or self.shard_lengths.sum() > DUPLICATE_RECORDS:
            return frozenset()
        keys = pyarrow.chunked_array(
            [chunk for shard in used for chunk in self.table.read(shard, ("key",))["key"].chunks], pyarrow.string()
        )
        counts = keys.value_counts()
        again = counts.field("values").filter(pyarrow.compute.greater(counts.field("counts"), 1))
        rows = pyarrow.compute.indices_nonzero(pyarrow.compute.is_in(keys, again)).to_numpy().astype(np.int64)
        seen: set[tuple[str, str, tuple[int, ...]]] = set()
        out = []
        shards = self._at.shards_of(rows)
        for shard in np.unique(shards).tolist():
            numbers = rows[shards == shard]
            local = numbers - self._at.first(shard)
            said, clips = (self._at.rows(shard, clips=clips).take(local) for clips in (False, True))
            columns = (said["key"].to_pylist(), said["meta"].to_pylist(), clips["crc32c"].to_pylist())
            for row, key, meta, crcs in zip(numbers.tolist(), *columns, strict=True):
                record = (key, meta, tuple(crcs))
                if record in seen:
                    out.append(row)
                seen.add(record)
        return frozenset(out)

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
            vocabulary_digest(ById(self.tokenizer)),
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
def vocabulary_digest(holder: ById) -> str:
    """Token counts decide the packing, so the vocabulary is part of the order."""
    vocabulary = json.dumps(sorted(holder.thing.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(vocabulary.encode()).hexdigest()
