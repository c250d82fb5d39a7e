"""The dashboard as one HTML page: a table of runs, and for every stage its charts and what differs in its settings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Any

from qa_train.config import STAGES
from qa_train.dashboard.panels import FAMILIES, draw, draw_family, family, panels_of
from qa_train.dashboard.runs import Run, differences
from qa_train.dashboard.samples import Clips, samples_table
from qa_train.report.charts import number
from qa_train.report.results import duration
from qa_train.report.style import STYLE

# Maximum number of runs in one chart: more colours could not be distinguished.
HUES = 8
# Rows of the table of differences; the rest is counted.
MAX_DIFFERENCES = 40
_LONG = 60

_COLOURS = """
:root { --h0: #2a5fc4; --h1: #c2571a; --h2: #1b7a4b; --h3: #8e3fb0; --h4: #b0284e; --h5: #0f7d8c; --h6: #7a6a10;
  --h7: #5c636e; }
@media (prefers-color-scheme: dark) { :root { --h0: #82aaff; --h1: #ffab70; --h2: #7fd6a6; --h3: #d3a4f0;
  --h4: #ff8fab; --h5: #6fd3e0; --h6: #e0cc66; --h7: #b4bac4; } }
main { max-width: 1240px; }
.curve.faint { opacity: .3; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 3px; margin-right: 8px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 14px; font-size: .875rem; }
.legend.small { font-size: .75rem; margin: 4px 0 0; }
details { margin-top: 18px; } summary { cursor: pointer; font-weight: 600; font-size: .9375rem; margin-bottom: 10px; }
.scroll { overflow-x: auto; } .below { margin-top: 24px; }
.settings td, .settings th { font-size: .8125rem; overflow-wrap: anywhere; min-width: 90px; }
.settings tbody th { font-weight: 500; font-family: ui-monospace, Menlo, Consolas, monospace; white-space: nowrap;
  max-width: none; padding-right: 20px; }
.settings td, .settings tbody th { padding-top: 5px; padding-bottom: 5px; }
tbody th small { font-weight: 400; overflow-wrap: anywhere; }
.samples td, .samples tbody th { font-size: .875rem; overflow-wrap: anywhere; min-width: 110px; }
.samples tbody th { font-weight: 500; } .samples td:nth-child(2) { width: 260px; min-width: 220px; }
.samples audio { margin: 0; } .samples small.mark { display: inline; font-weight: 600; }
td.right small.mark { color: var(--good); } td.wrong small.mark { color: var(--bad); }
@media (max-width: 720px) {
  .settings thead { display: table-header-group; } .settings table { display: table; }
  .settings tbody { display: table-row-group; } .settings tr { display: table-row; }
  .settings td, .settings tbody th { display: table-cell; text-align: left; padding: 6px 8px 6px 0; }
  .settings td::before { content: none; }
  .samples td:nth-child(2) { width: auto; } .samples td:nth-child(2) span { flex: 1; }
}
"""
_COLOURS += "".join(
    f".curve.hue{i} {{ stroke: var(--h{i}); }} .dot.hue{i} {{ fill: var(--h{i}); }} "
    f".swatch.hue{i} {{ background: var(--h{i}); }}\n"
    for i in range(HUES)
)


def render(runs: Sequence[Run], title: str, clips: Clips) -> str:
    """The whole page; it needs no network, and no other file but clips for which it has no room."""
    stages = list(dict.fromkeys(run.stage for run in runs))
    shown = {stage: _numbered([run for run in runs if run.stage == stage]) for stage in stages}
    head = escape(title)
    body = [
        f"<header class='top'><h1>{head}</h1><p>made {time.strftime('%Y-%m-%d %H:%M')} from metrics.jsonl</p>"
        f"<div class='tiles'>{_tiles(runs)}</div></header>",
        f"<section><h2>Runs</h2>{_runs_table(shown, runs)}</section>",
        *(_stage_section(stage, shown[stage], sum(run.stage == stage for run in runs), clips) for stage in stages),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{head}</title><style>{STYLE}{_COLOURS}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _numbered(runs: list[Run]) -> list[tuple[int, Run]]:
    """The newest runs of a stage, each with its colour."""
    return list(enumerate(runs[-HUES:]))


def _tiles(runs: Sequence[Run]) -> str:
    seconds = sum(sum(run.curve("seconds")[1]) for run in runs)
    hours = sum(sum(run.curve("audio_s")[1]) for run in runs) / 3600
    # An evaluation before the first step has a separate row.
    steps = sum(row["step"] > 0 for run in runs for row in run.rows)
    tiles = [
        (str(len(runs)), "runs"),
        (f"{steps:,}", "optimizer steps"),
        (f"{hours:,.1f} h", "of audio trained on"),
        (duration(seconds), "of training"),
    ]
    return "".join(f'<div class="tile"><b>{escape(b)}</b>{escape(t)}</div>' for b, t in tiles)


def _runs_table(shown: dict[str, list[tuple[int, Run]]], runs: Sequence[Run]) -> str:
    colours = {run.folder: hue for rows in shown.values() for hue, run in rows}
    names = ("stage", "steps", "state", "loss", "tokens/s", "audio h/h", "time", "skipped")
    head = "".join(f'<th scope="col" class="num">{name}</th>' for name in names)
    rows = "".join(_run_row(run, colours.get(run.folder), names) for run in runs)
    return f'<table><thead><tr><th scope="col">run</th>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _run_row(run: Run, hue: int | None, names: Sequence[str]) -> str:
    swatch = "" if hue is None else f'<span class="swatch hue{hue}"></span>'
    model = run.setting("model.name", "")
    commit = (run.starts[-1].get("git_commit") or "")[:8] if run.starts else ""
    about = " · ".join(word for word in (str(model), f"commit {commit}" if commit else "", _starts(run)) if word)
    planned = run.setting("trainer.max_steps")
    done = int(run.rows[-1]["step"]) if run.rows else 0
    state = '<span class="badge met">finished</span>' if run.finished else f"{_ago(run.changed)}"
    losses = run.curve("loss")[1]
    skipped = run.curve("skipped_samples")[1]
    cells = (
        escape(run.stage),
        f"{done:,}" + (f" of {planned:,}" if isinstance(planned, int) and planned != done else ""),
        state,
        number(sum(losses[-20:]) / len(losses[-20:])) if losses else "–",
        _typical(run, "tokens_per_s"),
        _typical(run, "audio_s_per_s"),
        duration(sum(run.curve("seconds")[1])),
        f"{skipped[-1]:,.0f}" if skipped else "–",
    )
    body = "".join(f'<td data-label="{n}" class="num"><span>{c}</span></td>' for n, c in zip(names, cells, strict=True))
    return f"<tr><th scope='row'>{swatch}{escape(run.name)}<small>{escape(about)}</small></th>{body}</tr>"


def _starts(run: Run) -> str:
    return f"{len(run.starts)} starts" if len(run.starts) > 1 else ""


def _ago(moment: float) -> str:
    return f"last step {duration(max(1.0, time.time() - moment))} ago"


def _typical(run: Run, key: str) -> str:
    """The median over the steps: one slow step (a save, a start) does not move it."""
    values = run.curve(key)[1]
    return number(median(values)) if values else "–"


def _stage_section(stage: str, runs: list[tuple[int, Run]], count: int, clips: Clips) -> str:
    figures = []
    for panel in panels_of([run for _, run in runs]):
        chart = draw(panel, runs)
        if chart is not None:
            figures.append(f"<figure><figcaption>{escape(panel.title)}</figcaption>{chart}</figure>")
    note = "Moving averages; one colour for each run." if len(runs) > 1 else "Bold: moving average. Thin: every step."
    if count > len(runs):
        note += f" Drawn: the {len(runs)} newest of {count} runs."
    legend = "".join(f'<span><span class="swatch hue{hue}"></span>{escape(run.name)}</span>' for hue, run in runs)
    order = f"stage {list(STAGES).index(stage) + 1}: " if stage in STAGES else ""
    charts = (
        f'<div class="charts">{"".join(figures)}</div>' if figures else '<p class="note">No step was logged yet.</p>'
    )
    return (
        f'<section><h2>{escape(order + stage)}</h2><p class="note">{note}</p><div class="legend">{legend}</div>{charts}'
        f"{''.join(_families(run, unfolded=len(runs) == 1) for _, run in runs)}"
        f"{''.join(_samples(run, clips, unfolded=len(runs) == 1) for _, run in runs)}{_differences(runs)}</section>"
    )


def _samples(run: Run, clips: Clips, *, unfolded: bool) -> str:
    if not (table := samples_table(run, clips)):
        return ""
    title = f"{escape(run.name)}: held-out questions, and what it answered"
    return f"<details{' open' if unfolded else ''}><summary>{title}</summary>{table}</details>"


def _families(run: Run, *, unfolded: bool) -> str:
    """What a run logged by source, part and reason: charts of many curves, folded away when there are several runs."""
    figures = []
    for prefix, title in FAMILIES.items():
        names, more = family(run, prefix, HUES)
        if (chart := draw_family(run, prefix, names)) is None:
            continue
        legend = "".join(
            f'<span><span class="swatch hue{i}"></span>{escape(name)}</span>' for i, name in enumerate(names)
        )
        rest = f"<span>and {more} more in metrics.jsonl</span>" if more else ""
        below = f'<div class="legend small">{legend}{rest}</div>'
        figures.append(f"<figure><figcaption>{escape(title)}</figcaption>{chart}{below}</figure>")
    if not figures:
        return ""
    return (
        f"<details{' open' if unfolded else ''}><summary>{escape(run.name)}: by source, part and reason</summary>"
        f'<div class="charts">{"".join(figures)}</div></details>'
    )


def _differences(runs: list[tuple[int, Run]]) -> str:
    if len(runs) < 2:
        return ""
    found = differences([run for _, run in runs])
    if not found:
        return '<p class="note">The settings of these runs are the same.</p>'
    head = "".join(f'<th scope="col"><span class="swatch hue{hue}"></span>{escape(run.name)}</th>' for hue, run in runs)
    rows = "".join(
        f"<tr><th scope='row'>{escape(key)}</th>" + "".join(f"<td>{escape(_short(v))}</td>" for v in values) + "</tr>"
        for key, values in list(found.items())[:MAX_DIFFERENCES]
    )
    more = len(found) - MAX_DIFFERENCES
    rest = f'<p class="note">and {more} more settings</p>' if more > 0 else ""
    return (
        f'<h2 class="below">What differs in their settings</h2><div class="scroll settings"><table>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>{rest}"
    )


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"
