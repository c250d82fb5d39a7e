"""AIR-Bench: results as its own scripts compute them, and corrected ones; MMSU's own number, read in the same way.

Quirks of the published scripts (OFA-Sys/AIR-Bench), kept only in the "official" numbers:

- Foundation: an answer's letter is its first character if that is A to D, else the last but one; an answer without one
is not in the denominator.
- Chat: a judge line counts only if it is two integers of at most 10 parted by exactly one space, all others are
skipped; scores below 1 pass; after the swap the printed names of the two means are
  exchanged. Items without an answer are never sent to the judge. Half of the calls had temperature 2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from qa_train.eval.scores.labels import LETTERS, airbench_letter, gold_option
from qa_train.eval.scores.prediction import answer_in, to_prediction
from qa_train.eval.scores.task_metrics import Statistics, bootstrap_interval, item_statistics, wilson_interval

CATEGORIES = {
    "speech_QA": "speech",
    "speech_dialogue_QA": "speech",
    "sound_QA": "sound",
    "sound_generation_QA": "sound",
    "music_QA": "music",
    "music_generation_analysis_QA": "music",
    "speech_and_sound_QA": "speech_and_sound",
    "speech_and_music_QA": "speech_and_music",
}
_SCORE = re.compile(r"(?<![\d.-])(?:10|[1-9])(?![\d.]*\d)")
# "8/10" and "8 out of 10" are one score each, "Assistant 1" is none.
_OUT_OF_TEN = re.compile(r"(?:/|\bout of\b|\bof\b)\s*10\b", re.I)
_ASSISTANT = re.compile(r"\bassistant\s*([12])(?:'?s)?\b", re.I)


def official_pair(line: str) -> tuple[int, int] | None:
    """The two scores as cal_score.py reads a judge line; None where it counts a failure."""
    parts = line.strip().replace("\n", "").split(" ")
    if len(parts) != 2:
        return None
    try:
        first, second = int(parts[0]), int(parts[1])
    except ValueError:
        return None
    return (first, second) if first <= 10 and second <= 10 else None


def honest_pair(line: str) -> tuple[int, int] | None:
    """The two scores from 1 to 10 in a judge's answer, if it holds exactly two numbers of that kind.

    Names of the assistants are no numbers and must come in their order; what a score is out of is none.
    """
    if _ASSISTANT.findall(line) not in ([], ["1", "2"]):
        return None
    line = _OUT_OF_TEN.sub(" ", _ASSISTANT.sub(" ", line))
    found = [int(number) for number in _SCORE.findall(line)]
    return (found[0], found[1]) if len(found) == 2 and len(re.findall(r"\d+", line)) == 2 else None


def official_chat(rows: Sequence[dict[str, Any]], lines: Sequence[str], *, swapped: bool) -> dict[str, Any]:
    """cal_score.py over one order: {group: [n, win rate, first mean, second mean]}, and its two counters.

    Its ``success_num`` also counts lines that failed after the split: kept.
    """
    sums: dict[str, list[int]] = {name: [0, 0, 0, 0] for name in dict.fromkeys(CATEGORIES.values())}
    failed = split = 0
    for row, line in zip(rows, lines, strict=True):
        split += len(line.strip().replace("\n", "").split(" ")) == 2
        pair = official_pair(line)
        if pair is None:
            failed += 1
            continue
        first, second = pair
        won = first > second if swapped else second > first
        group = sums[CATEGORIES[row["task_name"]]]
        sums[CATEGORIES[row["task_name"]]] = [group[0] + 1, group[1] + won, group[2] + first, group[3] + second]
    groups = {name: [n, won / n, first / n, second / n] for name, (n, won, first, second) in sums.items() if n}
    return {"groups": groups, "fail_num": failed, "success_num": split}


def _letter_right(row: dict[str, Any]) -> bool | None:
    """Whether the letter that the scripts read is that of the right option; None where they read none."""
    letter = airbench_letter(answer_in(row))
    gold = gold_option(row["choices"], row["gt"])
    return None if letter is None else gold is not None and letter == LETTERS[gold]


def official_mmsu(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """mmsu_evaluation.py: the share of right letters in percent.

    For an empty answer the script takes the letter of the item before it; here such an item counts as unread.
    """
    read = [right for row in rows if (right := _letter_right(row)) is not None]
    return {
        "value": round(100.0 * sum(read) / len(read), 2) if read else None,
        "left_out": len(rows) - len(read),
        "what": "mmsu_evaluation.py: AIR-Bench's reading of letters; unread answers are not in the denominator",
    }


def official_foundation(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """score_foundation.py: {"tasks": {task_dataset: [items read, right]}, "fail_num"}."""
    tasks: dict[str, list[int]] = {}
    failed = 0
    for row in rows:
        right = _letter_right(row)
        counts = tasks.setdefault(f"{row['task_name']}_{row['dataset_name']}", [0, 0])
        if right is None:
            failed += 1
            continue
        counts[0] += 1
        counts[1] += right
    return {"tasks": tasks, "fail_num": failed}


def task_statistics(metric: str, rows: Sequence[dict[str, Any]]) -> Statistics:
    """Per-item rows [n, 2 T] of (right, 1) in the item's task, and the function from sums to the mean over tasks.

    A task without drawn items is not in that mean. ``metric`` is a share of right answers.
    """
    right, _ = item_statistics(metric, [to_prediction(row) for row in rows])
    names = sorted({row["task_name"] for row in rows})
    table = np.zeros((len(rows), len(names), 2), dtype=np.int64)
    for i, row in enumerate(rows):
        table[i, names.index(row["task_name"])] = right[i, 0], 1

    def mean(sums: np.ndarray) -> np.ndarray:
        parts = sums.reshape(len(sums), len(names), 2)
        shares = 100.0 * parts[:, :, 0] / np.maximum(parts[:, :, 1], 1)
        return np.asarray(shares.sum(1) / np.maximum((parts[:, :, 1] > 0).sum(1), 1))

    return table.reshape(len(rows), -1), mean


def mean_over_tasks(rows: Sequence[dict[str, Any]], metric: str = "choice") -> dict[str, Any]:
    """Foundation, honest: mean over tasks of the share of right options (a task's data sets together).

    Returns value, its bootstrap interval, and per task {value, ci_low, ci_high, n}; and the official mean.
    """
    flat, mean = task_statistics(metric, rows)
    names = sorted({row["task_name"] for row in rows})
    totals = flat.sum(0).reshape(len(names), 2)
    low, high = bootstrap_interval(flat, mean)
    official = official_foundation(rows)
    read: dict[str, list[int]] = {}
    for row in rows:
        read.setdefault(row["task_name"], [0, 0])
    for folder, (n, good) in official["tasks"].items():
        task = next(row["task_name"] for row in rows if f"{row['task_name']}_{row['dataset_name']}" == folder)
        read[task] = [read[task][0] + n, read[task][1] + good]
    shares = [100.0 * good / n for n, good in read.values() if n]
    return {
        "value": float(mean(flat.sum(0, keepdims=True))[0]),
        "ci_low": low,
        "ci_high": high,
        "tasks": {
            name: {"value": round(100.0 * good / n, 2), **_wilson(int(good), int(n)), "n": int(n)}
            for name, (good, n) in zip(names, totals.tolist(), strict=True)
        },
        "official": {
            "value": round(sum(shares) / len(shares), 2) if shares else None,
            "left_out": official["fail_num"],
            "what": "score_foundation.py: its reading of letters; unread answers are not in the denominator",
        },
    }


def _wilson(right: int, n: int) -> dict[str, float]:
    low, high = wilson_interval(right, n)
    return {"ci_low": round(low, 2), "ci_high": round(high, 2)}
