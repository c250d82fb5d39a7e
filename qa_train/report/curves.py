"""What the pages draw of runs: the panels of each stage, and every run's curves as plain values.

The scripts in ``templates`` draw them: one colour for a run wherever it appears, one panel for a metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from qa_train.config import STAGES
from qa_train.report.runs import Run, differences, is_number

# Points of a curve: a longer run is averaged over neighbouring steps, and says so.
MAX_POINTS = 1000
# Steps of the mean that stands for a run's loss in tables.
LAST_STEPS = 20
LEARNING, OPTIMIZER, SPEED, MEMORY = "loss and held-out scores", "optimizer", "speed", "memory and skipped data"

Row = Mapping[str, Any]
T = TypeVar("T")


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
    "grad_norm/": ("gradient norm by part", "gradient norm", False),
    "skipped/": ("skipped samples by reason, since the last start", "skipped", True),
}
_GROUPS = (LEARNING, OPTIMIZER, SPEED, MEMORY, *(group for group, _, _ in FAMILIES.values()))


def _share(part: str, whole: str) -> Callable[[Run, Row], float | None]:
    def percent(run: Run, row: Row) -> float | None:
        known = is_number(row.get(part)) and is_number(row.get(whole)) and row[whole] > 0
        return 100.0 * row[part] / row[whole] if known else None

    return percent


def _unused(run: Run, row: Row) -> float | None:
    """Percent of the token budget that a step's batches leave empty."""
    per_batch, batches = (run.setting(key) for key in ("data.tokens_per_batch", "trainer.batches_per_step"))
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


def once(function: Callable[[Run], T]) -> Callable[[Run], T]:
    """The function of a run, computed once for every reading of it: a served page asks again and again."""
    known: WeakKeyDictionary[Run, T] = WeakKeyDictionary()

    @wraps(function)
    def remembered(run: Run) -> T:
        if run not in known:
            known[run] = function(run)
        return known[run]

    return remembered


def board_of(runs: Sequence[Run]) -> dict[str, Any]:
    """All that the scripts draw, for JSON: ``runs`` with curves, ``stages`` with panels, ``scores`` with titles."""
    stages = list(dict.fromkeys(run.stage for run in runs))
    return {
        "runs": [dict(_run(run)) for run in runs],
        "stages": [_stage(stage, [run for run in runs if run.stage == stage]) for stage in stages],
        "scores": _scores(runs),
    }


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """The panels for which a run has a curve of two points that are not all zero, in the order of their groups."""
    logged = sorted({key for run in runs for key in _drawn(run)})
    panels = [*PANELS, *(Panel(key, title, LEARNING, steady=True) for key, title in _scores(runs).items())]
    for key in logged:
        for prefix, (group, what, steady) in FAMILIES.items():
            name = key.removeprefix(prefix)
            if key.startswith(prefix) and "/" not in name:
                panels.append(Panel(key, f"{what}: {name}", group, steady))
    shown = [panel for panel in panels if any(panel.key in _drawn(run) for run in runs)]
    return sorted(shown, key=lambda panel: _GROUPS.index(panel.group))


def values_of(run: Run, key: str) -> list[float | None]:
    """A metric, logged or derived, in every row of the run; None where a row has none."""
    derive = DERIVED.get(key)
    if derive is not None:
        return [derive(run, row) for row in run.rows]
    return [float(row[key]) if is_number(row.get(key)) else None for row in run.rows]


def last_loss(run: Run) -> float | None:
    """The mean loss of the last ``LAST_STEPS`` steps."""
    losses = run.curve("loss")[1][-LAST_STEPS:]
    return sum(losses) / len(losses) if losses else None


def last_scores(run: Run) -> dict[str, float]:
    """The newest value of every held-out score."""
    return {key: run.curve(key)[1][-1] for key in sorted(run.keys) if key.startswith("eval") and key != "eval_s"}


def _scores(runs: Sequence[Run]) -> dict[str, str]:
    """Held-out metrics -> title: the set, how it is scored, and over how many items."""
    found = {key: title for run in runs for key, title in _scores_of(run).items()}
    return dict(sorted(found.items()))


@once
def _scores_of(run: Run) -> dict[str, str]:
    said = [row["evaluation"] for row in run.rows if isinstance(row.get("evaluation"), dict)]
    titles = {}
    for key in last_scores(run):
        name = key.removeprefix("eval/")
        of_set = [each[name] for each in said if isinstance(each.get(name), dict)]
        how = f" ({of_set[-1].get('metric')}, n = {of_set[-1].get('n')})" if of_set else ""
        titles[key] = ("held out: " if key.startswith("eval/") else "") + name + how
    return titles


@once
def _drawn(run: Run) -> set[str]:
    """Metrics with two points that are not all zero."""
    drawn = set()
    for key in {*run.keys, *DERIVED}:
        values = [value for value in values_of(run, key) if value is not None]
        if len(values) >= 2 and any(values):
            drawn.add(key)
    return drawn


def _stage(stage: str, runs: list[Run]) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for panel in panels_of(runs):
        said = {"key": panel.key, "title": panel.title, "steady": panel.steady}
        groups.setdefault(panel.group, []).append(said)
    return {
        "name": stage,
        "title": f"stage {list(STAGES).index(stage) + 1}: {stage}" if stage in STAGES else stage,
        "groups": [{"title": title, "panels": panels} for title, panels in groups.items()],
        "differences": {key: [_short(value) for value in values] for key, values in differences(runs).items()},
    }


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


@once
def _run(run: Run) -> dict[str, Any]:
    """Name, stage and curves: ``x`` has the value of each axis at every point, ``curves`` y (and ``at``: which)."""
    buckets = list(_buckets(run))
    ends = [bucket[-1] for bucket in buckets]
    axes = {"step": [run.rows[end]["step"] for end in ends]}
    for name, key in (("tokens", "tokens"), ("audio", "audio_s"), ("time", "seconds")):
        total, sums = 0.0, []
        for value in values_of(run, key):
            total += value or 0.0
            sums.append(total)
        if total > 0:
            axes[name] = [_rounded(sums[end]) for end in ends]
    curves = {}
    for panel in panels_of([run]):
        values = values_of(run, panel.key)
        points = [_point([values[i] for i in bucket], panel.steady) for bucket in buckets]
        there = [i for i, value in enumerate(points) if value is not None]
        curves[panel.key] = {"y": [points[i] for i in there]} | ({} if len(there) == len(ends) else {"at": there})
    return {
        "name": run.name,
        "stage": run.stage,
        "x": axes,
        "per_point": max(map(len, buckets), default=1),
        "curves": curves,
    }


def _buckets(run: Run) -> Iterator[list[int]]:
    """Rows that make one point, by number; a row with held-out scores ends one, so that they stand at their step."""
    size = -(-len(run.rows) // MAX_POINTS)
    bucket: list[int] = []
    for i, row in enumerate(run.rows):
        bucket.append(i)
        if len(bucket) >= size or "evaluation" in row:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def _point(values: Sequence[float | None], steady: bool) -> float | None:
    found = [value for value in values if value is not None]
    if not found:
        return None
    return _rounded(found[-1] if steady else sum(found) / len(found))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
