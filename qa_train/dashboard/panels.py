"""Which curves a stage has, and how each follows from what metrics.jsonl holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qa_train.dashboard.runs import Run
from qa_train.report.charts import Line, line_chart, smooth

Curve = tuple[list[float], list[float]]
# A run with more steps than this gets its average in addition to raw values.
_DENSE = 20


@dataclass(frozen=True)
class Panel:
    """One chart: a title and the curve that each run gives (empty: the run has none)."""

    title: str
    curve: Callable[[Run], Curve]
    # Values that jump from step to step are shown as a moving average.
    smoothed: bool = True


def _share(part: str, whole: str) -> Callable[[Run], Curve]:
    """One metric as percent of another."""

    def curve(run: Run) -> Curve:
        rows = [r for r in run.rows if isinstance(r.get(part), int | float) and (r.get(whole) or 0) > 0]
        return [float(r["step"]) for r in rows], [100.0 * r[part] / r[whole] for r in rows]

    return curve


def _unused(run: Run) -> Curve:
    """Percent of the token budget that a step's batches leave empty."""
    budget = (run.setting("data.tokens_per_batch") or 0) * (run.setting("trainer.batches_per_step") or 0)
    xs, ys = run.curve("tokens")
    return (xs, [100 * (1 - y / budget) for y in ys]) if budget else ([], [])


def _key(name: str) -> Callable[[Run], Curve]:
    return lambda run: run.curve(name)


def _times(name: str, factor: float) -> Callable[[Run], Curve]:
    def curve(run: Run) -> Curve:
        xs, ys = run.curve(name)
        return xs, [factor * y for y in ys]

    return curve


PANELS = (
    Panel("training loss", _key("loss")),
    Panel("learning rate", _key("learning_rate"), smoothed=False),
    Panel("gradient norm", _key("grad_norm")),
    Panel("tokens per second", _key("tokens_per_s")),
    Panel("hours of audio per hour", _key("audio_s_per_s")),
    Panel("samples per second", _key("samples_per_s")),
    Panel("useful GFLOP per second", _times("useful_tflops_per_s", 1000)),
    Panel("useful operations, share of the card's peak", _key("useful_mfu")),
    Panel("seconds per step", _key("seconds")),
    Panel("token budget left empty, %", _unused),
    Panel("waiting for data, % of the step", _share("data_wait_s", "seconds")),
    Panel("checkpoint stall, seconds", _key("checkpoint_s"), smoothed=False),
    Panel("peak memory, GB", _key("peak_memory_gb"), smoothed=False),
    Panel("peak memory reserved by torch, GB", _key("peak_reserved_gb"), smoothed=False),
    Panel("skipped samples, since the last start", _key("skipped_samples"), smoothed=False),
    Panel("skipped steps, so far", _key("skipped_steps"), smoothed=False),
    Panel("pairs ranked right, share", _key("rewards/accuracies")),
    Panel("reward margin, chosen over rejected", _key("rewards/margins")),
    Panel("reward of chosen answers", _key("rewards/chosen")),
    Panel("reward of rejected answers", _key("rewards/rejected")),
    Panel("log-ratio to the reference, chosen", _key("kl/chosen")),
    Panel("log-ratio to the reference, rejected", _key("kl/rejected")),
)
# One value for each source, part or reason, under names that are not known beforehand.
FAMILIES = {
    "loss/": "loss by source",
    "tokens/": "supervised tokens of a step, by source",
    "epoch/": "passes through each source",
    "rewards/accuracies/": "pairs ranked right, by source",
    "rewards/margins/": "reward margin, by source",
    "learning_rate/": "learning rate by part",
    "skipped/": "skipped samples by reason, since the last start",
}
# The same, with a separate chart for every name: their units differ.
PREFIXES = ("grad_norm/", "eval")


def panels_of(runs: Sequence[Run]) -> list[Panel]:
    """The panels for which a run has a curve: those above, then evaluations and whatever else is logged by name."""
    logged = sorted({key for run in runs for key in run.keys if key.startswith(PREFIXES)})
    return [*PANELS, *(Panel(_title(key, runs), _key(key), not key.startswith("eval")) for key in logged)]


def family(run: Run, prefix: str, most: int) -> tuple[list[str], int]:
    """Names of a family that a run has, those with the most points first; and how many more than ``most`` there are."""
    names = [key.removeprefix(prefix) for key in run.keys if key.startswith(prefix)]
    names = sorted((name for name in names if "/" not in name), key=lambda n: (-len(run.curve(prefix + n)[0]), n))
    return sorted(names[:most]), max(0, len(names) - most)


def draw_family(run: Run, prefix: str, names: Sequence[str]) -> str | None:
    """One chart with a curve for each of the names; None when none has two points."""
    lines: list[Line] = []
    for hue, name in enumerate(names):
        xs, ys = run.curve(prefix + name)
        if len(xs) < 2:
            continue
        smoothed = len(xs) > _DENSE and prefix not in ("epoch/", "learning_rate/", "skipped/")
        lines.append(Line(xs, smooth(ys, _weight(xs)) if smoothed else ys, hue=hue, label=name))
    return line_chart(FAMILIES[prefix], lines, "step") if lines else None


def _weight(xs: Sequence[float]) -> float:
    """Of the moving average: over about a thirtieth of the run."""
    return 1 - 1 / max(1.0, len(xs) / 30)


def _title(key: str, runs: Sequence[Run]) -> str:
    """The metric's name; of an evaluation during training also how it is scored, and over how many items."""
    name = key.removeprefix("eval/")
    found = [row["evaluation"][name] for run in runs for row in run.rows if name in (row.get("evaluation") or {})]
    if not key.startswith("eval/") or not found:
        return "seconds of evaluation" if key == "eval_s" else key.replace("/", ", ")
    return f"held out: {name} ({found[-1]['metric']}, n = {found[-1]['n']})"


def draw(panel: Panel, runs: Sequence[tuple[int, Run]]) -> str | None:
    """The panel as SVG with one curve for each (colour, run); None when no run has two points, or all are zero."""
    lines: list[Line] = []
    for hue, run in runs:
        xs, ys = panel.curve(run)
        if len(xs) < 2:
            continue
        if not panel.smoothed or len(xs) <= _DENSE:
            lines.append(Line(xs, ys, hue=hue, label=run.name))
            continue
        lines.append(Line(xs, smooth(ys, _weight(xs)), hue=hue, label=run.name))
        if len(runs) == 1:
            lines.append(Line(xs, ys, faint=True, hue=hue))
    if not lines or not any(y for line in lines for y in line.ys):
        return None
    return line_chart(panel.title, lines, "step")
