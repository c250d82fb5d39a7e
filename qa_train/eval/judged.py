"""Benchmarks that a judge scores: AIR-Bench Chat in both orders, VoiceBench's open and reference-based questions.

Everything the judge did not rate counts: an item whose judge line cannot be read is reported, left out
of the mean in the "official" number and rated 0 in the "strict" one beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qa_train.eval.airbench import CATEGORIES, JUDGE_PROMPT, honest_pair, judge_prompts, official_chat
from qa_train.eval.judge import Judge, Verdict
from qa_train.eval.scores import bootstrap_interval

Row = dict[str, Any]

# VoiceBench's own prompts (MatthewCYM/VoiceBench api_judge.py, as quoted by lmms-eval 0.7.3).
OPEN_PROMPT = """I need your help to evaluate the performance of several models in the speech interaction scenario. The models will receive a speech input from the user, which they need to understand and respond to with a speech output.
Your task is to rate the model's responses based on the provided user input transcription [Instruction] and the model's output transcription [Response].

Please evaluate the response on a scale of 1 to 5:
1 point: The response is largely irrelevant, incorrect, or fails to address the user's query. It may be off-topic or provide incorrect information.
2 points: The response is somewhat relevant but lacks accuracy or completeness. It may only partially answer the user's question or include extraneous information.
3 points: The response is relevant and mostly accurate, but it may lack conciseness or include unnecessary details that don't contribute to the main point.
4 points: The response is relevant, accurate, and concise, providing a clear answer to the user's question without unnecessary elaboration.
5 points: The response is exceptionally relevant, accurate, and to the point. It directly addresses the user's query in a highly effective and efficient manner, providing exactly the information needed.

Below are the transcription of user's instruction and models' response:
### [Instruction]: {question}
### [Response]: {response}

After evaluating, please output the score only without anything else.
You don't need to provide any explanations."""  # noqa: E501
QA_PROMPT = """### Question
{question}

### Reference answer
{reference}

### Candidate answer
{response}

Is the candidate answer correct based on the question and reference answer?
Please only output a single "Yes" or "No". Do not output anything else."""


# Fields of a row, beside prediction and gt, that a judge is shown.
_NEEDED = {
    "airbench_chat": ("question", "meta_info", "task_name"),
    "voicebench_open": ("question",),
    "voicebench_qa": ("question",),
}
_TEMPLATES = {"airbench_chat": JUDGE_PROMPT, "voicebench_open": OPEN_PROMPT, "voicebench_qa": QA_PROMPT}


def prompts_of(metric: str, rows: Sequence[Row]) -> list[str]:
    """All prompts that scoring needs, in a fixed order (AIR-Bench: reference first, then answer first, per item).

    Raises:
        ValueError: a row without a field that the judge is shown.
    """
    for row in rows:
        missing = [name for name in _NEEDED[metric] if not row.get(name)]
        if missing:
            raise ValueError(f"item {row['id']}: the judge of {metric} needs {' and '.join(missing)} in the row")
    if metric == "airbench_chat":
        return [prompt for row in rows for prompt in judge_prompts(row)]
    return [
        _TEMPLATES[metric].format(question=row["question"], response=row["prediction"], reference=row["gt"])
        for row in rows
    ]


def judged_result(
    metric: str, rows: Sequence[Row], judge: Judge, reference: Sequence[Row] | None = None
) -> dict[str, Any]:
    """The score of one benchmark by a judge; with ``reference`` (another system's rows) that one's beside it.

    Raises:
        ValueError: a reference system with other items; the judge's own refusals to start (``Judge.ask``).
    """
    result = _SCORERS[metric](rows, judge.ask(prompts_of(metric, rows)))
    result |= judge.facts(_TEMPLATES[metric])
    if reference is not None:
        if {row["id"] for row in reference} != {row["id"] for row in rows}:
            raise ValueError("judge.reference holds other items than the predictions: evaluate it on the same data")
        other = _SCORERS[metric](reference, judge.ask(prompts_of(metric, reference)))
        result["reference_system"] = {
            "value": other["value"],
            "difference": round(result["value"] - other["value"], 4),
        }
    return result


def _counts(rows: Sequence[Row], verdicts: Sequence[Verdict], unread: int) -> dict[str, int]:
    return {
        "n": len(rows),
        "empty": sum(not row.get("error") and not row["prediction"].strip() for row in rows),
        "failed": sum(bool(row.get("error")) for row in rows),
        "truncated": sum(bool(row.get("truncated")) for row in rows),
        "judge_failed": sum(v.error is not None for v in verdicts),
        "judge_refused": sum(v.refused for v in verdicts),
        "judge_unread": unread,
    }


def _airbench(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Model's mean of both orders per category; mixed = mean of its two; average of the four."""
    lines = [v.text for v in verdicts]
    first, second = lines[0::2], lines[1::2]
    pairs = [(honest_pair(a), honest_pair(b)) for a, b in zip(first, second, strict=True)]
    unread = sum(pair is None for both in pairs for pair in both)
    groups: dict[str, list[tuple[float, float]]] = {name: [] for name in dict.fromkeys(CATEGORIES.values())}
    agreed = both_read = won = 0
    for row, (a, b) in zip(rows, pairs, strict=True):
        scores = [s for s in (a[1] if a else None, b[0] if b else None) if s is not None]
        # (mean over the orders that were read or nan, mean with unread ones as 0)
        groups[CATEGORIES[row["task_name"]]].append((float(np.mean(scores)) if scores else np.nan, sum(scores) / 2))
        if a and b:
            both_read += 1
            agreed += int(np.sign(a[1] - a[0]) == np.sign(b[0] - b[1]))
            won += int(a[1] + b[0] > a[0] + b[1])
    means = {n: [float(np.nanmean([g[k] for g in v])) for k in (0, 1)] for n, v in groups.items() if _any_read(v)}
    table = {
        name: {"value": round(m[0], 4), "strict": round(m[1], 4), "n": len(groups[name])} for name, m in means.items()
    }
    mixed = [means[n] for n in ("speech_and_sound", "speech_and_music") if n in means]
    if mixed:
        parts = [float(np.mean([m[k] for m in mixed])) for k in (0, 1)]
        table["mixed"] = {
            "value": round(parts[0], 4),
            "strict": round(parts[1], 4),
            "n": sum(len(groups[n]) for n in ("speech_and_sound", "speech_and_music")),
        }
    four = [table[n] for n in ("speech", "sound", "music", "mixed") if n in table]
    if not four:
        raise ValueError("AIR-Bench Chat: no line of the judge could be read; see the cache for what it said")
    return {
        "value": round(float(np.mean([g["value"] for g in four])), 4),
        "strict": round(float(np.mean([g["strict"] for g in four])), 4),
        "unit": "1-10",
        **_interval([v for values in groups.values() for v in values]),
        **_counts(rows, verdicts, unread),
        "groups": table,
        "order_agreement_percent": round(100 * agreed / both_read, 2) if both_read else None,
        "win_rate_percent": round(100 * won / both_read, 2) if both_read else None,
        "official": {
            "reference_first": official_chat(rows, first, swapped=False),
            "answer_first": official_chat(rows, second, swapped=True),
            "what": "cal_score.py on each order, its counters and its reading of lines as published",
        },
    }


def _any_read(values: Sequence[tuple[float, float]]) -> bool:
    return any(not np.isnan(v[0]) for v in values)


def _interval(values: Sequence[tuple[float, float]]) -> dict[str, float]:
    """95 % bootstrap interval of the mean over all items (a guide: the average of categories weighs them equally)."""
    rows = np.array([(v[0], 1.0) for v in values if not np.isnan(v[0])])
    low, high = bootstrap_interval(rows, lambda sums: sums[:, 0] / sums[:, 1])
    return {"ci_low": round(low, 3), "ci_high": round(high, 3)}


def _rated(
    unit: str, read: Callable[[str], float | None]
) -> Callable[[Sequence[Row], Sequence[Verdict]], dict[str, Any]]:
    """A scorer that averages one number per item; unread items count 0 in "strict"."""

    def scorer(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> dict[str, Any]:
        scores = [None if v.error is not None else read(v.text) for v in verdicts]
        given = [s for s in scores if s is not None]
        if not given:
            raise ValueError("no line of the judge could be read; see the cache for what it said")
        return {
            "value": round(sum(given) / len(given), 4),
            "strict": round(sum(given) / len(scores), 4),
            "unit": unit,
            **_interval([(s, s) for s in given]),
            **_counts(rows, verdicts, len(scores) - len(given)),
        }

    return scorer


def _one_to_five(text: str) -> float | None:
    found = re.findall(r"\d+(?:\.\d+)?", text)
    return float(found[0]) if len(found) == 1 and 1 <= float(found[0]) <= 5 else None


def _yes(text: str) -> float | None:
    words = re.findall(r"[a-z]+", text.lower())
    return {"yes": 100.0, "no": 0.0}.get(words[0]) if len(words) == 1 else None


_SCORERS: Mapping[str, Callable[[Sequence[Row], Sequence[Verdict]], dict[str, Any]]] = {
    "airbench_chat": _airbench,
    "voicebench_open": _rated("1-5", _one_to_five),
    "voicebench_qa": _rated("percent", _yes),
}
