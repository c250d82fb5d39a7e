"""Two sets of predictions on the same items: is the difference more than chance?

The interval of the difference is a paired bootstrap over items; the p-value is that of a paired
permutation test (each item's two answers change places at random; Noreen 1989), two-sided. Of judged
benchmarks the judge's scores of the items are compared in the same way, of one judge with one prompt only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.eval.benchmarks.airbench import task_statistics
from qa_train.eval.benchmarks.benchmark import JUDGED
from qa_train.eval.benchmarks.judged import JUDGE_FACTS, judged_statistics
from qa_train.eval.result_folder import JUDGEMENTS, PREDICTIONS, RUN, SCORES, recorded, refuse_changed
from qa_train.eval.scores.prediction import (
    NoReferenceWords,
    Prediction,
    read_json_lines,
    read_predictions,
    to_prediction,
)
from qa_train.eval.scores.task_metrics import RESAMPLES, SHARES, is_metric, item_statistics, lower_is_better
from qa_train.eval.scoring import ASKED
from qa_train.utils.digests import sha256_of_file

SIGNIFICANT = 0.05


def compare_predictions(
    metric: str,
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of both, their difference (second - first) with its 95 % interval, and the p-value.

    The items must be the same in the same order. ``better`` is "first", "second", or None where the
    difference may be chance (p > 0.05).

    Raises:
        ValueError: other items (references differ).
    """
    _same_items(first, second)
    if metric == "cider":
        # Its weights count the items: twice as many would be others.
        (one, value), (other, _) = (item_statistics(metric, side) for side in (first, second))
        sides = one, other
    else:
        # Scored together: classes must be the same on both sides.
        rows, value = item_statistics(metric, [*first, *second])
        sides = rows[: len(first)], rows[len(first) :]
    return _compared(metric, *sides, value, resamples, seed)


def _same_items(first: Sequence[Prediction], second: Sequence[Prediction]) -> None:
    if [p.references for p in first] != [p.references for p in second]:
        raise ValueError(
            f"the two sets do not hold the same items ({len(first)} and {len(second)}): evaluate both on the same data"
        )


def _compared(
    metric: str,
    first: np.ndarray,
    second: np.ndarray,
    value: Callable[[np.ndarray], np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The result of two sides' rows [n, k], whose sums [r, k] ``value`` turns into scores [r]."""
    n = len(first)
    generator = np.random.default_rng(seed)
    drawn, swapped = [], []
    change = second - first
    totals = first.sum(0), second.sum(0)
    for _ in range(resamples):
        picks = generator.integers(0, n, size=n)
        drawn.append((first[picks].sum(0), second[picks].sum(0)))
        moved = change[generator.random(n) < 0.5].sum(0)
        swapped.append((totals[0] + moved, totals[1] - moved))

    def differences(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        return value(np.stack([b for _, b in pairs])) - value(np.stack([a for a, _ in pairs]))

    scores = [float(value(total[None])[0]) for total in totals]
    found = scores[1] - scores[0]
    low, high = np.percentile(differences(drawn), [2.5, 97.5])
    as_large = int((np.abs(differences(swapped)) >= abs(found) - 1e-9).sum())
    p_value = (as_large + 1) / (resamples + 1)
    better = None
    if p_value <= SIGNIFICANT:
        better = "second" if (found < 0) == lower_is_better(metric) else "first"
    return {
        "metric": metric,
        "n": n,
        "first": round(scores[0], 3),
        "second": round(scores[1], 3),
        "difference": round(found, 3),
        "ci_low": round(float(low), 3),
        "ci_high": round(float(high), 3),
        "p_value": round(p_value, 4),
        "better": better,
    }


@dataclass(frozen=True)
class _Side:
    """A benchmark of one of the two evaluations: its answers by id, and what their folder records of them."""

    # The evaluation, as the user names it.
    evaluation: Path | str
    folder: Path
    rows: dict[str, dict[str, Any]]
    run: dict[str, Any]
    scores: dict[str, Any]

    @property
    def metric(self) -> str:
        """The metric by which the answers were scored; before they are, that of their benchmark."""
        return str(self.scores.get("benchmark", next(iter(self.rows.values())))["metric"])

    @property
    def is_of_tasks(self) -> bool:
        """Whether the benchmark's number is the mean over tasks of AIR-Bench Foundation."""
        return bool(self.run) and self.run["benchmark"].get("reader") == "airbench_foundation"

    def asked(self) -> dict[str, Any]:
        """Prompt, format, decoding and clips; {} where no run.json tells."""
        if not self.run:
            return {}
        benchmark = {k: self.run["benchmark"].get(k) for k in ASKED if k not in ("path", "max_new_tokens")}
        more = {"decoding": self.run["identity"].get("decoding"), "clips": self.run.get("clips_sha256")}
        return benchmark | more


def _side(evaluation: Path | str, file: Path) -> _Side:
    refuse_changed(file.parent, file.name)
    rows = {str(row["id"]): row for row in read_predictions(file)}
    return _Side(evaluation, file.parent, rows, recorded(file.parent / RUN), recorded(file.parent / SCORES))


def compare_folders(first: Path | str, second: Path | str) -> dict[str, dict[str, Any]]:
    """``compare_predictions`` for every benchmark that two evaluation folders have in common: {name: result}.

    Also takes two predictions.jsonl files. Items are matched by id. A judged benchmark is compared by the judge's score
    of each item; items that it did not rate on both sides are skipped and counted (``left_out``).

    Raises:
        ValueError: nothing in common, different items of a benchmark (how many on each side), another metric, or
            ratings of another judge, of another prompt, or of other answers than are there now.
    """
    files = [_prediction_files(Path(folder)) for folder in (first, second)]
    for folder, found in zip((first, second), files, strict=True):
        if not found:
            raise ValueError(f"{folder} holds no NAME/predictions.jsonl: give the out= of an evaluation")
    common = [name for name in files[0] if name in files[1]]
    if not common:
        raise ValueError(f"no benchmark in common: {first} has {[*files[0]]}, {second} has {[*files[1]]}")
    return {name: _compare(name, _side(first, files[0][name]), _side(second, files[1][name])) for name in common}


def _compare(name: str, first: _Side, second: _Side) -> dict[str, Any]:
    """Two sides of one benchmark. ValueError: see ``compare_folders``."""
    one, other = first.rows, second.rows
    if one.keys() != other.keys():
        raise ValueError(
            f"{name}: {len(one.keys() - other.keys())} items are only in {first.evaluation} and "
            f"{len(other.keys() - one.keys())} only in {second.evaluation}; evaluate both on the same data"
        )
    metric = first.metric
    if second.metric != metric:
        raise ValueError(
            f"{name}: {first.evaluation} is scored by {metric} and {second.evaluation} by {second.metric}: score both "
            "with the same metric"
        )
    differs = _asked_otherwise(first, second)
    if metric in JUDGED:
        return _compare_judged(name, metric, first, second) | differs
    if not is_metric(metric):
        return {"metric": metric, "n": len(one), "why": "it has no metric"}
    sides = [[to_prediction(rows[key]) for key in one] for rows in (one, other)]
    failed = [sum(p.error is not None for p in side) for side in sides]
    differs |= {"failed": failed} if any(failed) else {}
    if metric in SHARES and first.is_of_tasks and second.is_of_tasks:
        _same_items(*sides)
        # Both sides have the same items: the same tasks in the same columns, weighed as in the report.
        statistics, value = task_statistics(metric, [*one.values()])
        others, _ = task_statistics(metric, [other[key] for key in one])
        return _compared(metric, statistics, others, value) | differs
    try:
        return compare_predictions(metric, *sides) | differs
    except NoReferenceWords as error:
        return {"metric": metric, "n": len(one), "why": str(error)}


def _asked_otherwise(first: _Side, second: _Side) -> dict[str, Any]:
    """{"differs": what}: prompt, format, decoding or clips, where both folders tell; {}: they were asked alike."""
    one, other = first.asked(), second.asked()
    if one and other:
        # Evaluations written by earlier versions do not record their clips.
        known = [name for name in one if name != "clips" or (one[name] and other[name])]
        if differs := [name.replace("_", " ") for name in known if one[name] != other[name]]:
            return {"differs": " and ".join(differs)}
    pairs = [(row, second.rows[key]) for key, row in first.rows.items()]
    items = sum(any(a.get(field) != b.get(field) for field in ("prompt", "choices")) for a, b in pairs)
    return {"differs": f"prompt or order of options in {items} items"} if items else {}


def _compare_judged(name: str, metric: str, first: _Side, second: _Side) -> dict[str, Any]:
    """Two sides of one judged benchmark. ValueError: see ``compare_folders``."""
    sides, keys = (first, second), [*first.rows]
    unrated = [str(side.folder) for side in sides if not (side.folder / JUDGEMENTS).is_file()]
    if unrated:
        why = f"no judge has rated {' and '.join(unrated)}: step=score with judge.model="
        return {"metric": metric, "n": len(keys), "why": why}
    for side in sides:
        if side.scores.get("predictions_sha256") != sha256_of_file(side.folder / PREDICTIONS):
            raise ValueError(f"{side.folder}: the judge rated other answers than are there now: run step=score again")
    facts = [{fact: side.scores.get(fact) for fact in JUDGE_FACTS} for side in sides]
    if other := [f"{k} {facts[0][k]!r} and {facts[1][k]!r}" for k in JUDGE_FACTS if facts[0][k] != facts[1][k]]:
        raise ValueError(
            f"{name}: the two were rated by different judges ({'; '.join(other)}), whose scores are not comparable: "
            "run step=score on both with the same judge"
        )
    for key, row in first.rows.items():
        if any(row.get(field) != second.rows[key].get(field) for field in ("gt", "question", "meta_info")):
            raise ValueError(
                f"{name}: item {key} is another question in {second.folder}: evaluate both on the same data"
            )
    scores = [{row["id"]: row["score"] for row in read_json_lines(side.folder / JUDGEMENTS)} for side in sides]
    rated = [key for key in keys if all(of_side[key] is not None for of_side in scores)]
    if not rated:
        return {"metric": metric, "n": 0, "left_out": len(keys), "why": "the judge rated no item on both sides"}
    (one, value), (other_side, _) = (
        judged_statistics(metric, [first.rows[key] for key in rated], [of_side[key] for key in rated])
        for of_side in scores
    )
    return _compared(metric, one, other_side, value) | {"left_out": len(keys) - len(rated), "judge": facts[0]["judge"]}


def _prediction_files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"predictions": path}
    return {file.parent.name: file for file in sorted(path.glob(f"*/{PREDICTIONS}"))}


def comparison_table(results: dict[str, dict[str, Any]], first: str, second: str) -> str:
    """The results as a Markdown table."""
    lines = [
        f"| benchmark | metric | n | {first} | {second} | difference [95 %] | p | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        if "why" in r:
            lines.append(f"| {name} | {r['metric']} | {r['n']} | – | – | – | – | not compared: {r['why']} |")
            continue
        but = f" (another {r['differs']})" if r.get("differs") else ""
        verdict = {"first": f"{first} is better", "second": f"{second} is better", None: "may be chance"}[r["better"]]
        items = f"{r['n']}" + (f" ({r['left_out']} unrated, skipped)" if r.get("left_out") else "")
        items += " ({} and {} unanswered)".format(*r["failed"]) if r.get("failed") else ""
        # All items differ equally, or a single item: resampling gives no information.
        drawn = f"{r['ci_low']:+.2f}, {r['ci_high']:+.2f}" if r["ci_low"] < r["ci_high"] else "–"
        interval = f"{r['difference']:+.2f} [{drawn}]"
        lines.append(
            f"| {name} | {r['metric']} | {items} | {r['first']:.2f} | {r['second']:.2f} | {interval} "
            f"| {r['p_value']:.4f} | {verdict}{but} |"
        )
    if (tests := sum("why" not in r for r in results.values())) > 4:
        lines += ["", f"Of {tests} such comparisons {SIGNIFICANT * tests:.1f} have p < {SIGNIFICANT} by chance alone."]
    return "\n".join(lines) + "\n"
