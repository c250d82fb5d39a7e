"""The charts of the pages: which metrics there are, in which groups, and those that follow from others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qa_train.report.runs import Run, is_number

LEARNING, OPTIMIZER, SPEED, MEMORY = "loss and held-out scores", "optimizer", "speed", "memory and skipped data"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """One chart: a metric, and the group of charts in which it stands.

    steady: the value of a step counts by itself; others jump from step to step and are averaged.
    """

    key: str
    title: str
    group: str
    steady: bool = False


PANELS = (
    Panel("loss", "training loss", LEARNING),
    Panel("rewards/accuracies", "pairs ranked right, share", LEARNING),
    Panel("rewards/margins", "reward margin, chosen over rejected", LEARNING),
    Panel("rewards/chosen", "reward of chosen answers", LEARNING),
    Panel("rewards/rejected", "reward of rejected answers", LEARNING),
    Panel("kl/chosen", "log-ratio to the reference, chosen", LEARNING),
    Panel("kl/rejected", "log-ratio to the reference, rejected", LEARNING),
    Panel("learning_rate", "learning rate", OPTIMIZER, steady=True),
    Panel("grad_norm", "gradient norm", OPTIMIZER),
    Panel("tokens_per_s", "tokens per second", SPEED),
    Panel("audio_s_per_s", "hours of audio per hour", SPEED),
    Panel("samples_per_s", "samples per second", SPEED),
    Panel("useful_gflops_per_s", "useful GFLOP per second", SPEED),
    Panel("useful_mfu", "useful operations, share of the card's peak", SPEED),
    Panel("seconds", "seconds per step", SPEED),
    Panel("unused_percent", "token budget left empty, %", SPEED),
    Panel("data_wait_percent", "waiting for data, % of the step", SPEED),
    Panel("checkpoint_s", "checkpoint stall, seconds", SPEED, steady=True),
    Panel("eval_s", "seconds of evaluation", SPEED, steady=True),
    Panel("peak_memory_gb", "peak memory, GB", MEMORY, steady=True),
    Panel("peak_reserved_gb", "peak memory reserved by torch, GB", MEMORY, steady=True),
    Panel("skipped_samples", "skipped samples, since the last start", MEMORY, steady=True),
    Panel("skipped_steps", "skipped steps, so far", MEMORY, steady=True),
)
# prefix -> (group, beginning of a title, whether steady): one panel for every name that a run logs under it.
FAMILIES = {
    "loss/": ("loss by source", "loss", False),
    "tokens/": ("supervised tokens of a step, by source", "supervised tokens", False),
    "epoch/": ("passes through each source", "passes", True),
    "rewards/accuracies/": ("pairs ranked right, by source", "pairs ranked right", False),
    "rewards/margins/": ("reward margin, by source", "reward margin", False),
    "learning_rate/": ("learning rate by part", "learning rate", True),
    "skipped/": ("skipped samples by reason, since the last start", "skipped", True),
}
# Settings on which derived metrics depend.
SETTINGS = ("data.tokens_per_batch", "trainer.batches_per_step")
GROUPS = (LEARNING, OPTIMIZER, SPEED, MEMORY, *(group for group, _, _ in FAMILIES.values()))


def _share(part: str, whole: str) -> Callable[[Run, Row], float | None]:
    def percent(run: Run, row: Row) -> float | None:
        known = is_number(row.get(part)) and is_number(row.get(whole)) and row[whole] > 0
        return 100.0 * row[part] / row[whole] if known else None

    return percent


def _unused(run: Run, row: Row) -> float | None:
    """Percent of the token budget that a step's batches leave empty."""
    per_batch, batches = map(run.setting, SETTINGS)
    known = is_number(per_batch) and is_number(batches) and is_number(row.get("tokens")) and per_batch * batches > 0
    return 100.0 * (1 - row["tokens"] / (per_batch * batches)) if known else None


def _gflops(run: Run, row: Row) -> float | None:
    value = row.get("useful_tflops_per_s")
    return 1000.0 * value if value is not None and is_number(value) else None


# Metrics that follow from those that a run logs.
DERIVED: dict[str, Callable[[Run, Row], float | None]] = {
    "data_wait_percent": _share("data_wait_s", "seconds"),
    "unused_percent": _unused,
    "useful_gflops_per_s": _gflops,
}
_BY_KEY = {panel.key: panel for panel in PANELS}


@lru_cache(maxsize=4096)
def panel_of(key: str) -> Panel | None:
    """The chart of a metric; None: it is not drawn. The title of a held-out score is that of its run."""
    if is_score(key):
        return Panel(key, key, LEARNING, steady=True)
    for prefix, (group, what, steady) in FAMILIES.items():
        name = key.removeprefix(prefix)
        if name != key and "/" not in name:
            return Panel(key, f"{what}: {name}", group, steady)
    return _BY_KEY.get(key)


def is_score(key: str) -> bool:
    """Whether a metric is a score of a held-out set."""
    return key.startswith("eval") and key != "eval_s"
