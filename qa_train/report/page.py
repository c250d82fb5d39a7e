"""The report as one HTML page: sections are functions from data to HTML, the style is one string."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from qa_train.report.charts import Bar, Line, bar_chart, line_chart, smooth, stage_chart
from qa_train.report.player import player
from qa_train.report.results import (
    CLOSE,
    duration,
    format_target,
    format_value,
    stages_of,
    target_stage,
    verdict,
)
from qa_train.report.style import STYLE

MAX_CLIPS = 15
# Curves of metrics.jsonl beyond the loss, drawn where a run has them.
EXTRA_CURVES = {
    "rewards/accuracies": "share of training pairs ranked right",
    "rewards/margins": "reward margin, chosen over rejected",
}


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a last line truncated by a kill is skipped."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def _section(title: str, body: str, note: str = "") -> str:
    if not body:
        return ""
    lead = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{lead}{body}</section>"


def _cell(label: str, body: str, kind: str = "") -> str:
    return f'<td data-label="{escape(label, quote=True)}" class="{kind}">{body}</td>'


def _value_cell(metric: dict[str, Any], stage: str) -> str:
    value = format_value(metric, stage, interval=False)
    bounds = metric.get("ci", {}).get(stage)
    small = f"<small>{bounds[0]:.1f}–{bounds[1]:.1f}</small>" if bounds and value != "–" else ""
    return _cell(stage, f"<span><b>{value}</b>{small}</span>", "num")


def _table_row(metric: dict[str, Any], stages: Sequence[str]) -> str:
    found = verdict(metric)
    arrow = "higher is better" if metric["higher_is_better"] else "lower is better"
    note = f'<small class="wide">{escape(metric["note"])}</small>' if metric.get("note") else ""
    head = f"<th scope='row'>{escape(metric['name'])}<small>{escape(metric['unit'])}, {arrow}</small>{note}</th>"
    badge = "" if found.state == "none" else f'<span class="badge {found.state}">{escape(found.text)}</span>'
    badge += f"<small>{CLOSE}</small>" if found.close else ""
    return (
        f"<tr>{head}"
        + _cell("items", str(metric["n"]), "num")
        + "".join(_value_cell(metric, stage) for stage in stages)
        + _cell("target", escape(format_target(metric)), "num")
        + _cell("", badge, "verdict")
        + "</tr>"
    )


def results_table(results: dict[str, Any]) -> str:
    """Metrics by stage with 95 % intervals, the target and an honest verdict."""
    stages = stages_of(results)
    head = "".join(f'<th scope="col" class="num">{escape(s)}</th>' for s in ["items", *stages, "target"])
    rows = "".join(_table_row(metric, stages) for metric in results["metrics"])
    return (
        f'<table><thead><tr><th scope="col">held-out metric</th>{head}<th></th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _figure(title: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"


def metric_charts(results: dict[str, Any]) -> str:
    """One small chart per metric that was measured after two stages or more."""
    figures = []
    for metric in results["metrics"]:
        stages = [s for s in stages_of(results) if metric["values"].get(s) is not None]
        if len(stages) < 2:
            continue
        bounds = [metric.get("ci", {}).get(s) for s in stages]
        chart = stage_chart(
            metric["name"],
            stages,
            [metric["values"][s] for s in stages],
            [(b[0], b[1]) if b else None for b in bounds],
            metric.get("target") if target_stage(metric) in stages else None,
        )
        figures.append(_figure(f"{metric['name']} ({metric['unit']})", chart))
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(float(r["step"]), float(r[key])) for r in rows if isinstance(r.get(key), int | float)]
    return [x for x, _ in points], [y for _, y in points]


def loss_charts(run_dirs: Mapping[str, Path]) -> str:
    """Training loss of each stage (thin: every step, bold: moving average), and other curves it logs."""
    figures = []
    for stage, run_dir in run_dirs.items():
        rows = read_metrics(run_dir)
        logged = sorted({key for row in rows for key in row})
        curves = {"loss": "training loss"} | {k: v for k, v in EXTRA_CURVES.items() if k in logged}
        curves |= {key: key for key in logged if key.startswith("eval")}
        for key, label in curves.items():
            xs, ys = _curve(rows, key)
            if len(xs) < 2:
                continue
            dense = len(xs) > 20
            # The average reaches back over a thirtieth of the run: steady, and hardly behind.
            lines = [Line(xs, smooth(ys, 1 - 1 / max(1.0, len(xs) / 30) if dense else 0.0))]
            lines += [Line(xs, ys, faint=True)] if dense else []
            figures.append(_figure(f"{stage}: {label}", line_chart(f"{stage} {label}", lines, "step")))
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def time_chart(seconds: Mapping[str, float]) -> str:
    """Where the time went, one bar per part in the order given."""
    if not seconds:
        return ""
    total = sum(seconds.values())
    bars = [Bar(name, s, f"{duration(s)} · {100 * s / (total or 1):.0f} %") for name, s in seconds.items()]
    return bar_chart(bars)


def _sample(sample: Mapping[str, Any], sound: str) -> str:
    answers = "".join(
        f"<dt>{escape(stage)}</dt><dd>{escape(text) or '<i>(empty answer)</i>'}</dd>"
        for stage, text in sample.get("answers", {}).items()
    )
    mark = sample.get("right")
    badge = "" if mark is None else f'<span class="badge {"met" if mark else "missed"}">{_RIGHT[bool(mark)]}</span>'
    prompt = f'<p class="prompt">{escape(sample["prompt"])}</p>' if sample.get("prompt") else ""
    return (
        f'<article><header><span class="task">{escape(str(sample.get("task", "")))}</span>{badge}</header>'
        f"{sound}{prompt}<dl><dt>expected</dt><dd>{escape(str(sample.get('reference', '')))}</dd>{answers}</dl>"
        "</article>"
    )


_RIGHT = {True: "right", False: "wrong"}


def sample_cards(samples: Sequence[Mapping[str, Any]]) -> str:
    """Held-out clips with a player and every stage's answer; at most ``MAX_CLIPS`` clips are embedded."""
    # Here, because the dashboard shares this module and plays files as they are: reading audio means importing torch.
    from qa_train.report.data_uri import MAX_SECONDS, data_uri

    cards, players = [], 0
    for sample in samples[: 2 * MAX_CLIPS]:
        sound = ""
        if sample.get("audio") is not None and players < MAX_CLIPS:
            uri, cut = data_uri(sample["audio"])
            players += 1
            sound = player(uri)
            if cut:
                sound += f'<p class="note">first {MAX_SECONDS:.0f} s of the clip</p>'
        cards.append(_sample(sample, sound))
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _facts(environment: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in environment.items())
    return f'<dl class="facts">{rows}</dl>' if rows else ""


def _summary(results: dict[str, Any]) -> str:
    states = [verdict(metric).state for metric in results["metrics"]]
    tiles = []
    compared = [s for s in states if s != "none"]
    if compared:
        tiles.append((f"{compared.count('met')} of {len(compared)}", "targets met"))
    if results.get("seconds"):
        tiles.append((duration(sum(results["seconds"].values())), "from start to end"))
    tiles.append((f"{sum(m['n'] for m in results['metrics']):,}", "held-out items scored"))
    return "".join(f'<div class="tile"><b>{escape(b)}</b>{escape(t)}</div>' for b, t in tiles)


def render(results: dict[str, Any], run_dirs: Mapping[str, Path]) -> str:
    """The whole page."""
    title = escape(results.get("title", "qa-train report"))
    notes = "".join(f"<li>{escape(note)}</li>" for note in results.get("notes", []))
    commands = "\n".join(results.get("commands", []))
    body = [
        f"<header class='top'><h1>{title}</h1><p>{escape(results.get('created', ''))}</p>"
        f"<div class='tiles'>{_summary(results)}</div></header>",
        _section(
            "Results",
            results_table(results) + (f"<ul>{notes}</ul>" if notes else ""),
            "Measured on held-out items; the small figures are 95 % confidence intervals. "
            "Empty, cut-short and failed answers count as wrong.",
        ),
        _section("After each stage", metric_charts(results)),
        _section("Training curves", loss_charts(run_dirs), "Thin: every step. Bold: moving average."),
        _section("Listen and compare", sample_cards(results.get("samples", []))),
        _section("Where the time went", time_chart(results.get("seconds", {}))),
        _section("Environment", _facts(results.get("environment", {}))),
        _section("Commands", f"<pre>{escape(commands)}</pre>" if commands else ""),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )
