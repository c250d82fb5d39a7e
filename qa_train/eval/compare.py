"""Two sets of predictions on the same items: is the difference more than chance?

The interval of the difference is a paired bootstrap over items; the p-value is that of a paired
permutation test (each item's two answers change places at random; Noreen 1989), two-sided.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.eval.prediction import Prediction
from qa_train.eval.scores import LOWER_IS_BETTER, METRICS, RESAMPLES, item_statistics
from qa_train.eval.tables import read_predictions, to_prediction

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
    if [p.references for p in first] != [p.references for p in second]:
        raise ValueError(
            f"the two sets do not hold the same items ({len(first)} and {len(second)}): compare like with like"
        )
    n = len(first)
    if metric == "cider":
        # Its weights count the items: twice as many would be others.
        (one, value), (other, _) = (item_statistics(metric, side) for side in (first, second))
        sides = one, other
    else:
        # Scored together: classes must be the same on both sides.
        rows, value = item_statistics(metric, [*first, *second])
        sides = rows[:n], rows[n:]
    generator = np.random.default_rng(seed)
    drawn, swapped = [], []
    change = sides[1] - sides[0]
    totals = sides[0].sum(0), sides[1].sum(0)
    for _ in range(resamples):
        picks = generator.integers(0, n, size=n)
        drawn.append((sides[0][picks].sum(0), sides[1][picks].sum(0)))
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
        better = "second" if (found < 0) == (metric in LOWER_IS_BETTER) else "first"
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

    Also takes two predictions.jsonl files. Items are matched by id.

    Raises:
        ValueError: nothing in common, or different items of a benchmark (how many on each side).
    """
    files = [_prediction_files(Path(folder)) for folder in (first, second)]
    common = [name for name in files[0] if name in files[1]]
    if not common:
        raise ValueError(f"no benchmark in common: {first} has {[*files[0]]}, {second} has {[*files[1]]}")
    results: dict[str, dict[str, Any]] = {}
    for name in common:
        rows = [{str(row["id"]): row for row in read_predictions(side[name])} for side in files]
        missing = [len(rows[0].keys() - rows[1].keys()), len(rows[1].keys() - rows[0].keys())]
        if any(missing):
            raise ValueError(
                f"{name}: {missing[0]} items are only in {first} and {missing[1]} only in {second}; "
                "evaluate both on the same data"
            )
        metric = next(iter(rows[0].values()))["metric"]
        if metric not in METRICS:
            results[name] = {"metric": metric, "n": len(rows[0]), "why": "scored by a judge or not at all"}
            continue
        sides = [[to_prediction(rows[side][key]) for key in rows[0]] for side in (0, 1)]
        results[name] = compare_predictions(metric, sides[0], sides[1])
    return results


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
        verdict = {"first": f"{first} is better", "second": f"{second} is better", None: "may be chance"}[r["better"]]
        interval = f"{r['difference']:+.2f} [{r['ci_low']:+.2f}, {r['ci_high']:+.2f}]"
        lines.append(
            f"| {name} | {r['metric']} | {r['n']} | {r['first']:.2f} | {r['second']:.2f} | {interval} "
            f"| {r['p_value']:.4f} | {verdict} |"
        )
    return "\n".join(lines) + "\n"
