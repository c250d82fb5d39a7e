"""Rows of benchmarks and of predictions: one JSON object per item, and what the scores take from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qa_train.eval.scores.prediction import Prediction


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        ValueError: no such file, or a line that is no JSON object, with its number.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}")
    rows = []
    # Not splitlines(): answers may hold other line separators (U+2028) inside their JSON text.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """The rows of a predictions.jsonl.

    Raises:
        ValueError: a row without id, prediction, gt or metric, or an id that occurs twice.
    """
    rows = read_json_lines(path)
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        missing = [name for name in ("id", "prediction", "gt", "metric") if name not in row]
        if missing:
            raise ValueError(f"{path}, row {number}: no {', '.join(missing)}; expected a file written by qa-train eval")
        if str(row["id"]) in seen:
            raise ValueError(f"{path}, row {number}: the id {row['id']!r} occurs twice")
        seen.add(str(row["id"]))
    if not rows:
        raise ValueError(f"{path} holds no predictions")
    return rows


def to_prediction(row: dict[str, Any]) -> Prediction:
    """One row of a predictions.jsonl as what the scores take."""
    gt = row["gt"]
    return Prediction(
        row["prediction"],
        tuple(gt) if isinstance(gt, list) else (gt,),
        row.get("language"),
        tuple(row.get("choices") or ()),
        bool(row.get("truncated")),
        row.get("error"),
    )
