"""Metrics of a step by source: sums over all ranks, from values that the loss computes anyway.

A source of the mixture is one task in one mode, so these are the curves by task and by mode. Every rank keeps the sums
of its own micro-batches on its device; they are added up over the ranks once per step. In the record:

``loss/S``                       cross-entropy per supervised token of the samples of source S in this step
``tokens/S``                     their supervised tokens (of pairs: tokens of both answers)
``epoch/S``                      passes through S so far, by the plan
``rewards/accuracies/S``, ``rewards/margins/S``   of the pairs of S (DPO)
``peak_memory_gb``               of the rank that needs most: allocated on its GPU, or resident without one
``peak_reserved_gb``             of the rank that needs most: what torch holds of its GPU, unusable pieces included
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_IGNORE = -100
# Columns of the table of sums; a row is a source.
_TOKENS, _ROWS, _PASSES, _VALUES = 0, 1, 2, 3


class Tally:
    """The sums of one optimizer step by source."""

    def __init__(self, sources: Sequence[str], used: Sequence[int], values: Sequence[str]) -> None:
        """All sources by number; those with a weight above 0; names of what is summed besides tokens."""
        self.sources, self.used, self.values = list(sources), list(used), list(values)
        self._plain = torch.zeros(0, 0, dtype=torch.float64)
        self._row_sources: list[Tensor] = []
        self._added: list[Tensor] = []

    def begin(self, batches: list[dict[str, Tensor]]) -> None:
        """Start a step with its micro-batches (see ``Collator``); removes entries that are not inputs of the model."""
        self._row_sources, self._added = [batch.pop("row_sources") for batch in batches], []
        self._plain = torch.zeros(len(self.sources), _VALUES, dtype=torch.float64)
        for batch, row_sources in zip(batches, self._row_sources, strict=True):
            self._plain[:, _PASSES] += batch.pop("passes").cpu()
            tokens = _supervised(batch).cpu()[: len(row_sources)]
            self._plain[:, _TOKENS] += self._by_source(row_sources, tokens)
            self._plain[:, _ROWS] += self._by_source(row_sources, torch.ones(len(row_sources)))

    def add(self, values: Tensor) -> None:
        """The values [rows or pairs, number of ``values``] of the step's next micro-batch; stays on its device."""
        self._added.append(values.detach())

    def record(self, accelerator: Any) -> dict[str, Any]:
        """The step's table over all ranks: ``{source: {"tokens", "rows", "passes", each of values}}``, and peak memory.

        A collective call, the only one of a step.
        """
        added = torch.zeros(len(self.sources), len(self.values), dtype=torch.float64)
        # A batch that lost all its samples has one row, of no source. One copy from the device for the whole step.
        kept = [v[: len(s)] for s, v in zip(self._row_sources, self._added, strict=False)]
        copied = torch.cat(kept).cpu().split([len(v) for v in kept]) if kept else ()
        for row_sources, rows in zip(self._row_sources, copied, strict=False):
            for column in range(len(self.values)):
                added[:, column] += self._by_source(row_sources, rows[:, column])
        ranks, rank = accelerator.num_processes, accelerator.process_index
        peaks = peak_memory_gb()
        memory = torch.zeros(ranks, len(peaks), dtype=torch.float64)
        memory[rank] = torch.tensor(list(peaks.values()))
        table = torch.cat([self._plain, added], dim=1)
        everything = torch.cat([table.flatten(), memory.flatten()])
        if ranks > 1:
            everything = accelerator.reduce(everything.to(accelerator.device), "sum").cpu()
        columns = ("tokens", "rows", "passes", *self.values)
        by_source = everything[: table.numel()].view_as(table).tolist()
        found = {self.sources[i]: dict(zip(columns, by_source[i], strict=True)) for i in self.used}
        most = everything[table.numel() :].view_as(memory).amax(0).tolist()
        return {"sources": found, "memory": {name: round(value, 3) for name, value in zip(peaks, most, strict=True)}}

    def _by_source(self, row_sources: Tensor, values: Tensor) -> Tensor:
        """Sums [sources] of values [rows]; on the CPU and in float64, so that the order of additions has no effect."""
        return torch.bincount(row_sources.cpu(), weights=values.double(), minlength=len(self.sources))


def token_curves(found: dict[str, Any]) -> dict[str, float]:
    """The record of a step of pretraining or SFT; sources that had no supervised token in it have no loss."""
    record = _plan_curves(found)
    for name, sums in found["sources"].items():
        if sums["tokens"]:
            record[f"loss/{name}"] = sums["loss"] / sums["tokens"]
    return record


def _plan_curves(found: dict[str, Any]) -> dict[str, float]:
    """What all stages record."""
    record: dict[str, float] = dict(found["memory"])
    for name, sums in found["sources"].items():
        record[f"tokens/{name}"] = int(sums["tokens"])
        record[f"epoch/{name}"] = round(sums["passes"], 6)
    return record


PAIR_VALUES = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    "lengths/chosen", "lengths/rejected", "entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy",
)  # fmt: skip
# Values that are means over answer tokens instead of pairs, and which answers' tokens.
_BY_TOKEN = {
    "entropy": ("chosen", "rejected"),
    "logits/chosen": ("chosen",),
    "logits/rejected": ("rejected",),
    "mean_token_accuracy": ("chosen",),
}


def pair_curves(found: dict[str, Any], beta: float) -> dict[str, float]:
    """The record of a step of DPO: TRL's metrics as means over all pairs (or tokens) of the step, and by source.

    ``kl/chosen`` and ``kl/rejected`` are the mean log-ratios of policy to reference, reward / beta: on answers that the
    policy itself would give their mean is the KL divergence; on the answers of a pair it is the part of it seen there,
    and may be below 0.
    """
    record = _plan_curves(found)
    sources = found["sources"]
    rows = sum(sums["rows"] for sums in sources.values())
    if not rows:
        return record
    record |= _means({name: sum(sums[name] for sums in sources.values()) for name in PAIR_VALUES}, rows)
    record |= {f"kl/{side}": record[f"rewards/{side}"] / beta for side in ("chosen", "rejected")}
    for name, sums in sources.items():
        if sums["rows"]:
            record |= {f"{what}/{name}": sums[what] / sums["rows"] for what in PAIR_VALUES[2:4]}
    return record


def _means(total: dict[str, float], pairs: int) -> dict[str, float]:
    """Sums over ``pairs`` as TRL's means, over pairs or over tokens of answers; 0 without a token."""
    found = {}
    for name, value in total.items():
        count = sum(total[f"lengths/{side}"] for side in _BY_TOKEN[name]) if name in _BY_TOKEN else pairs
        found[name] = value / count if count else 0.0
    return found


def pair_values(
    kept: list[Tensor], completion_mask: Tensor, reported: Mapping[str, Sequence[float]], *, training: bool
) -> Tensor:
    """[pairs, ``PAIR_VALUES``] from what TRL's DPO loss gathers, in its order, and the mask of answers [2 pairs, L].

    Values that TRL sums over a micro-batch are divided evenly over its pairs. TRL gathers without names but later
    reports the mean of each value by name: every column must have the mean reported for its name.

    Args:
        kept: what was gathered.
        completion_mask: which tokens belong to answers, chosen ones first.
        reported: TRL's metrics, by name; the last of each is of this micro-batch.
        training: whether TRL counts the tokens of the batch, too.

    Raises:
        RuntimeError: TRL gathers something else; this version was not tested.
    """
    by_pair, sums = [v.double() for v in kept if v.ndim], [v.double() for v in kept if not v.ndim]
    lengths = completion_mask[:, 1:].sum(1).double().chunk(2)
    known = len(by_pair) == 6 and len(sums) == 8 + training
    if known:
        # In training the tokens of the whole batch are between those of the answers and the logits.
        entropy, tokens, chosen_logits, chosen_tokens, rejected_logits, rejected_tokens, right, scored = (
            sums[:2] + sums[2 + training :]
        )
        counted = torch.stack([tokens, chosen_tokens, rejected_tokens, scored])
        expected = torch.stack([lengths[0].sum() + lengths[1].sum(), *(n.sum() for n in (*lengths, lengths[0]))])
        known = torch.equal(counted, expected)
    if not known:
        raise RuntimeError(
            f"TRL's DPO loss gathers {len(by_pair)} values by pair and {len(sums)} sums, and not those known here: "
            "use the TRL version of constraints.txt"
        )
    pairs = len(by_pair[0])
    spread = [(value / pairs).expand(pairs) for value in (entropy, chosen_logits, rejected_logits, right)]
    values = torch.stack([*by_pair, *lengths, *spread], dim=1)
    means = _means(dict(zip(PAIR_VALUES, values.sum(0).tolist(), strict=True)), pairs)
    largest = dict(zip(PAIR_VALUES, values.abs().amax(0).tolist(), strict=True))
    for name in means:
        if name.startswith("lengths/"):
            continue
        told = reported[name][-1] if reported.get(name) else None
        # TRL's means are in float32. Non-finite values are left to the guards.
        if told is None or abs(means[name] - told) > 1e-4 * abs(told) + 1e-6 * (1 + largest[name]):
            raise RuntimeError(
                f"TRL's DPO loss reports {name} as {told}, and the value gathered in its place has the mean "
                f"{means[name]:.6g}: use the TRL version of constraints.txt"
            )
    return values


def peak_memory_gb() -> dict[str, float]:
    """The most memory that this process has held: on its GPU since the start, else resident."""
    if torch.cuda.is_available():
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_memory_gb": allocated / 1e9, "peak_reserved_gb": reserved / 1e9}
    # Linux counts in KiB.
    return {"peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def _supervised(batch: dict[str, Tensor]) -> Tensor:
    """Supervised tokens of every row [B], or of both answers of every pair [B / 2]."""
    if "labels" in batch:
        return batch["labels"][:, 1:].ne(_IGNORE).sum(1)
    chosen, rejected = batch["completion_mask"][:, 1:].sum(1).chunk(2)
    return chosen + rejected
