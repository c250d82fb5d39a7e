"""The report of an evaluation, as Markdown and as a page: our numbers next to the published ones, the worst cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qa_train.data.audio.waveform import BadAudio
from qa_train.report.data_uri import MAX_SECONDS, data_uri
from qa_train.report.document import render
from qa_train.report.markdown import plain
from qa_train.report.score_notes import Results, identity_of, listening, notes_of, number, warnings_of

MAX_PLAYERS = 30
# Separate columns; every other system is a baseline.
COLUMNS = {"hf": "HF weights", "paper": "paper"}
# Columns of words; the others are of numbers.
_KINDS = {"other systems": "", "odd answers": "", "probe": ""}
COUNTS = ("empty", "unparsed", "failed", "truncated", "judge_failed", "judge_refused", "judge_unread")


def _ours(result: Mapping[str, Any]) -> str:
    if result.get("value") is None:
        return "–"
    if "ci_low" not in result:
        return f"{result['value']:.2f}"
    # With one item, or equal items, resampling gives no information: no interval does not mean a narrow one.
    drawn = result["ci_low"] < result["ci_high"]
    interval = f"{result['ci_low']:.2f}, {result['ci_high']:.2f}" if drawn else "–"
    return f"{result['value']:.2f} [{interval}]"


def _baselines(benchmark: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in benchmark["numbers"].items() if k not in COLUMNS)


def _counts(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{result[k]} {k.replace('_', ' ')}" for k in COUNTS if result.get(k)) or "none"


def _parts(result: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The breakdowns that have more than one class, or belong to a benchmark of tasks."""
    titles = {"by_metric": "metric", "groups": "task", "by_group": "group", "by_length": "clip length"}
    titles |= {"by_language": "language", "by_position": "position of the right option"}
    return {title: result[key] for key, title in titles.items() if len(result.get(key) or {}) > 1}


def _table(results: Results) -> dict[str, list[str]]:
    """The columns of the table with a row per benchmark: title -> cells."""
    benchmarks = [result["benchmark"] for result in results.values()]
    columns = {"ours": list(map(_ours, results.values()))}
    columns |= {title: [number(each["numbers"].get(key)) for each in benchmarks] for key, title in COLUMNS.items()}
    columns["other systems"] = [_baselines(each) or "–" for each in benchmarks]
    # Of the published numbers those that some benchmark has.
    columns = {title: cells for title, cells in columns.items() if title == "ours" or {*cells} - {"–"}}
    columns["n"] = [str(result["n"]) for result in results.values()]
    return columns | {
        "odd answers": list(map(_counts, results.values())),
        "probe": list(map(listening, results.values())),
    }


def markdown_report(results: Results) -> str:
    """One table with a row per benchmark, notes, and the breakdowns."""
    table = _table(results)
    heads = ["benchmark", "metric", *table]
    heads[2] = "ours [95 %]"
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for i, (name, result) in enumerate(results.items()):
        cells = [_title(name, result), result["benchmark"]["metric"], *(column[i] for column in table.values())]
        lines.append("| " + " | ".join(map(plain, cells)) + " |")
    if warnings := warnings_of(results):
        lines += ["", "Before believing these numbers:", "", *(f"- {plain(note)}" for note in warnings)]
    lines += ["", "How they were scored:", ""]
    lines += [f"- {plain(f'{name}: {note}')}" for name, result in results.items() for note in notes_of(result)]
    for name, result in results.items():
        for title, classes in _parts(result).items():
            lines += ["", f"{plain(name)} by {title}:", "", f"| {title} | value [95 %] | n |", "|---|---|---|"]
            lines += [f"| {plain(k)} | {_ours(v)} | {v.get('n', '')} |" for k, v in classes.items()]
    return "\n".join(lines) + "\n"


def _rows(results: Results, table: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    rows = []
    for i, (name, result) in enumerate(results.items()):
        direction = "lower is better" if result.get("lower_is_better") else "higher is better"
        deaf = (result.get("probe") or {}).get("listens") is False
        kinds = _KINDS | ({"probe": "bad"} if deaf else {})
        cells = [(column[i], kinds.get(title, "num")) for title, column in table.items()]
        metric = f"{result['benchmark']['metric']}, {direction}"
        rows.append({"title": _title(name, result), "metric": metric, "cells": cells})
    return rows


def _title(name: str, result: Mapping[str, Any]) -> str:
    return str(result["benchmark"]["title"] or name)


def _breakdowns(results: Results) -> list[dict[str, Any]]:
    tables = []
    for name, result in results.items():
        published = result["benchmark"]["group_numbers"]
        for title, classes in _parts(result).items():
            others = {k: ", ".join(f"{s} {x}" for s, x in published.get(k, {}).items()) for k in classes}
            rows = [{"name": k, "ours": _ours(v), "n": v.get("n", ""), "others": others[k]} for k, v in classes.items()]
            tables.append({"title": _title(name, result), "by": title, "rows": rows, "compared": any(others.values())})
    return tables


def _clip(root: str, audio: str, below: Path | None) -> dict[str, str]:
    """``src`` of the player of a clip, and a ``note`` where it is cut, or why there is none."""
    try:
        path = Path(root) / audio
        if below is not None and not path.resolve().is_relative_to(below.resolve()):
            return {"note": f"no player: {path.name} is not below data_root={below}"}
        uri, cut = data_uri(path)
    except (BadAudio, OSError, ValueError, RuntimeError) as error:
        return {"note": f"no player: {error}"}
    return {"src": uri, "note": f"first {MAX_SECONDS:.0f} s of the clip" if cut else ""}


def _worst(results: Results, below: Path | None) -> list[dict[str, Any]]:
    cards: list[dict[str, Any]] = []
    # Clips are inside the page: each benchmark has its share of them.
    share = max(1, MAX_PLAYERS // max(1, sum(bool(result.get("worst")) for result in results.values())))
    for name, result in results.items():
        for place, item in enumerate(result.get("worst") or []):
            clip = {}
            if item.get("audio"):
                more = {"note": f"no player, the page holds {share} a benchmark: {item['audio']}"}
                clip = _clip(result.get("data_root", ""), item["audio"], below) if place < share else more
            card = {"src": "", "note": "", **clip, "title": _title(name, result), "id": item["id"]}
            card |= {"prompt": item.get("prompt") or item.get("question") or "", "said": item["prediction"]}
            card |= {"error": item.get("error"), "judge": item.get("judge") or []}
            card["wanted"] = item["gt"] if isinstance(item["gt"], str) else " / ".join(item["gt"])
            cards.append(card)
    return cards


def _fact(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def render_benchmarks(results: Results, title: str = "Evaluation", below: Path | None = None) -> str:
    """The whole page, self-contained; clips of the worst cases are read from the data root and embedded.

    ``below``: only clips that lie in this folder, wherever links lead, for results that somebody else may have made.
    """
    first = next(iter(results.values()), {})
    facts = {"answered by": first.get("answered_by", ""), **first.get("identity", {})}
    facts = {k: v for k, v in facts.items() if k not in ("benchmark", "rows")}
    if len({identity_of(result) for result in results.values()}) > 1:
        facts = {"answered by": "several models: see above"}
    table = _table(results)
    return render(
        "scores.html",
        styles=("scores.css",),
        title=title,
        columns=[(name, _KINDS.get(name, "num")) for name in table],
        rows=_rows(results, table),
        warnings=warnings_of(results),
        scored=[(_title(name, result), notes_of(result)) for name, result in results.items()],
        breakdowns=_breakdowns(results),
        worst=_worst(results, below),
        facts=[(name, _fact(value)) for name, value in facts.items()],
    )
