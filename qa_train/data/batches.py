"""Batch k as tensors: read by byte range, decode, log-mel, tokenize; real frames only.

``B`` rows, ``L`` longest row, ``M`` mel bins, ``F`` mel frames of all segments with their tails,
``S`` segments, ``T`` audio tokens, ``D`` encoder width.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from qa_train.config import AugmentConfig, DataConfig
from qa_train.data.audio.augment import ClipAugment, check_augment, mask_spans
from qa_train.data.audio.encoder_cache import EncoderCache
from qa_train.data.clips import Clip, ClipMels, ClipReader, NoiseReader, SkipSample
from qa_train.data.collate import join_audio, pad, pad_ids
from qa_train.data.open_sources import BUDGET_FLOOR, TOO_LONG, check_lengths, open_sources, share_allowed
from qa_train.data.order.batch_plan import Plan, SampleRef
from qa_train.data.order.packing import Cost
from qa_train.data.source import Source
from qa_train.data.text.noise import ordinary_tokens, replace_targets
from qa_train.data.text.template import ENDOFTEXT, IGNORE, encode, encode_pair, special_id
from qa_train.utils import draws
from qa_train.utils.masking import name_of
from qa_train.utils.progress import duration
from qa_train.utils.terminal import PLAIN, Layout

log = logging.getLogger(__name__)

_REASONS = ("read", "bad audio", "changed shard", "unreadable", "not in encoder cache", TOO_LONG)
# Why training leaves a sample out.
SKIP_REASONS = _REASONS[1:]
_SLOTS = 257


class Batches:
    """The batches of a run, by number. Picklable: every process opens its own files."""

    def __init__(self, sources: list[Source], plan: Plan, tokenizer: Any, num_mel_bins: int, cfg: DataConfig) -> None:
        self.sources, self.plan, self.tokenizer = sources, plan, tokenizer
        self.cfg = cfg
        self.pad_id = special_id(tokenizer, ENDOFTEXT)
        self._ordinary = ordinary_tokens(tokenizer)
        self.cache: EncoderCache | None = None
        self.reader = ClipReader(num_mel_bins, cfg.storage, cfg.decode_timeout_s)
        # Of the samples whose clips are being fetched.
        self._clips: dict[SampleRef, list[Clip]] = {}
        self._remote = any("://" in path for source in sources for path in source.shards)
        self._weighted = any(source.cfg.loss_weight != 1 for source in sources)
        check_augment(cfg.augment)
        self._augments = cfg.augment != AugmentConfig()
        # One row per process, so that processes never write to the same row; shared with workers.
        self._counts = torch.zeros(_SLOTS, len(_REASONS), dtype=torch.int64).share_memory_()

    def build(self, k: int) -> dict[str, Tensor]:
        """Batch k: input_ids, attention_mask, labels [B, L] right padded, and its audio.

        Audio is ``input_features`` [M, F] with ``feature_lengths`` [S] (real frames per segment,
        tails not counted), or float16 ``audio_states`` [T, D] when an encoder cache is open, or absent
        when the batch holds none. ``row_weights`` [B] is there if a source has another loss_weight
        than 1. Bad clips leave their sample out; an empty batch becomes one padding
        token without a label.
        """
        return self.build_named(k)[0]

    def build_named(
        self, k: int, later: Sequence[int] = (), mel_dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], list[SampleRef]]:
        """Batch k, and the samples that are in it, in the order of its rows (of its pairs). Remote clips of the batches
        ``later`` are fetched meanwhile. ``mel_dtype``: of ``input_features``.
        """
        rows, audio, kept = [], [], []
        planned = self._refs(k)
        self._fetch(planned, *map(self._expected, later))
        for ref in planned:
            try:
                audio.append(self._audio(ref))
            except SkipSample as skip:
                self._count_skip(ref, skip)
                continue
            rows.append(self._encode(ref))
            kept.append(ref)
        if len(kept) == len(planned):
            self._check_tokens(k, sum(map(self._tokens_of, rows)))
        out = {**self._rows(rows), **join_audio(audio, mel_dtype)}
        if self._weighted:
            # An empty batch has one row.
            weights = [self.sources[ref.source].cfg.loss_weight for ref in kept] or [1.0]
            out["row_weights"] = torch.tensor(weights)
        if self.cache is not None and "audio_states" not in out:
            # A batch without audio must be marked: ranks that ran the encoder on a dummy clip and ranks
            # that did not would wait for each other under ZeRO-3.
            out["audio_states"] = torch.zeros(0, self.cache.width, dtype=torch.float16)
        return out, kept

    def keys(self, k: int) -> list[str]:
        """ "shard:key:task" of every planned sample of batch k, in order; reads no audio."""
        names = []
        for ref in self.plan.batch(k):
            source = self.sources[ref.source]
            names.append(f"{name_of(source.shard(ref.row))}:{source.key(ref.row)}:{source.cfg.task}")
        return names

    @property
    def fingerprint(self) -> str:
        """Changes when the data, the mixture or the order change; kept in checkpoints."""
        return self.plan.fingerprint

    # In the order of the counts, on every rank the same.
    skip_reasons = SKIP_REASONS

    @property
    def skipped(self) -> Counter[str]:
        """Samples that could not be used in training so far, by reason, over all worker processes."""
        counts = self._counts.sum(0).tolist()
        return +Counter(dict(zip(SKIP_REASONS, counts[1:], strict=True)))

    def describe(self, page: Layout = PLAIN) -> str:
        """The sources as a text table, a row each, with skipped records by reason, laid out for ``page``."""
        rows, skipped = [], []
        for row in self.table():
            out = ", ".join(f"{n} {reason}" for reason, n in (row["left_out"] | row["problems"]).items())
            about = "" if row["exact"] else "~"
            if row["max_epochs"]:
                out += f"; after {row['max_epochs']} epochs its share goes to the others"
            numbers = [str(row["records"]), f"{about}{row['samples']}", f"{about}{duration(row['hours'] * 3600)}"]
            rows.append([row["source"], row["task"], *numbers, f"{row['share']:.1%}"])
            skipped.append(f"{about if out else ''}{out}")
        head = ["source", "task", "records", "samples", "audio", "share", "skipped"]
        return page.table(head, rows, left=2, notes=skipped)

    def table(self) -> list[dict[str, Any]]:
        """One row per source: records, samples that qualify, hours, weight, share, skipped records.

        For large sources, samples, hours and ``left_out`` are extrapolated from a part (``exact`` is False).
        """
        total = sum(source.weight for source in self.sources)
        return [
            {
                "source": source.name,
                "task": source.cfg.task,
                "shards": len(source.shards),
                "records": source.records_read,
                "samples": source.eligible.overview.samples,
                "hours": round(source.eligible.overview.seconds / 3600, 5),
                "exact": source.eligible.overview.exact,
                "weight": source.cfg.weight,
                "share": round(source.weight / total, 4),
                "max_epochs": source.max_epochs,
                "left_out": dict(source.eligible.overview.skipped),
                "problems": dict(source.problems),
            }
            for source in self.sources
        ]

    def read_mels(self, clips: list[Clip]) -> ClipMels:
        """The clips as one joined input of the encoder; unreadable ones are skipped and logged. They are not cached, so
        training counts them when it reaches them.
        """
        good: list[Clip] = []
        audio, skipped = [], []
        self.reader.fetch(clips)
        for clip in clips:
            try:
                audio.append(self.reader.mels(clip))
                good.append(clip)
            except SkipSample as skip:
                skipped.append((clip, skip))
                log.warning("not encoded: %s of %s (%s): %s", clip.member, clip.shard, skip.reason, skip)
        joined = join_audio(audio) or {
            "input_features": torch.zeros(self.reader.num_mel_bins, 0),
            "feature_lengths": torch.zeros(0, dtype=torch.long),
        }
        return ClipMels(good, [clip.num_tokens for clip in good], **joined, skipped=skipped)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Inside, batches have noise of their clips' lengths: shards are not read, and nothing is counted."""
        kept = self.reader, self._counts, log.disabled
        self.reader, self._counts = NoiseReader(self.reader.num_mel_bins), self._counts.clone()
        log.disabled = True
        try:
            yield
        finally:
            self.reader, self._counts, log.disabled = kept

    def ahead(self, k: int) -> None:
        """Work that batches after k will need, for all processes of this node: windows are planned, and the tokens of
        one shard are counted if it was planned without counts."""
        self.plan.ahead(k)
        any(source.count_one() for source in self.sources)

    def use_encoder_cache(self, cache: EncoderCache) -> None:
        """From now on batches carry ``audio_states`` of this cache, and no audio is read."""
        self.cache = cache

    def _refs(self, k: int) -> list[SampleRef]:
        refs = self.plan.batch(k)
        number, first = self.plan.locate(k)
        window = self.plan.window(number)
        check_lengths(window, self.cfg)
        self._slot()[0] += len(refs)
        if k == first:
            # Whoever builds a window's first batch reports what fitted into none.
            message = f"more than tokens_per_batch={self.plan.tokens_per_batch} tokens"
            for ref in window.too_long:
                self._report(ref, SkipSample(TOO_LONG, message))
        return refs

    def _expected(self, k: int) -> list[SampleRef]:
        """The samples of a batch that will probably be asked for; none if their clips need no fetching."""
        if self._remote and self.cache is None:
            # What cannot be planned is raised when the batch is asked for, which may be never.
            with suppress(OSError, ValueError):
                return self.plan.batch(k)
        return []

    def _fetch(self, *groups: Sequence[SampleRef]) -> None:
        """Start reading the clips of these samples together; `_audio` waits for its own."""
        if self._remote and self.cache is None:
            refs = {ref for group in groups for ref in group}
            self._clips = {ref: self._clips_of(ref) for ref in refs}
            self.reader.fetch(*([clip for ref in group for clip in self._clips[ref]] for group in groups))

    def _clips_of(self, ref: SampleRef) -> list[Clip]:
        return self._clips.get(ref) or self.sources[ref.source].clips(ref.row)

    def _audio(self, ref: SampleRef) -> tuple[list[Tensor], list[int]]:
        """Mel segments and their real frames, or cached states and no frames."""
        tensors: list[Tensor] = []
        lengths: list[int] = []
        source = self.sources[ref.source]
        for i, clip in enumerate(self._clips_of(ref)):
            if self.cache is None:
                parts, frames = self.reader.mels(clip, self._augment(ref, i) if self._augments else None)
                tensors += parts
                lengths += frames
                continue
            digest = source.shard_digest(ref.row)
            states = self.cache.get(digest, clip.id)
            if states is None or len(states) != clip.num_tokens:
                folder = self.cache.folder_of(digest)
                raise SkipSample("not in encoder cache", f"{clip.id}: delete {folder} to have its shard encoded again")
            tensors.append(mask_spans(states, self.cfg.time_mask, (self.plan.seed, ref.epoch, clip.id)))
        return tensors, lengths

    def _augment(self, ref: SampleRef, number: int) -> ClipAugment:
        source = self.sources[ref.source]
        key = (self.plan.seed, source.name, ref.epoch, source.key(ref.row), number)
        return ClipAugment(self.cfg.augment, key)

    def _encode(self, ref: SampleRef) -> Any:
        source = self.sources[ref.source]
        sample, tokens = source.sample(ref.row, ref.epoch), source.clip_tokens(ref.row)
        encoded = encode(sample, self.tokenizer, tokens, last_turn_only=source.cfg.last_turn_only)
        noise = self.cfg.target_noise if source.cfg.target_noise is None else source.cfg.target_noise
        key = (self.plan.seed, ref.epoch, f"{source.key(ref.row)}:{source.cfg.task}")
        return replace_targets(encoded, noise, self._ordinary, key)

    def _check_tokens(self, k: int, found: int) -> None:
        number, first = self.plan.locate(k)
        planned = int(self.plan.window(number).batch_tokens[k - first])
        if found != planned:
            raise ValueError(
                f"batch {k} has {found} tokens, {planned} were planned: token counts next to its shards are wrong. "
                "Delete their *.tokens-*.parquet, or make them again with qa-train data tokens"
            )

    def _tokens_of(self, row: Any) -> int:
        return len(row.input_ids)

    def _rows(self, rows: list[Any]) -> dict[str, Tensor]:
        ids = [row.input_ids for row in rows] or [[self.pad_id]]
        labels = [row.labels for row in rows] or [[IGNORE]]
        return {**pad_ids(ids, self.pad_id), "labels": pad(labels, IGNORE)}

    def _slot(self) -> Tensor:
        worker = get_worker_info()
        return self._counts[0 if worker is None else 1 + worker.id % (_SLOTS - 1)]

    def _report(self, ref: SampleRef, skip: SkipSample) -> None:
        source = self.sources[ref.source]
        log.warning("skipped %s of %s (%s): %s", source.key(ref.row), source.shard(ref.row), skip.reason, skip)
        self._slot()[_REASONS.index(skip.reason)] += 1

    def _count_skip(self, ref: SampleRef, skip: SkipSample) -> None:
        self._report(ref, skip)
        # Samples too long for a batch were never read: each window is judged for them as a whole.
        counts = self._counts.sum(0)[: _REASONS.index(TOO_LONG)].tolist()
        bad, read = sum(counts[1:]), counts[0]
        # A small set is read many times: each epoch may lose as much as one epoch may.
        share = share_allowed(self.cfg.error_budget, sum(source.records_read for source in self.sources))
        if bad > max(share * read, self.cfg.error_budget * BUDGET_FLOOR):
            source = self.sources[ref.source]
            raise ValueError(
                f"{bad} of {read} samples could not be used, more than data.error_budget={self.cfg.error_budget:g} "
                f"allows; the last: {source.key(ref.row)} of {source.shard(ref.row)} ({skip.reason}): {skip}. "
                "Repair or index the shards again, or raise the budget."
            ) from skip


class PreferenceBatches(Batches):
    """Batches of pairs: rows are [all chosen, all rejected], and each clip is there once.

    Instead of labels: ``completion_mask`` [B, L], 1 on answer tokens; and ``audio_gather`` [N],
    the place in the joined audio tokens of every ``<|AUDIO|>`` position, row by row.
    """

    # Reference log-probabilities of (chosen, rejected) by ``pair_id``, once they are known; batches then carry them.
    references: Mapping[str, tuple[float, float]] | None = None

    def pair_id(self, ref: SampleRef) -> tuple[str, int]:
        """The identity of the pair by tokens and clips, independent of its key, and its number of tokens."""
        prompt, chosen, rejected, _ = self._tokens(ref)
        clips = [clip.id for clip in self.sources[ref.source].clips(ref.row)]
        name = draws.digest([prompt, chosen, rejected, clips], 16).hex()
        return name, 2 * len(prompt) + len(chosen + rejected)

    def build_pairs(self, refs: Sequence[SampleRef]) -> tuple[dict[str, Tensor], list[str]]:
        """Any pairs as one batch, with the id of each; unreadable ones are skipped and logged. They are not counted
        here: training counts them when it reaches them.
        """
        kept, rows, audio = [], [], []
        self._fetch(refs)
        for ref in refs:
            try:
                audio.append(self._audio(ref))
            except SkipSample as skip:
                log.warning("no reference for %s (%s): %s", self.sources[ref.source].key(ref.row), skip.reason, skip)
                continue
            kept.append(self.pair_id(ref)[0])
            rows.append((*self._tokens(ref), None))
        out = {**self._rows(rows), **join_audio(audio)}
        if self.cache is not None and "audio_states" not in out:
            out["audio_states"] = torch.zeros(0, self.cache.width, dtype=torch.float16)
        return out, kept

    def _tokens(self, ref: SampleRef) -> tuple[list[int], list[int], list[int], int]:
        source = self.sources[ref.source]
        clip_tokens = source.clip_tokens(ref.row)
        return *encode_pair(source.sample(ref.row, ref.epoch), self.tokenizer, clip_tokens), sum(clip_tokens)

    def _encode(self, ref: SampleRef) -> Any:
        known = None
        if self.references is not None:
            known = self.references.get(self.pair_id(ref)[0])
            if known is None:
                raise ValueError(
                    f"no reference log-probabilities for {self.sources[ref.source].key(ref.row)}: it could not be read "
                    "when they were computed; start the run again to compute what is missing"
                )
        return *self._tokens(ref), known

    def _tokens_of(self, row: Any) -> int:
        prompt, chosen, rejected, *_ = row
        return 2 * len(prompt) + len(chosen) + len(rejected)

    def _rows(self, rows: list[Any]) -> dict[str, Tensor]:
        chosen = [row[0] + row[1] for row in rows] or [[self.pad_id]]
        rejected = [row[0] + row[2] for row in rows] or [[self.pad_id]]
        prompts = [len(row[0]) for row in rows] or [1]
        ids = chosen + rejected
        mask = [[0] * n + [1] * (len(row) - n) for n, row in zip(prompts * 2, ids, strict=True)]
        out = {**pad_ids(ids, self.pad_id), "completion_mask": pad(mask, 0)}
        tokens = sum(row[3] for row in rows)
        if tokens:
            out["audio_gather"] = torch.arange(tokens).repeat(2)
        if self.references is not None:
            known = [row[4] for row in rows] or [(0.0, 0.0)]
            out["ref_chosen_logps"], out["ref_rejected_logps"] = torch.tensor(known).unbind(1)
        return out


def open_data(
    cfg: DataConfig,
    tokenizer: Any,
    num_mel_bins: int,
    *,
    seed: int,
    batches_per_step: int,
    preference: bool = False,
    cost: Cost | None = None,
    share_windows: bool = True,
) -> Batches:
    """Open the sources of a config and plan their order; ``preference`` gives PreferenceBatches.

    ``cost`` weighs tokens against audio when batches are made equally costly; null: the released model's shape.
    Training and its commands use that of the run's own model (``qa_train.planner.balance``). ``share_windows``: read
    what another process of this machine has planned.

    Raises ValueError when an index is missing or stale, when a source has no usable record, or
    when indexing skipped more records than the error budget allows.
    """
    sources = open_sources(cfg, tokenizer, seed=seed, preference=preference)
    plan = Plan(
        sources,
        seed=seed,
        tokens_per_batch=cfg.tokens_per_batch,
        batches_per_step=batches_per_step,
        shuffle_window=cfg.shuffle_window,
        cost=cost,
        share=" ".join(source.use.digest for source in sources) if share_windows else "",
    )
    return (PreferenceBatches if preference else Batches)(sources, plan, tokenizer, num_mel_bins, cfg)
