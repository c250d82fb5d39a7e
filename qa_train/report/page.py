"""The report as one HTML page: what ``templates/report.html`` shows, from results and run folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.report.curves import board_of
from qa_train.report.document import CURVES, ogg_uri, render
from qa_train.report.results import (
    CLOSE,
    direction,
    duration,
    format_interval,
    format_target,
    format_value,
    stages_of,
    target_stage,
    verdict,
)
from qa_train.report.runs import read_run
from qa_train.utils.progress import duration as about
from qa_train.utils.progress import rough

# MiB of sound and pictures in the page.
MAX_MIB = 8.0


def report_page(results: Mapping[str, Any], run_dirs: Mapping[str, Path], below: Path | None = None) -> str:
    """The whole page. below: only clips that lie in this folder, wherever links lead."""
    runs = [replace(read_run(folder, stage), stage=stage) for stage, folder in run_dirs.items() if _logged(folder)]
    board = board_of(runs)
    drawn = any(stage["groups"] for stage in board["stages"])
    stages = stages_of(results)
    return render(
        "report.html",
        styles=(*CURVES["styles"], "report.css"),
        scripts=(*CURVES["scripts"], "scripts/report.js") if drawn else (),
        board=board if drawn else None,
        title=str(results.get("title", "qa-train report")),
        created=str(results.get("created", "")),
        progress=_progress(results.get("progress")),
        tiles=headline(results),
        stages=stages,
        metrics=[_row(metric, stages) for metric in results["metrics"]],
        notes=results.get("notes", []),
        close=CLOSE,
        plots=[plot for metric in results["metrics"] if (plot := interval_plot(metric, stages))],
        sets=sample_sets(results.get("samples", []), below),
        times=_times(results.get("seconds", {})),
        environment=list(results.get("environment", {}).items()),
        commands="\n".join(results.get("commands", [])),
    )


def interval_plot(metric: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Any] | None:
    """Places, in percent of the width, of a metric's dots, intervals and target; None before two stages measured it."""
    measured = [stage for stage in stages if metric["values"].get(stage) is not None]
    if len(measured) < 2:
        return None
    intervals = {stage: metric.get("ci", {}).get(stage) for stage in measured}
    target = metric.get("target") if target_stage(metric) in measured else None
    seen = [metric["values"][stage] for stage in measured]
    seen += [bound for interval in intervals.values() if interval for bound in interval]
    seen += [] if target is None else [target]
    # Charts of percentages are compared with each other.
    seen += [100.0] if metric["unit"] == "%" else []
    low, high = min(0.0, *seen), max(seen)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    rows = []
    for stage in measured:
        value, interval = metric["values"][stage], intervals[stage]
        left, right = (place(bound) for bound in interval or (value, value))
        rows.append(
            {"stage": stage, "dot": place(value), "low": left, "width": round(right - left, 2)}
            | {"text": format_value(metric, stage, interval=False), "interval": format_interval(metric, stage)}
        )
    return {
        "name": f"{metric['name']} ({metric['unit']})",
        "rows": rows,
        "target": None if target is None else place(target),
        "said": "" if target is None else f"{target:g}",
        "low": rough(low),
        "high": rough(high),
    }


def sample_sets(
    samples: Sequence[Mapping[str, Any]], below: Path | None = None
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Samples by set, each with its sound; the page's room is given to the first of every set, then the second."""
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        sets.setdefault(str(sample.get("task", "")), []).append(sample)
    room = MAX_MIB * 2**20
    shown: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}
    for name, sample in _in_turn(sets):
        sound, size = _sound(sample.get("audio"), room, below)
        room -= size
        shown[name].append(
            {
                "sound": sound,
                "right": sample.get("right"),
                "prompt": sample.get("prompt"),
                "reference": str(sample.get("reference", "")),
                # Of speech to be written down, the reference says it already.
                "transcript": sample.get("transcript") if sample.get("transcript") != sample.get("reference") else None,
                "answers": list(sample.get("answers", {}).items()),
            }
        )
    return list(shown.items())


def _in_turn(sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    columns = [[(name, sample) for sample in samples] for name, samples in sets.items()]
    return (pair for pair in chain.from_iterable(zip_longest(*columns)) if pair is not None)


def _sound(clip: Any, room: float, below: Path | None) -> tuple[dict[str, Any], int]:
    """(What plays and shows a clip, the bytes of it), or ``why`` there is nothing."""
    if clip is None:
        return _silent("")
    # Here, because the dashboard shares this package and plays files as they are: reading audio means importing torch.
    from qa_train.data.audio.waveform import BadAudio
    from qa_train.report.data_uri import MAX_SECONDS, opus_bytes, shortened
    from qa_train.report.mel_picture import mel_picture

    try:
        named = None if isinstance(clip, np.ndarray) else Path(clip)
        if named and below is not None and not named.resolve().is_relative_to(below.resolve()):
            return _silent(f"no player: {named.name} is not below {below}")
        wave, cut = shortened(clip)
        source, mel = ogg_uri(opus_bytes(wave)), mel_picture(wave)
    except (BadAudio, OSError, ValueError, RuntimeError) as error:
        return _silent(f"no player: {error}")
    size = len(source) + (len(mel["src"]) if mel else 0)
    if size > room:
        return _silent(f"no player: the page embeds at most {MAX_MIB:g} MiB of clips")
    return {"src": source, "why": "", "mel": mel, "cut": f"{MAX_SECONDS:.0f}" if cut else ""}, size


def _silent(why: str) -> tuple[dict[str, Any], int]:
    return {"src": "", "why": why}, 0


def _logged(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file()


def _row(metric: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Any]:
    return {
        "name": metric["name"],
        "unit": f"{metric['unit']}, {direction(metric)}",
        "note": metric.get("note"),
        "n": metric["n"],
        "cells": [
            {"text": format_value(metric, stage, interval=False), "interval": format_interval(metric, stage)}
            for stage in stages
        ],
        "target": format_target(metric),
        "verdict": verdict(metric),
    }


def headline(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(Figure, what it is) of targets, time and items: what a reader looks for first."""
    states = [verdict(metric).state for metric in results["metrics"]]
    compared = len(states) - states.count("none")
    tiles = []
    if compared:
        unknown = states.count("unmeasured")
        words = "targets met" + (f", {unknown} not measured" if unknown else "")
        tiles.append((f"{states.count('met')} of {compared}", words))
    if results.get("seconds"):
        words = "so far" if results.get("progress") else "from start to end"
        tiles.append((duration(sum(results["seconds"].values())), words))
    if results["metrics"]:
        tiles.append((f"{sum(metric['n'] for metric in results['metrics']):,}", "held-out items scored"))
    return tiles


def _progress(progress: Mapping[str, Any] | None) -> dict[str, Any] | None:
    left = (progress or {}).get("left_s")
    return {"next": None, "now": None, **progress, "left": about(left) if left else None} if progress else None


def _times(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    total, longest = sum(seconds.values()) or 1.0, max(seconds.values(), default=0.0) or 1.0
    return [
        {
            "name": name,
            "percent": round(100 * took / longest, 1),
            "text": f"{duration(took)} · {100 * took / total:.0f} %",
        }
        for name, took in seconds.items()
    ]
