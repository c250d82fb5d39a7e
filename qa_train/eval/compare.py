"""Two sets of predictions on the same items: is the difference more than chance?

The interval of the difference is a paired bootstrap over items; the p-value is that of a paired
permutation test (each item's two answers change places at random; Noreen 1989), two-sided. Of judged
benchmarks the judge's scores of the items are compared in the same way, of one judge with one prompt only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.eval.answers import file_digest
from qa_train.eval.benchmarks.airbench import task_statistics
from qa_train.eval.benchmarks.benchmark import JUDGED
from qa_train.eval.benchmarks.judged import JUDGE_FACTS, judged_statistics
from qa_train.eval.scores.prediction import (
    NoReferenceWords,
    Prediction,
    read_json_lines,
    read_predictions,
    to_prediction,
)
from qa_train.eval.scores.task_metrics import RESAMPLES, SHARES, is_metric, item_statistics, lower_is_better
from qa_train.eval.scoring import ASKED, refuse_changed

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


def _of_tasks(folder: Path) -> bool:
    """Whether the benchmark's number is the mean over tasks of AIR-Bench Foundation."""
    run = folder / "run.json"
    return (
        run.is_file()
        and json.loads(run.read_text(encoding="utf-8"))["benchmark"].get("reader") == "airbench_foundation"
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
    results: dict[str, dict[str, Any]] = {}
    for name in common:
        asked_otherwise: dict[str, Any] = _asked_otherwise([side[name].parent for side in files])
        for side in files:
            refuse_changed(side[name])
        rows = [{str(row["id"]): row for row in read_predictions(side[name])} for side in files]
        missing = [len(rows[0].keys() - rows[1].keys()), len(rows[1].keys() - rows[0].keys())]
        if any(missing):
            raise ValueError(
                f"{name}: {missing[0]} items are only in {first} and {missing[1]} only in {second}; "
                "evaluate both on the same data"
            )
        if not asked_otherwise and (
            other := sum(rows[0][k].get(f) != rows[1][k].get(f) for k in rows[0] for f in ("prompt", "choices"))
        ):
            asked_otherwise = {"differs": f"prompt or order of options in {other} items"}
        metrics = [_metric(side[name], answers) for side, answers in zip(files, rows, strict=True)]
        metric = metrics[0]
        if metrics[1] != metric:
            raise ValueError(
                f"{name}: {first} is scored by {metric} and {second} by {metrics[1]}: score both with the same metric"
            )
        if metric in JUDGED:
            results[name] = _compare_judged(name, metric, [side[name].parent for side in files], rows) | asked_otherwise
            continue
        if not is_metric(metric):
            results[name] = {"metric": metric, "n": len(rows[0]), "why": "it has no metric"}
            continue
        sides = [[to_prediction(rows[side][key]) for key in rows[0]] for side in (0, 1)]
        failed = [sum(p.error is not None for p in side) for side in sides]
        asked_otherwise |= {"failed": failed} if any(failed) else {}
        if metric in SHARES and all(_of_tasks(side[name].parent) for side in files):
            _same_items(*sides)
            # Both sides have the same items: the same tasks in the same columns, weighed as in the report.
            one, value = task_statistics(metric, [*rows[0].values()])
            other_side, _ = task_statistics(metric, [rows[1][key] for key in rows[0]])
            results[name] = _compared(metric, one, other_side, value) | asked_otherwise
            continue
        try:
            results[name] = compare_predictions(metric, sides[0], sides[1]) | asked_otherwise
        except NoReferenceWords as error:
            results[name] = {"metric": metric, "n": len(rows[0]), "why": str(error)}
    return results


def _asked_otherwise(folders: Sequence[Path]) -> dict[str, str]:
    """{"differs": what}: prompt, format, decoding or clips, where both folders tell; {}: they were asked alike."""
    asked = []
    for folder in folders:
        if not (folder / "run.json").is_file():
            return {}
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        benchmark = {k: run["benchmark"].get(k) for k in ASKED if k not in ("path", "max_new_tokens")}
        asked.append(benchmark | {"decoding": run["identity"].get("decoding"), "clips": run.get("clips_sha256")})
    # Evaluations written by earlier versions do not record their clips.
    known = [name for name in asked[0] if name != "clips" or all(side[name] for side in asked)]
    differs = [name.replace("_", " ") for name in known if asked[0][name] != asked[1][name]]
    return {"differs": " and ".join(differs)} if differs else {}


def _metric(path: Path, rows: dict[str, dict[str, Any]]) -> str:
    """The metric by which the answers were scored; before they are, that of their benchmark."""
    scores = path.parent / "scores.json"
    if scores.is_file() and "benchmark" in (found := json.loads(scores.read_text(encoding="utf-8"))):
        return str(found["benchmark"]["metric"])
    return str(next(iter(rows.values()))["metric"])


def _compare_judged(
    name: str, metric: str, folders: Sequence[Path], rows: Sequence[dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """Two folders of one judged benchmark. ValueError: see ``compare_folders``."""
    keys = [*rows[0]]
    unrated = [str(folder) for folder in folders if not (folder / "judgements.jsonl").is_file()]
    if unrated:
        why = f"no judge has rated {' and '.join(unrated)}: step=score with judge.model="
        return {"metric": metric, "n": len(keys), "why": why}
    facts = []
    for folder in folders:
        scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        if scores.get("predictions_sha256") != file_digest(folder / "predictions.jsonl"):
            raise ValueError(f"{folder}: the judge rated other answers than are there now: run step=score again")
        facts.append({fact: scores.get(fact) for fact in JUDGE_FACTS})
    if facts[0] != facts[1]:
        other = [f"{k} {facts[0][k]!r} and {facts[1][k]!r}" for k in JUDGE_FACTS if facts[0][k] != facts[1][k]]
        raise ValueError(
            f"{name}: the two were rated by different judges ({'; '.join(other)}), whose scores are not comparable: "
            "run step=score on both with the same judge"
        )
    for key in keys:
        if any(rows[0][key].get(field) != rows[1][key].get(field) for field in ("gt", "question", "meta_info")):
            raise ValueError(f"{name}: item {key} is another question in {folders[1]}: evaluate both on the same data")
    scores_of = [{row["id"]: row["score"] for row in read_json_lines(f / "judgements.jsonl")} for f in folders]
    rated = [key for key in keys if all(side[key] is not None for side in scores_of)]
    if not rated:
        return {"metric": metric, "n": 0, "left_out": len(keys), "why": "the judge rated no item on both sides"}
    (one, value), (other_side, _) = (
        judged_statistics(metric, [rows[0][key] for key in rated], [side[key] for key in rated]) for side in scores_of
    )
    return _compared(metric, one, other_side, value) | {"left_out": len(keys) - len(rated), "judge": facts[0]["judge"]}


def _prediction_files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"predictions": path}
    return {file.parent.name: file for file in sorted(path.glob("*/predictions.jsonl"))}


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
