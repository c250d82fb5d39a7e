"""The results file: one schema for the quickstart's ``results.json``, the page and the Markdown table.

``{"title": str, "created": str, "metrics": [Metric...], "seconds": {part: s}, "samples": [...],
"environment": {name: value}, "commands": [str], "notes": [str], "progress": Progress}``; only ``metrics`` is required.

Progress, of what still runs: ``{"done": parts, "parts": all, "next": name, "now": name, "left_s": s}``; metrics may
then be empty.

A metric: ``{"name", "unit", "higher_is_better", "n", "target", "target_stage", "note",
"values": {stage: number}, "ci": {stage: [low, high]}}``; ``target``, ``target_stage`` (default: the
last stage measured), ``note`` and ``ci`` may be absent.

A sample: ``{"task", "prompt", "reference", "transcript", "answers": {stage: text}, "audio": path, "right": bool}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qa_train.config import STAGES
from qa_train.report.markdown import plain

CLOSE = "the interval includes the target"
ORDER = ("before", *STAGES)


@dataclass(frozen=True)
class Verdict:
    """Whether a metric reached its target. ``state``: met, missed, unmeasured, or none (no target)."""

    state: str
    text: str
    # Set when the confidence interval includes the target: chance could have decided.
    close: bool = False


def merge_samples(by_stage: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The samples that each stage's evaluation kept, one entry per question with every stage's answer.

    ``right`` is that of the last stage that answered.
    """
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for stage, samples in by_stage.items():
        for sample in samples:
            shared = {key: value for key, value in sample.items() if key not in ("answer", "right")}
            entry = merged.setdefault((sample["task"], sample["key"]), {**shared, "answers": {}})
            entry["answers"][stage] = sample["answer"]
            entry["right"] = sample.get("right")
    return list(merged.values())


def stages_of(results: Mapping[str, Any]) -> list[str]:
    """Stages that any metric has a value for: the known ones in their order, then others as found."""
    seen = [stage for metric in results["metrics"] for stage in metric["values"]]
    return [s for s in ORDER if s in seen] + list(dict.fromkeys(s for s in seen if s not in ORDER))


def check(results: dict[str, Any]) -> None:
    """Refuse results that would make a page with holes.

    Raises:
        ValueError: the metric and the field at fault.
    """
    if not results.get("metrics") and not results.get("progress"):
        raise ValueError("the results hold no metrics: expected a non-empty list under 'metrics'")
    for metric in results["metrics"]:
        missing = {"name", "unit", "higher_is_better", "n", "values"} - set(metric)
        if missing:
            raise ValueError(f"metric {metric.get('name', '?')!r} lacks {sorted(missing)}")
        for stage, value in metric["values"].items():
            if value is not None and not isinstance(value, int | float):
                raise ValueError(f"metric {metric['name']!r}, {stage}: expected a number, found {value!r}")


def target_stage(metric: Mapping[str, Any]) -> str | None:
    """The stage whose value is compared with the target."""
    if "target_stage" in metric:
        return metric["target_stage"]
    measured = [s for s in ORDER if metric["values"].get(s) is not None]
    return measured[-1] if measured else None


def verdict(metric: Mapping[str, Any]) -> Verdict:
    """Compare the value at the target's stage with the target, and say when chance could explain it."""
    target, stage = metric.get("target"), target_stage(metric)
    if target is None:
        return Verdict("none", "no target")
    value = metric["values"].get(stage) if stage else None
    if value is None:
        return Verdict("unmeasured", f"not measured after {stage}" if stage else "not measured")
    met = value >= target if metric["higher_is_better"] else value <= target
    interval = metric.get("ci", {}).get(stage)
    close = bool(interval and interval[0] <= target <= interval[1])
    return Verdict("met" if met else "missed", "met" if met else "missed", close)


def format_value(metric: Mapping[str, Any], stage: str, *, interval: bool = True) -> str:
    """ "34.2 (30.1-38.4)", or a dash where nothing was measured."""
    value = metric["values"].get(stage)
    if value is None:
        return "–"
    text, bounds = f"{value:.1f}", format_interval(metric, stage)
    return f"{text} ({bounds})" if interval and bounds else text


def format_interval(metric: Mapping[str, Any], stage: str) -> str:
    """ "30.1–38.4", or nothing where none is known."""
    bounds = metric.get("ci", {}).get(stage)
    return f"{bounds[0]:.1f}–{bounds[1]:.1f}" if bounds and metric["values"].get(stage) is not None else ""


def direction(metric: Mapping[str, Any]) -> str:
    """ "higher is better", or lower."""
    return "higher is better" if metric["higher_is_better"] else "lower is better"


def format_target(metric: Mapping[str, Any]) -> str:
    """ "at most 45", with its stage where that is not the last one measured."""
    if metric.get("target") is None:
        return "–"
    text = f"{'≥' if metric['higher_is_better'] else '≤'} {metric['target']:g}"
    return f"{text} after {metric['target_stage']}" if "target_stage" in metric else text


def duration(seconds: float) -> str:
    """ "42 s", "3 min 05 s" or "1 h 02 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def markdown_table(results: dict[str, Any]) -> str:
    """The table of metrics as GitHub Markdown: values with 95 % intervals, target and verdict."""
    check(results)
    stages = stages_of(results)
    rows = [["metric", "n", *stages, "target", ""], ["---"] + ["---:"] * (len(stages) + 2) + ["---"]]
    for metric in results["metrics"]:
        values = [format_value(metric, stage) for stage in stages]
        found = verdict(metric)
        said = "" if found.state == "none" else found.text + (f" ({CLOSE})" if found.close else "")
        name = f"{metric['name']} ({metric['unit']}, {'↑' if metric['higher_is_better'] else '↓'})"
        rows.append([name, str(metric["n"]), *values, format_target(metric), said])
    return "\n".join("| " + " | ".join(map(plain, row)) + " |" for row in rows) + "\n"
