"""Benchmarks that a judge scores: AIR-Bench Chat in both orders, VoiceBench's open and reference-based questions.

Unrated items are reported: an item with an unreadable judge line is not in the mean, and counts as 0 in the additional
"strict" number. The judge's reply to each item is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.eval.benchmarks.airbench import CATEGORIES, honest_pair, official_chat
from qa_train.eval.scores.prediction import answer_in, classes_of
from qa_train.eval.scores.task_metrics import Statistics, bootstrap_interval
from qa_train.llm.judge import Judge, Verdict

Row = dict[str, Any]

# The prompts letter for letter: AIR-Bench's (score_chat.py) and VoiceBench's (api_judge.py; its system message, that
# of any helpful assistant, is not sent).
PROMPTS = Path(__file__).with_name("judge_prompts")
# Fields of a row that a judge sees, besides its prediction.
NEEDED = {
    "airbench_chat": ("question", "meta_info", "task_name", "gt"),
    "voicebench_open": ("question",),
    "voicebench_qa": ("question", "gt"),
}
# The judge's description in a result: scores are comparable only if all of it is equal.
JUDGE_FACTS = ("judge", "judge_temperature", "judge_max_tokens", "judge_prompt_sha256")
# Parts of the judges' prompts: an answer that holds one may be read as an instruction.
MARKS = ("[The Start of Assistant", "[The End of Assistant", "[System]", "### [Response]", "### Candidate answer")


@dataclass(frozen=True)
class Judgement:
    """What became of one item."""

    # Mean of the orders that could be read; None: none could.
    score: float | None
    # The same with unread orders as 0.
    strict: float
    # The judge's replies, by order, for a reader.
    said: tuple[str, ...]
    # How many of its lines could not be read, or never came.
    unread: int


def prompts_of(metric: str, rows: Sequence[Row]) -> list[str]:
    """All prompts that scoring needs, in a fixed order (AIR-Bench: reference first, then answer first, per item).

    Raises:
        ValueError: a row without a field that the judge is shown.
    """
    for row in rows:
        missing = [name for name in NEEDED[metric] if not row.get(name)]
        if missing:
            raise ValueError(f"item {row['id']}: the judge of {metric} needs {' and '.join(missing)} in the row")
    # Fields are put in once: an answer that spells a placeholder stays text.
    asked = _template(metric).format
    if metric != "airbench_chat":
        return [asked(question=r["question"], response=answer_in(r), reference=_one_text(r["gt"])) for r in rows]
    pairs = [(row, row["gt"], answer_in(row)) for row in rows]
    return [
        asked(meta_info=row["meta_info"], question=row["question"], first=first, second=second)
        for row, gt, said in pairs
        for first, second in ((gt, said), (said, gt))
    ]


@cache
def _template(metric: str) -> str:
    return (PROMPTS / f"{metric}.txt").read_text(encoding="utf-8").removesuffix("\n")


def judged_result(
    metric: str, rows: Sequence[Row], judge: Judge, reference: Sequence[Row] | None = None
) -> tuple[dict[str, Any], list[Judgement]]:
    """The score of one benchmark by a judge, and its items; ``reference``: another system's rows, rated for comparison.

    Raises:
        ValueError: a reference system with other items; no line that could be read; the judge's own refusals to start
            (``Judge.ask``).
    """
    verdicts = judge.ask(prompts_of(metric, rows))
    items = judgements(metric, rows, verdicts)
    result = _result(metric, rows, items) | _counts(rows, verdicts, items)
    if metric == "airbench_chat":
        result |= _airbench_facts(rows, verdicts)
    result |= judge.facts(_template(metric))
    if reference is not None:
        if _questions(metric, reference) != _questions(metric, rows):
            raise ValueError("judge.reference holds other items than the predictions: evaluate it on the same data")
        other = _result(metric, reference, judgements(metric, reference, judge.ask(prompts_of(metric, reference))))
        result["reference_system"] = {
            "value": other["value"],
            "difference": round(result["value"] - other["value"], 4),
        }
    return result, items


def _one_text(gt: str | Sequence[str]) -> str:
    return gt if isinstance(gt, str) else " or ".join(gt)


def _questions(metric: str, rows: Sequence[Row]) -> dict[str, list[Any]]:
    """What the judge sees of each item besides the answer: ids may be those of another data set."""
    return {str(row["id"]): [row.get(name) for name in NEEDED[metric]] for row in rows}


def judgements(metric: str, rows: Sequence[Row], verdicts: Sequence[Verdict]) -> list[Judgement]:
    """One per row, from the verdicts on ``prompts_of`` it. A missing answer gets the lowest mark."""
    if metric == "airbench_chat":
        found = [_both_orders(*pair) for pair in zip(verdicts[0::2], verdicts[1::2], strict=True)]
    else:
        found = [_rated(metric, verdict) for verdict in verdicts]
    lowest = 0.0 if metric == "voicebench_qa" else 1.0
    none = Judgement(lowest, lowest, ("no answer: the lowest mark",), 0)
    return [one if _answered(row) else none for row, one in zip(rows, found, strict=True)]


def _answered(row: Row) -> bool:
    return bool(answer_in(row).strip())


def _rated(metric: str, verdict: Verdict) -> Judgement:
    score = None if verdict.error is not None or verdict.cut else _READ[metric](verdict.text)
    said = _said(verdict) if score is None else verdict.text.strip()
    return Judgement(score, score or 0.0, (said,), int(score is None))


def _both_orders(first: Verdict, second: Verdict) -> Judgement:
    """Reference first, then answer first."""
    a, b = (_pair(v) for v in (first, second))
    scores = [s for s in (a[1] if a else None, b[0] if b else None) if s is not None]
    said = (
        "reference first: " + (f"reference {a[0]}, answer {a[1]}" if a else _said(first)),
        "answer first: " + (f"answer {b[0]}, reference {b[1]}" if b else _said(second)),
    )
    return Judgement(float(np.mean(scores)) if scores else None, sum(scores) / 2, said, 2 - len(scores))


def _pair(verdict: Verdict) -> tuple[int, int] | None:
    return None if verdict.error is not None or verdict.cut else honest_pair(verdict.text)


def _said(verdict: Verdict) -> str:
    """Of a verdict that could not be read."""
    if verdict.error is not None:
        return f"no answer ({verdict.error})"
    return f"unread: {verdict.text.strip()!r}" + (", cut at judge.max_tokens" if verdict.cut else "")


def _result(metric: str, rows: Sequence[Row], items: Sequence[Judgement]) -> dict[str, Any]:
    if all(item.score is None for item in items):
        raise ValueError(f"no line of the judge could be read; of the first item: {'; '.join(items[0].said)}")
    result = _means(metric, rows, items)
    result["unit"] = {"airbench_chat": "1-10", "voicebench_open": "1-5", "voicebench_qa": "percent"}[metric]
    if metric != "airbench_chat":
        return result
    groups = _categories(rows, items)
    return result | {"groups": groups, "categories_missing": [name for name in _GROUPS if name not in groups]}


def _means(metric: str, rows: Sequence[Row], items: Sequence[Judgement]) -> dict[str, Any]:
    """``value`` of the rated items (some are) with its interval, and ``strict`` of all."""
    read = [i for i, item in enumerate(items) if item.score is not None]
    statistics, value = judged_statistics(metric, [rows[i] for i in read], [items[i].score or 0.0 for i in read])
    strict, of_all = judged_statistics(metric, rows, [item.strict for item in items])
    low, high = bootstrap_interval(statistics, value)
    return {
        "value": round(float(value(statistics.sum(0, keepdims=True))[0]), 4),
        "ci_low": round(low, 3),
        "ci_high": round(high, 3),
        "strict": round(float(of_all(strict.sum(0, keepdims=True))[0]), 4),
    }


def judged_statistics(metric: str, rows: Sequence[Row], scores: Sequence[float]) -> Statistics:
    """Per-item rows and the function from their sums to the benchmark's number, as ``scores.item_statistics`` gives.

    The mean; of AIR-Bench Chat the mean of the categories' means, mixed being that of its two.
    """
    if metric != "airbench_chat":
        plain = np.array([(score, 1.0) for score in scores])
        return plain, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1)
    table = np.zeros((len(rows), len(_GROUPS), 2))
    for line, row, score in zip(table, rows, scores, strict=True):
        line[_GROUPS.index(CATEGORIES[row["task_name"]])] = score, 1.0
    return table.reshape(len(rows), -1), _mean_of_categories


def _mean_of_categories(sums: np.ndarray) -> np.ndarray:
    """[r, 2 G] sums and counts of the groups -> [r]; a category without an item is skipped."""
    parts = sums.reshape(len(sums), len(_GROUPS), 2)
    # nan: without an item.
    means = np.divide(parts[:, :, 0], parts[:, :, 1], out=np.full(parts.shape[:2], np.nan), where=parts[:, :, 1] > 0)
    mixed = np.array([name in _MIXED for name in _GROUPS])
    return _nanmean(np.column_stack([means[:, ~mixed], _nanmean(means[:, mixed])]))


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is not nan; nan where nothing is (np.nanmean warns then)."""
    there = ~np.isnan(values)
    count = there.sum(1)
    return np.where(count > 0, np.where(there, values, 0.0).sum(1) / np.maximum(count, 1), np.nan)


def _categories(rows: Sequence[Row], items: Sequence[Judgement]) -> dict[str, dict[str, Any]]:
    """Per category: value with its interval, strict value, n; "mixed" is the mean of its two."""
    of_row = [CATEGORIES[row["task_name"]] for row in rows]
    table: dict[str, dict[str, Any]] = {}
    for name, members in {**{group: (group,) for group in _GROUPS}, "mixed": _MIXED}.items():
        picks = [i for i, group in enumerate(of_row) if group in members]
        if any(items[i].score is not None for i in picks):
            found = _means("airbench_chat", [rows[i] for i in picks], [items[i] for i in picks])
            table[name] = found | {"n": len(picks)}
    return table


def judged_breakdown(
    rows: Sequence[Row], items: Sequence[Judgement], key: Callable[[Row], Any]
) -> dict[str, dict[str, Any]]:
    """The plain mean of every class of items with its interval: {class: {value, ci_low, ci_high, n}}.

    Items that the judge did not rate count in ``n`` and not in the mean, as in the whole.
    """
    table: dict[str, dict[str, Any]] = {}
    for name, members in classes_of(rows, key).items():
        scores = np.array([(items[i].score, 1.0) for i in members if items[i].score is not None])
        table[name] = {"value": None, "n": len(members)}
        if len(scores):
            low, high = bootstrap_interval(scores, lambda sums: sums[:, 0] / sums[:, 1])
            table[name] |= {"value": round(float(scores[:, 0].mean()), 4)}
            table[name] |= {"ci_low": round(low, 3), "ci_high": round(high, 3)}
    return table


def _counts(rows: Sequence[Row], verdicts: Sequence[Verdict], items: Sequence[Judgement]) -> dict[str, int]:
    return {
        "n": len(rows),
        "empty": sum(not row.get("error") and not answer_in(row).strip() for row in rows),
        "failed": sum(bool(row.get("error")) for row in rows),
        "truncated": sum(bool(row.get("truncated")) for row in rows),
        "judge_failed": sum(v.error is not None for v in verdicts),
        "judge_refused": sum(v.refused for v in verdicts),
        "judge_unread": sum(item.unread for item in items),
        "speaks_to_judge": sum(any(mark in answer_in(row) for mark in MARKS) for row in rows),
    }


def _airbench_facts(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Agreement of the orders, win rate against the reference, and what cal_score.py makes of the same lines."""
    # An item without an answer is never won; the published scripts do not send it to the judge.
    asked = [i for i, row in enumerate(rows) if _answered(row)]
    some = [rows[i] for i in asked]
    first, second = ([verdicts[2 * i + order] for i in asked] for order in (0, 1))
    read = [(a, b) for x, y in zip(first, second, strict=True) if (a := _pair(x)) and (b := _pair(y))]
    agreed = sum(int(np.sign(a[1] - a[0]) == np.sign(b[0] - b[1])) for a, b in read)
    won = sum(a[1] + b[0] > a[0] + b[1] for a, b in read)
    rated = len(read) + len(rows) - len(asked)
    return {
        "order_agreement_percent": round(100 * agreed / len(read), 2) if read else None,
        "win_rate_percent": round(100 * won / rated, 2) if rated else None,
        "official": {
            "reference_first": official_chat(some, [v.text for v in first], swapped=False),
            "answer_first": official_chat(some, [v.text for v in second], swapped=True),
            "what": "cal_score.py on each order: its counters and its reading of lines, without unanswered items",
        },
    }


def _one_to_five(text: str) -> float | None:
    found = re.findall(r"-?\d+(?:\.\d+)?", text)
    return float(found[0]) if len(found) == 1 and 1 <= float(found[0]) <= 5 else None


def _yes(text: str) -> float | None:
    words = re.findall(r"[a-z]+", text.lower())
    return {"yes": 100.0, "no": 0.0}.get(words[0]) if len(words) == 1 else None


_READ: Mapping[str, Callable[[str], float | None]] = {"voicebench_open": _one_to_five, "voicebench_qa": _yes}
_GROUPS = tuple(dict.fromkeys(CATEGORIES.values()))
_MIXED = ("speech_and_sound", "speech_and_music")
