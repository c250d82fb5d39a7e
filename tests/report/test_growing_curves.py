"""Curves that are made on as a run grows are those that its rows give when they are all looked at again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from qa_train.dashboard.live import Live
from qa_train.dashboard.overview import board
from qa_train.report import curves as module
from qa_train.report.curves import LAST_STEPS, board_of
from qa_train.report.panels import DERIVED, panel_of
from qa_train.report.runs import Run, find_runs, is_number, read_run

NAMES = ("loss", "loss/a", "tokens", "seconds", "audio_s", "tokens_per_s", "skipped_samples", "grad_norm", "zero")


def plain_values(run: Run, key: str) -> list[float | None]:
    derive = DERIVED.get(key, lambda run, row: row.get(key))
    return [float(value) if is_number(value := derive(run, row)) else None for row in run.rows]


def plain_buckets(run: Run) -> list[list[int]]:
    size = -(-len(run.rows) // module.MAX_POINTS)
    found: list[list[int]] = [[]]
    for i, row in enumerate(run.rows):
        found[-1].append(i)
        if len(found[-1]) >= size or "evaluation" in row:
            found.append([])
    return [bucket for bucket in found if bucket]


def six(value: float) -> float:
    return float(f"{value:.6g}")


def plainly(run: Run) -> dict[str, Any]:
    """The run's part of a board, from all its rows, one metric after the other."""
    buckets = plain_buckets(run)
    x = {"step": [run.rows[bucket[-1]]["step"] for bucket in buckets]}
    for axis, key in (("tokens", "tokens"), ("audio", "audio_s"), ("time", "seconds")):
        values = [value or 0.0 for value in plain_values(run, key)]
        if sum(values) > 0:
            x[axis] = [six(sum(values[: bucket[-1] + 1])) for bucket in buckets]
    curves = {}
    for key in {*DERIVED, *(key for row in run.rows for key in row)}:
        panel, values = panel_of(key), plain_values(run, key)
        there = [value for value in values if value is not None]
        if panel is None or len(there) < 2 or not any(there):
            continue
        points = [[value for i in bucket if (value := values[i]) is not None] for bucket in buckets]
        y = [six(found[-1] if panel.steady else sum(found) / len(found)) for found in points if found]
        at = [i for i, found in enumerate(points) if found]
        curves[key] = {"y": y} | ({} if len(y) == len(buckets) else {"at": at})
    return {"x": x, "curves": curves, "per_point": max(map(len, buckets), default=1)}


def row_of(step: int, draw: random.Random) -> dict[str, Any]:
    row: dict[str, Any] = {name: draw.random() for name in NAMES if draw.random() < 0.9} | {"step": step, "zero": 0}
    if draw.random() < 0.1:
        row |= {"loss": None, "grad_norm": float("nan"), "text": "x"}
    return row


def grown(path: Path, draw: random.Random) -> None:
    """More rows: further ones, steps that are trained again, scores, half a line, or an end that is cut off."""
    lines = path.read_text().split("\n") if path.is_file() else []
    last = len(lines)
    kind = draw.choice(("on", "on", "on", "scores", "again", "cut", "whole"))
    if kind == "cut":
        path.write_text("\n".join(lines[: last // 2]) + "\n")
    elif kind == "scores" and lines:
        step = json.loads(lines[0] or '{"step": 0}').get("step", 0) + draw.randrange(last)
        said = {"asr": {"metric": "wer", "n": draw.randrange(9)}}
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "eval/asr": draw.random(), "evaluation": said}) + "\n")
    else:
        begin = draw.randrange(last + 1) if kind == "again" else last
        rows = [json.dumps(row_of(step, draw)) + "\n" for step in range(begin, begin + draw.randrange(1, 30))]
        with path.open("a") as file:
            file.write("".join(rows) + ('{"step": 1, "lo' if kind == "whole" else ""))


def joined(run: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """What a page has after an answer, as ``joined`` of dashboard.js has it."""
    kept = run.pop("kept", 0)
    if not kept:
        return run
    assert before is not None
    for axis, values in run["x"].items():
        run["x"][axis] = before["x"][axis][:kept] + values
    for key, curve in run["curves"].items():
        old = before["curves"][key]
        stay = [at for at in old.get("at", range(len(old["y"]))) if at < kept]
        at = stay + curve["at"]
        run["curves"][key] = {"y": old["y"][: len(stay)] + curve["y"]}
        if len(at) < len(run["x"]["step"]):
            run["curves"][key]["at"] = at
    return run


@pytest.mark.parametrize("seed", range(6))
def test_growing_curves_are_those_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    # So few points that the sizes of buckets change on the way.
    monkeypatch.setattr(module, "MAX_POINTS", 20)
    draw = random.Random(seed)
    roots = [tmp_path / "p", tmp_path / "q"]
    # Two of one name: the second is called a (2), and which that is changes with their stages.
    folders = [roots[0] / "a", roots[0] / "b", roots[1] / "a"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("stage: sft\ndata: {tokens_per_batch: 3}\ntrainer: {batches_per_step: 2}\n")
        grown(folder / "metrics.jsonl", draw)
    live, had, version = Live(roots, "t"), {}, ""
    parts = 0
    for _ in range(40):
        grown(draw.choice(folders) / "metrics.jsonl", draw)
        if draw.random() < 0.1:
            (folders[0] / "config.yaml").write_text(f"data: {{tokens_per_batch: {draw.randrange(1, 9)}}}\n")
        answer = live.data(version)
        if answer is None:
            continue
        shown = json.loads(answer)
        version = shown["version"]
        parts += sum(bool(run.get("kept")) for run in shown["runs"])
        had = {run["name"]: joined(run, had.get(run["name"])) for run in shown["runs"]}
        for fresh in find_runs(roots):
            run, plain = had[fresh.name], plainly(fresh)
            assert {part: run[part] for part in plain} == plain
            (whole,) = json.loads(json.dumps(board([fresh])["runs"]))
            assert run == whole
            losses = [value for value in plain_values(fresh, "loss") if value is not None][-LAST_STEPS:]
            assert run["loss"] == (sum(losses) / len(losses) if losses else None)
            speeds = [value for value in plain_values(fresh, "tokens_per_s") if value is not None]
            assert run["tokens_per_s"] == (median(speeds) if speeds else None)
            assert run["time"] == sum(value or 0.0 for value in plain_values(fresh, "seconds"))
            assert run["trained"] == sum(row["step"] > 0 for row in fresh.rows)
    assert parts > 20


def test_a_step_more_makes_one_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    rows = [json.dumps(row_of(step, draw)) + "\n" for step in range(3000)]
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    path.write_text("".join(rows[:2500]))
    live = Live([tmp_path], "t")
    version = json.loads(live.data("") or b"")["version"]
    added: list[int] = []
    add = module.Points.add
    monkeypatch.setattr(
        module.Points, "add", lambda self, run, rows: (added.append(len(rows)), add(self, run, rows))[1]
    )
    with path.open("a") as file:
        file.write(rows[2500])
    answer = live.data(version) or b""
    assert sum(added) <= 6
    assert len(answer) < 0.05 * len(live.data("") or b"")
    (run,) = json.loads(answer)["runs"]
    assert len(run["x"]["step"]) <= 2
    assert board_of([read_run(path.parent, "run")])["runs"][0]["x"]["step"][-1] == 2500
