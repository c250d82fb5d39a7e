"""Which rows of a source are samples of its task, and why the others are skipped."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray

from qa_train.data.order.epoch import Ints
from qa_train.data.shards.catalog import ShardTable
from qa_train.data.shards.row_reader import RowReader, records_of
from qa_train.data.shards.token_counts import CountReader
from qa_train.data.stores.node_files import NodeFiles, load_numbers, save_numbers
from qa_train.data.text.counting import REASONS, UNQUALIFIED, TokenCounts, Use
from qa_train.utils import draws

# Sources of up to so many records are searched for records that two shards share; larger ones only for
# shards that are copies of another.
DUPLICATE_RECORDS = 200_000
# Records looked at for the first screen; more than that are extrapolated.
OVERVIEW_RECORDS = 20_000
# Why a record is skipped, apart from its text (`counting.REASONS`).
_SHORT, _LONG = "shorter than min_duration_s", "longer than max_duration_s"
_TWICE, BEYOND = "duplicate record", "beyond max_samples"
# Rows that are duplicates, of sources of the same shards.
_FILES = NodeFiles("twice", 64 << 20)
# Of which ``of_rows`` keeps its answers: small sources are read again and again.
_JUDGED_SHARDS = 64


@dataclass(frozen=True)
class Overview:
    """Samples that qualify, their seconds of audio, and why other records do not; extrapolated unless ``exact``."""

    samples: int
    seconds: float
    skipped: Counter[str]
    exact: bool


class Eligible:
    """Judges the rows of one source. A row is read when it is judged; `counts` and `overview` judge many.

    A reason is a text, empty for a row that qualifies.
    """

    def __init__(
        self,
        table: ShardTable,
        shard_lengths: Ints,
        quotas: Ints | None,
        use: Use,
        rows: RowReader,
        counted: CountReader,
        limits: tuple[float, float],
    ) -> None:
        """Args:
        table: the shards of the source.
        shard_lengths: rows of each shard; 0 for those that hold no sample.
        quotas: samples of each shard at most, when max_samples cuts the source.
        use: what the source makes of a record.
        rows: reads the rows.
        counted: reads the token counts of shards that have them.
        limits: shortest and longest audio in seconds.
        """
        self._table, self._shard_lengths, self._quotas, self._use = table, shard_lengths, quotas, use
        self._at, self._counted, self._limits = rows, counted, limits
        self._kept_rows: dict[int, Ints] = {}
        self._judged: OrderedDict[int, NDArray[np.object_]] = OrderedDict()
        self._duplicates = self._find_duplicates()
        self._twice = np.asarray(sorted(self._duplicates), dtype=np.int64)

    @cached_property
    def counts(self) -> Overview:
        """Exact counts, from every record."""
        return self._count(range(len(self._table)), exact=True)

    @cached_property
    def overview(self) -> Overview:
        """Exact counts of a small source; of a large one, what some shards spread over it suggest."""
        lengths = self._shard_lengths
        if "counts" in self.__dict__ or lengths.sum() <= OVERVIEW_RECORDS:
            return self.counts
        used = np.flatnonzero(lengths)
        # Shards in an order in which every beginning is spread over the source.
        spread = sorted(range(len(used)), key=lambda n: int(f"{n:032b}"[::-1], 2))
        enough = np.searchsorted(np.cumsum(lengths[used[spread]]), OVERVIEW_RECORDS) + 1
        some = self._count(used[spread[:enough]].tolist(), exact=False)
        scale = lengths.sum() / lengths[used[spread[:enough]]].sum()
        left = Counter({reason: round(n * scale) for reason, n in some.skipped.items()}) + self._dropped()
        return Overview(round(some.samples * scale), some.seconds * scale, left, exact=False)

    def rows_of(self, shard: int) -> list[int]:
        """Numbers of the rows of a shard that qualify, in order."""
        return (np.flatnonzero(self.of_shard(shard) == "") + self._at.first(shard)).tolist()

    def of_rows(self, rows: Ints) -> NDArray[np.object_]:
        """The reason of each of the rows. Nothing is tokenized."""
        found = np.full(len(rows), "", dtype=object)
        shards = self._at.shards_of(rows)
        for shard in np.unique(shards).tolist():
            if shard not in self._judged:
                self._judged[shard] = self.of_shard(shard)
                if len(self._judged) > _JUDGED_SHARDS:
                    self._judged.popitem(last=False)
            places = shards == shard
            found[places] = self._judged[shard][rows[places] - self._at.first(shard)]
        return found

    def of_shard(self, shard: int, *, quota: bool = True) -> NDArray[np.object_]:
        """The reason of each row of a shard."""
        counts = self._counted.find(shard) if self._shard_lengths[shard] else None
        if counts is not None:
            return self.of_counted(shard, np.arange(len(counts)), counts, quota=quota)
        return np.asarray([*self.each(shard, quota=quota), None], dtype=object)[:-1]

    def each(self, shard: int, *, quota: bool = True) -> Iterator[str]:
        """As `of_shard`, one by one and without token counts."""
        if not self._shard_lengths[shard]:
            return
        first, seconds = self._at.first(shard), self._at.rows(shard)["duration_s"].to_pylist()
        kept = self.kept(shard) if quota else None
        room = None if kept is None else set(kept.tolist())
        for i, record in enumerate(records_of(self._at.rows(shard)["meta"].to_pylist(), self._table.paths[shard])):
            reason = self.of_record(first + i, record, seconds[i])
            if not reason and not self._use.bank.qualifies(record, self._use.task, pair=self._use.pairs):
                reason = UNQUALIFIED
            yield reason or ("" if room is None or i in room else BEYOND)

    def of_counted(self, shard: int, local: Ints, counts: TokenCounts, *, quota: bool = True) -> NDArray[np.object_]:
        """The reasons of rows of a shard with token counts; ``local``: their numbers in the shard."""
        of_text = np.asarray(REASONS, dtype=object)[counts.reason[local]]
        seconds = self._at.rows(shard)["duration_s"].to_numpy()[local]
        rows = local + self._at.first(shard)
        kept = self.kept(shard) if quota else None
        return np.select(
            [
                (of_text != "") & (of_text != UNQUALIFIED),
                ~counts.silent[local] & (seconds < self._limits[0]),
                seconds > self._limits[1],
                np.isin(rows, self._twice),
                of_text != "",
                np.zeros(len(local), dtype=bool) if kept is None else ~np.isin(local, kept),
            ],
            [of_text, _SHORT, _LONG, _TWICE, of_text, BEYOND],
            "",
        )

    def of_record(self, row: int, record: dict[str, Any], seconds: float) -> str:
        """The reason of a row, apart from its task and from max_samples."""
        if reason := self._use.unfit(record):
            return reason
        if record.get("audios") != [] and seconds < self._limits[0]:
            return _SHORT
        if seconds > self._limits[1]:
            return _LONG
        # The same record in two shards of one source would silently double its weight.
        return _TWICE if row in self._duplicates else ""

    def kept(self, shard: int) -> Ints | None:
        """Rows of a shard that its part of max_samples has room for: by hash of the key, whatever the seed."""
        if self._quotas is None:
            return None
        if shard not in self._kept_rows:
            good = np.flatnonzero(self.of_shard(shard, quota=False) == "").tolist()
            keys = self._at.rows(shard)["key"].to_pylist()
            good.sort(key=lambda row: draws.digest(keys[row], 64))
            self._kept_rows[shard] = np.sort(np.asarray(good[: int(self._quotas[shard])], dtype=np.int64))
        return self._kept_rows[shard]

    def choice(self, shard: int) -> str:
        """Digest of which records of a shard qualify, found without reading them: of the settings that decide it."""
        quota = None if self._quotas is None else int(self._quotas[shard])
        parts = [self._choice, quota, self._duplicates_of[shard]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def shard_ids(self) -> list[str]:
        """Digests of the shards, and which of their records are copies of others: both decide what is read."""
        searched, digests = self._shard_lengths.sum() <= DUPLICATE_RECORDS, self._table.fingerprints
        return [f"{each} {searched} {self._duplicates_of.get(n, '')}" for n, each in enumerate(digests)]

    @cached_property
    def _choice(self) -> list[Any]:
        use = self._use
        where = json.dumps(sorted(use.where.items()), default=str)
        return [use.task, where, use.bank.digest(use.task), *self._limits, use.pairs]

    @cached_property
    def _duplicates_of(self) -> defaultdict[int, list[int]]:
        """Rows of each shard that another shard has too."""
        found = defaultdict[int, list[int]](list)
        for row in self._twice.tolist():
            shard = self._at.shard_of(row)
            found[shard].append(row - self._at.first(shard))
        return found

    def _count(self, shards: Iterable[int], *, exact: bool) -> Overview:
        samples, seconds = 0, 0.0
        left = self._dropped() if exact else Counter[str]()
        for shard in shards:
            reasons = self.of_shard(shard)
            if len(reasons):
                samples += int((reasons == "").sum())
                seconds += float(self._at.rows(shard)["duration_s"].to_numpy()[reasons == ""].sum())
            left.update(reason for reason in reasons if reason)
        return Overview(samples, seconds, left, exact)

    def _dropped(self) -> Counter[str]:
        """Records of shards that no row number leads to."""
        without = int(self._table.rows[self._table.matching == 0].sum())
        beyond = int(self._table.rows.sum()) - without - int(self._shard_lengths.sum())
        return +Counter({_TWICE: self._table.copies, REASONS[1]: without, BEYOND: beyond})

    def _find_duplicates(self) -> frozenset[int]:
        """Rows with the same key, JSON and audio in an earlier shard; searched in sources of moderate size. Key and
        JSON alone are not enough: many sets restart their keys in every shard, and labels are few.
        """
        used = np.flatnonzero(self._shard_lengths).tolist()
        if len(used) < 2 or self._shard_lengths.sum() > DUPLICATE_RECORDS:
            return frozenset()
        # Of many small sources, the keys are most of what a start reads: one process of a node does.
        parts = [[self._table.fingerprints[shard], self._at.first(shard)] for shard in used]
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        found = _FILES.get(name, partial(self._search_duplicates, used), save_numbers, load_numbers)
        return frozenset(found.tolist())

    def _search_duplicates(self, used: list[int]) -> Ints:
        keys = pyarrow.chunked_array(
            [chunk for shard in used for chunk in self._table.read(shard, ("key",))["key"].chunks], pyarrow.string()
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
        return np.asarray(out, dtype=np.int64)
