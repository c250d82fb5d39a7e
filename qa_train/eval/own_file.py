"""A user's file of questions as benchmarks: one for each source, metric and format that occur in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from qa_train.data.text.json_rows import objects
from qa_train.eval.benchmarks.benchmark import Benchmark
from qa_train.eval.questions import Question, part_text, read_questions
from qa_train.eval.result_folder import PREDICTIONS
from qa_train.eval.scores.prediction import read_predictions
from qa_train.utils.atomic import write_json_lines


@dataclass(frozen=True)
class Asked:
    """A benchmark with its items: the rows to score, and the questions to ask."""

    benchmark: Benchmark
    rows: list[dict[str, Any]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


def read_own_file(path: Path, max_new_tokens: int) -> list[Asked]:
    """The questions of a file (format: ``qa_train.eval.questions``), in its order within each benchmark.

    A source is a benchmark of that name. If it has several metrics, languages of BLEU or formats, each is one of its
    own, with these in its name. An item's id is its ``id`` or the number of its line; the second of one
    name is ``ID#2``.

    Raises:
        ValueError: a line that cannot be asked or scored, with its number.
    """
    found: dict[tuple[str, ...], list[tuple[dict[str, Any], Question]]] = {}
    questions = read_questions(path)
    for (number, _, row), question in zip(objects(path), questions, strict=True):
        # BLEU tokenises the corpus by language; the other metrics take it item by item.
        language = (question.language or "") if question.metric == "bleu" else ""
        key: tuple[str, ...] = (question.source, question.metric, language, question.sample.template)
        found.setdefault(key, []).append((_row(row, number, question), question))
    names = _names(list(found))
    asked = []
    for key, items in found.items():
        source, metric, language, template = key
        rows = [row for row, _ in items]
        seen: set[str] = set()
        for row in rows:
            name = row["id"]
            row["id"] = next(each for n in count(1) if (each := name if n == 1 else f"{name}#{n}") not in seen)
            seen.add(row["id"])
        benchmark = Benchmark(
            names[key],
            metric,
            "jsonl",
            str(path.resolve()),
            title=names[key],
            suite=path.stem,
            source=source,
            template=template,
            language=language or None,
            max_new_tokens=max_new_tokens,
            group_by="group" if any(row.get("group") is not None for row in rows) else None,
        )
        asked.append(Asked(benchmark, rows, [question for _, question in items]))
    return asked


def _row(row: dict[str, Any], number: int, question: Question) -> dict[str, Any]:
    gt = list(question.references) if len(question.references) > 1 else "".join(question.references)
    clips = [str(clip) for clip in question.clips]
    prompt = part_text(question.sample.messages[-1])
    shown = {"audio": clips[0] if clips else "", "prompt": prompt, "gt": gt, "choices": list(question.choices)}
    return {**row, "id": str(row.get("id", number)), **shown}


def _names(keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Names of folders: the source, and what tells it apart from others of that source."""
    names: dict[tuple[str, ...], str] = {}
    for key in keys:
        alike = [other for other in keys if other[0] == key[0]]
        parts = [key[0], *(key[i] or "none" for i in range(1, 4) if len({other[i] for other in alike}) > 1)]
        name = stem = re.sub(r"[^\w.-]+", "_", "-".join(parts)).strip("._") or "unnamed"
        for number in range(2, 2 + len(keys)):
            if name.casefold() not in {taken.casefold() for taken in names.values()}:
                break
            name = f"{stem}_{number}"
        names[key] = name
    return names


def write_own_answers(path: Path, asked: Sequence[Asked], out: Path) -> None:
    """``out/predictions.jsonl``: the lines of the file, in its order, with the model's answer to each."""
    said: dict[tuple[str, str], dict[str, Any]] = {}
    places: dict[int, tuple[str, str]] = {}
    for one in asked:
        for line in read_predictions(out / one.benchmark.name / PREDICTIONS):
            said[one.benchmark.name, line["id"]] = line
        for row, question in zip(one.rows, one.questions, strict=True):
            places[int(question.sample.key)] = (one.benchmark.name, row["id"])
    lines = []
    for number, _, row in objects(path):
        answer = said[places[number]]
        lines.append(row | {name: answer[name] for name in ("prediction", "truncated", "error") if name in answer})
    write_json_lines(out / PREDICTIONS, lines)
