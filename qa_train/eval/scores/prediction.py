"""The input of a score, as an object and as a row of a predictions.jsonl, and the score itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """One answer with its references."""

    text: str
    # Accepted answers; several only for labels ("contains", "accuracy" and "map").
    references: tuple[str, ...]
    language: str | None = None
    # All labels of the same question, in the order of the options.
    choices: tuple[str, ...] = ()
    truncated: bool = False
    # Why there is no answer (unreadable clip, ...); the item is then scored as an empty answer.
    error: str | None = None


class NoReferenceWords(ValueError):
    """Items whose references hold no word, as those of recordings without speech: an error rate has no denominator."""

    def __init__(self, metric: str, items: int, inserted: Sequence[int]) -> None:
        said = sum(count > 0 for count in inserted)
        super().__init__(
            f"{metric}: no reference has any word left after normalisation ({items} items); {said} answers say "
            f"something, {sum(inserted)} words or characters in all. Where speech was recorded, check the gt field of "
            "the data"
        )


@dataclass(frozen=True)
class Score:
    """A score over ``n`` items with a 95 % confidence interval and the counts of odd answers."""

    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    empty: int = 0
    truncated: int = 0
    failed: int = 0
    # Answers in which no label or option of the question was found. They count as wrong.
    unparsed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, numbers rounded to two decimals."""
        return {k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(self).items()}


# What a model that reasons says before its answer.
_THOUGHTS = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


def without_thoughts(text: str) -> str:
    """What is said after thoughts at the start (``<think>...</think>``); thoughts that were cut are what is said."""
    thoughts = _THOUGHTS.match(text)
    return text[thoughts.end() :] if thoughts else text


def answer_of(prediction: Prediction) -> str:
    """The answer to score, without thoughts: empty if it is missing."""
    return "" if prediction.error is not None else without_thoughts(prediction.text)


def answer_in(row: Mapping[str, Any]) -> str:
    """The same of a row of a predictions.jsonl."""
    return "" if row.get("error") else without_thoughts(row["prediction"])


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        ValueError: no such file, or a line that is no JSON object, with its number.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}")
    rows = []
    # Not splitlines(): answers may hold other line separators (U+2028) inside their JSON text.
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
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


def classes_of(rows: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[str, list[int]]:
    """The places of the rows by class, in the classes' natural order ("5-10 s" before "10-20 s").

    A row without a class is "unknown"; {} if none has one.
    """
    classes: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        found = key(row)
        classes.setdefault("unknown" if found is None else str(found), []).append(place)
    return {name: classes[name] for name in sorted(classes, key=_natural)} if set(classes) != {"unknown"} else {}


def _natural(name: str) -> tuple[float, str]:
    head = name.split("-")[0].split(" ")[0]
    return (float(head) if head.isdigit() else float("inf"), name)


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
