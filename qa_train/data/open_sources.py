"""The sources of a mixture: opened, checked, and weighted."""

from __future__ import annotations

from typing import Any

from qa_train.config import DataConfig
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.order import mixture
from qa_train.data.order.shuffle_window import Window
from qa_train.data.shards.catalog import list_shards, make_table, open_shards
from qa_train.data.shards.sidecar import CLEANED, IGNORED, Summary
from qa_train.data.source import Source
from qa_train.data.stand_in import make_missing_starter
from qa_train.data.text.prompts import PromptBank

# With fewer records the budget is computed for this many: one bad clip among the first ten read is not a reason to
# stop. A small set is allowed at most SMALL_SET times its share: 5 of 50, not 10, at 1 %.
BUDGET_FLOOR = 1000
SMALL_SET = 10
# Why the plan leaves samples of a window in no batch.
TOO_LONG = "too long for a batch"


def open_sources(cfg: DataConfig, tokenizer: Any, *, seed: int, preference: bool) -> list[Source]:
    """The sources of a config; their ``weight`` is the share that ``data.mixture`` gives them.

    Raises ValueError when an index is missing or stale, when a source has no usable record, or
    when indexing skipped more records than the error budget allows.
    """
    make_missing_starter(cfg)
    bank = PromptBank.load(cfg.prompt_files, cfg.prompt_languages)
    # Several tasks of one corpus are several sources of the same shards, whose indexes are read once.
    listed: dict[tuple[str, ...], list[tuple[str, Summary]]] = {}
    sources = []
    for name, source in cfg.sources.items():
        shards = tuple(source.shards)
        if shards not in listed:
            filtered = any(each.where for each in cfg.sources.values() if tuple(each.shards) == shards)
            listed[shards] = list_shards(shards, cfg.storage, values=filtered)
        table = make_table(listed[shards], source.where, cfg.storage)
        sources.append(Source(name, source, cfg, bank, tokenizer, seed=seed, pairs=preference, table=table))
    for source in sources:
        _check_index_budget(source, cfg.error_budget)
        if source.weight > 0:
            source.check()
    weigh(sources, cfg)
    return sources


def records_at_hand(cfg: DataConfig) -> tuple[dict[str, int], dict[str, float], list[str]]:
    """Records and seconds of the sources whose shards are here, by their indexes, and the names of the others. This
    needs no tokenizer. With a ``where`` of several fields the count is an upper bound.
    """
    rows, seconds, absent = dict[str, int](), dict[str, float](), list[str]()
    for name, source in cfg.sources.items():
        if not source.weight:
            continue
        try:
            table = open_shards(source.shards, source.where, cfg.storage)
        except (ValueError, OSError):
            absent.append(name)
            continue
        if matching := int(table.matching.sum()):
            rows[name], seconds[name] = matching, float(table.matching_seconds.sum())
    return rows, seconds, absent


def share_allowed(budget: float, total: int) -> float:
    """Share of ``total`` samples that may be bad: the budget, and for less than ``BUDGET_FLOOR`` samples more."""
    return budget * min(SMALL_SET, max(1.0, BUDGET_FLOOR / max(total, 1)))


def too_many(bad: int, total: int, budget: float) -> bool:
    """Whether ``bad`` of ``total`` samples are more than the budget allows; a single one passes unless it is 0."""
    return bad > max(share_allowed(budget, total) * total, 1 if budget else 0)


def weigh(sources: list[Source], cfg: DataConfig) -> None:
    """Set the weight of each source according to ``data.mixture``; records beyond max_samples are ignored."""
    lines = []
    for source in sources:
        records = float(source.table.matching.sum())
        used = 1.0 if source.quotas is None else float(source.quotas.sum()) / records
        hours = float(source.table.matching_seconds.sum()) / 3600
        lines.append(mixture.Line(source.name, source.cfg.weight, records * used, hours * used))
    weights = mixture.effective_weights(lines, cfg.mixture.by, cfg.mixture.temperature)
    for source, weight in zip(sources, weights, strict=True):
        source.weight = weight


def check_lengths(window: Window, cfg: DataConfig) -> None:
    """ValueError when more samples of a window than the error budget allows are too long for a batch.

    The plan is the same for every rank, so they all stop, or none.
    """
    if not len(window.long):
        return
    long = len(window.long)
    total = long + len(window.samples)
    if too_many(long, total, cfg.error_budget):
        share = share_allowed(cfg.error_budget, total)
        raise ValueError(
            f"{long} of the {total} samples planned next are longer than data.tokens_per_batch={cfg.tokens_per_batch} "
            f"tokens and fit into no batch, more than data.error_budget={cfg.error_budget:g} allows "
            f"({share:.1%} of {total}). Raise "
            f"data.tokens_per_batch, or lower data.max_duration_s={cfg.max_duration_s:g} to skip long recordings "
            f"({FRONT_END.tokens_per_second} tokens a second, and the text)."
        )


def _check_index_budget(source: Source, budget: float) -> None:
    bad = sum(n for reason, n in source.problems.items() if reason not in (IGNORED, CLEANED))
    # Indexed and skipped records.
    total = source.records_read + bad
    if too_many(bad, total, budget):
        assert source.table.first_problem is not None
        shard, worst = source.table.first_problem
        raise ValueError(
            f"source {source.name!r}: {bad} of {total} records were unusable when indexed, more than "
            f"data.error_budget={budget:g} allows ({share_allowed(budget, total):.1%} of them); the first: {shard}, "
            f"key {worst.key!r}, byte {worst.offset}: {worst.detail}. Repair the shards, or raise the budget."
        )
