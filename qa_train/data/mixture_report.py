"""The effective mixture of a plan: samples, hours, tokens, epochs by source and task; fill; balance over ranks."""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import Any

import numpy as np

from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.open_sources import TOO_LONG
from qa_train.data.order.batch_plan import Plan
from qa_train.data.order.epoch import Ints
from qa_train.data.source import Source
from qa_train.utils.progress import duration
from qa_train.utils.terminal import PLAIN, Layout

# Windows that are planned to count the steps of an epoch.
_EPOCH_WINDOWS = 4


def effective_mixture(
    plan: Plan, sources: list[Source], steps: int, *, first: int = 0, lengths: list[Ints] | None = None
) -> dict[str, Any]:
    """Plan ``steps`` steps from step ``first`` (counted from 0) on without reading audio, and count.

    ``fill`` is tokens / budget over all batches. ``imbalance`` is, by world size, how far the costliest rank of a
    step is above the mean of its ranks, in the plan's cost: mean over the steps, and worst step.
    Skipped records are those of the planned windows. ``lengths`` receives arrays [samples, 3] of audio
    tokens, all tokens and scored rows of the samples.
    """
    batches = steps * plan.batches_per_step
    rows = {i: _Line() for i, source in enumerate(sources) if source.weight > 0}
    tokens: list[int] = []
    costs: list[int] = []
    begin = first * plan.batches_per_step
    number, start = plan.locate(begin)
    last, _ = plan.locate(begin + batches - 1)
    # Batches of the first window before the first step.
    passed = begin - start
    while number <= last:
        window = plan.window(number)
        used = slice(passed, passed + batches - len(tokens))
        passed = 0
        for batch in window.batches[used]:
            for ref in batch:
                rows[ref.source].add(ref.row, ref.epoch)
        for i, left in window.skipped.items():
            rows[i].skipped.update(left)
        for ref in window.too_long:
            rows[ref.source].skipped[TOO_LONG] += 1
        tokens += window.batch_tokens[used].tolist()
        costs += window.batch_costs[used].tolist()
        for i, line in rows.items():
            line.measure(sources[i], lengths)
        number += 1
    total = sum(line.samples for line in rows.values())
    return {
        "steps": steps,
        "batches": batches,
        "samples": total,
        "tokens": int(sum(tokens)),
        "fill": float(np.mean(tokens)) / plan.tokens_per_batch,
        "imbalance": imbalance(np.asarray(costs), plan.batches_per_step),
        "sources": [line.report(sources[i], total) for i, line in rows.items()],
    }


def steps_of_epochs(plan: Plan, sources: list[Source], epochs: float) -> int:
    """Steps until the samples of all sources, together, were seen ``epochs`` times; of a fresh plan.

    Exact for few samples; with more than fit into some windows, the rest is extrapolated.
    """
    used = [source for source in sources if source.weight > 0]
    wanted = sum(s.eligible.overview.samples * min(epochs, s.max_epochs or epochs) for s in used)
    samples = batches = 0
    for number in range(_EPOCH_WINDOWS):
        for batch in plan.window(number).batches:
            if samples < wanted:
                samples, batches = samples + len(batch), batches + 1
        samples += len(plan.window(number).too_long) if samples < wanted else 0
    # A run whose data have grown goes on from other starts of windows.
    plan.forget()
    return max(1, ceil(batches * max(1.0, wanted / samples) / plan.batches_per_step))


def imbalance(costs: Ints, per_step: int) -> dict[int, dict[str, float]]:
    """By world size: (costliest rank / mean rank - 1) of the steps, their mean and the worst."""
    steps = costs[: len(costs) // per_step * per_step].reshape(-1, per_step)
    out = {}
    for world in (w for w in (2, 4, 8, 16, 32, 64, 128, per_step) if per_step % w == 0 and w > 1):
        # Rank r of W runs the batches r, r + W, ... of a step.
        ranks = steps.reshape(len(steps), per_step // world, world).sum(1)
        over = ranks.max(1) / ranks.mean(1) - 1
        out[world] = {"mean": float(over.mean()), "worst": float(over.max())}
    return out


def as_text(result: dict[str, Any], page: Layout = PLAIN) -> str:
    """The effective mixture as a table for people, laid out for ``page``."""
    head = ["source", "task", "samples", "share", "audio", "tokens", "epochs", "skipped"]
    rows = []
    for row in result["sources"]:
        numbers = [f"{row['share']:.2%}", duration(row["hours"] * 3600), str(row["tokens"]), f"{row['epochs']:.2f}"]
        rows.append([row["source"], row["task"], str(row["samples"]), *numbers])
    out = [", ".join(f"{n} {reason}" for reason, n in row["left_out"].items()) for row in result["sources"]]
    lines = [page.table(head, rows, left=2, notes=out)]
    lines.append(
        f"  {result['steps']} steps, {result['batches']} batches, {result['samples']} samples, "
        f"{result['tokens']} tokens; batches are {result['fill']:.1%} full"
    )
    if result["imbalance"]:
        lines.append("  balance, in useful operations of this model:")
    for world, over in result["imbalance"].items():
        lines.append(
            f"  {world} ranks: the costliest rank of a step does {over['mean']:.2%} more than the mean rank "
            f"(worst step {over['worst']:.2%})"
        )
    return page.fold("\n".join(lines))


class _Line:
    """Counts of one source; lengths are looked up window by window, while their shards are in memory."""

    def __init__(self) -> None:
        self.samples, self.tokens, self.audio = 0, 0, 0
        self.epoch, self.skipped = 0, Counter[str]()
        self._new: dict[int, list[int]] = {}

    def add(self, row: int, epoch: int) -> None:
        self.samples += 1
        self.epoch = max(self.epoch, epoch)
        self._new.setdefault(epoch, []).append(row)

    def measure(self, source: Source, kept: list[Ints] | None) -> None:
        for epoch, rows in self._new.items():
            lengths = source.lengths(np.asarray(rows, dtype=np.int64), epoch)
            self.tokens += int(lengths.tokens.sum())
            self.audio += int(lengths.audio.sum())
            if kept is not None:
                kept.append(np.stack([lengths.audio, lengths.tokens, lengths.scored], axis=1))
        self._new = {}

    def report(self, source: Source, total: int) -> dict[str, Any]:
        return {
            "source": source.name,
            "task": source.cfg.task,
            "samples": self.samples,
            "share": self.samples / max(1, total),
            "planned_share": source.weight,
            "hours": self.audio * FRONT_END.token_s / 3600,
            "tokens": self.tokens,
            "epochs": self.samples / max(1, source.eligible.overview.samples),
            "left_out": dict(self.skipped),
        }
