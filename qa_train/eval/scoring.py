"""The second half of an evaluation: predictions.jsonl -> scores.json, without the model and without the clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.data.text.records import LANGUAGES
from qa_train.eval.benchmarks import muchomusic
from qa_train.eval.benchmarks.airbench import mean_over_tasks, official_mmsu
from qa_train.eval.benchmarks.benchmark import JUDGED, UNSCORED, Benchmark, from_dict
from qa_train.eval.benchmarks.judged import Judgement, judged_breakdown, judged_result
from qa_train.eval.result_folder import JUDGEMENTS, PREDICTIONS, RUN, SCORES, recorded, refuse_changed
from qa_train.eval.scores import voicebench
from qa_train.eval.scores.ifeval import PARTS, ifeval_parts
from qa_train.eval.scores.labels import LETTERS, gold_option, tokens_match
from qa_train.eval.scores.prediction import NoReferenceWords, Prediction, classes_of, read_predictions, to_prediction
from qa_train.eval.scores.task_metrics import STATISTICS, interval, item_statistics, lower_is_better, rows_of_all, score
from qa_train.llm.judge import Judge
from qa_train.utils import plugins
from qa_train.utils.atomic import write_json, write_json_lines

Row = dict[str, Any]

# Upper ends of the length classes in seconds.
LENGTHS_S = (5.0, 10.0, 20.0, 30.0)
WORST = 5
# What is kept of the score of a class.
CLASS_KEYS = ("value", "ci_low", "ci_high", "n")
# The metric whose number is the benchmark's own, where ours is stricter or kinder.
OFFICIAL_METRICS = {"mmau": ("tokens", "the benchmark's word rule on the raw answer; a single letter never matches it")}


# Keys of a benchmark that decide what the model was asked: answers to other questions are not scored as if to these.
ASKED = ("reader", "path", "released", "source", "prompt", "template", "language", "max_new_tokens", "where",
         "shuffle_options")  # fmt: skip


def score_folder(
    folder: Path, judge: Judge | None = None, reference: Path | None = None, current: Benchmark | None = None
) -> dict[str, Any]:
    """Score one benchmark's folder (predictions.jsonl, run.json); writes and returns its scores.json.

    ``reference``: the folder of the same benchmark of a fixed system, which the judge also rates. The judge's reply to
    each item is written to judgements.jsonl. ``current``: the benchmark as its table has it now; its metric, rule and
    published numbers are used then.

    Raises:
        ValueError: a folder without predictions, predictions that were changed, that answer other questions than
            ``current`` asks, or that the metric cannot use.
    """
    run = recorded(folder / RUN)
    if not run:
        raise ValueError(f"{folder} holds no run.json: run the prediction step first (step=predict)")
    benchmark = _benchmark_now(folder, from_dict(run["benchmark"]), current)
    found = refuse_changed(folder)
    rows = read_predictions(folder / PREDICTIONS)
    if len(rows) != run["n"]:
        raise ValueError(f"{folder}: {len(rows)} predictions for {run['n']} items; run the prediction step again")
    if reference is not None:
        refuse_changed(reference)
    others = read_predictions(reference / PREDICTIONS) if reference is not None else None
    scored, judged = score_rows(benchmark, rows, judge, others)
    result = {
        "benchmark": benchmark.as_dict(),
        "identity": run["identity"],
        "answered_by": run["answered_by"],
        "data_root": run["data_root"],
        **scored,
        **_without_folders(_doubts(benchmark, rows), (run["data_root"], str(Path(benchmark.path).parent))),
        "predictions_sha256": found,
        "probe": run.get("probe"),
        "items_expected": benchmark.items,
        "items_differ": benchmark.items is not None and benchmark.items != len(rows),
    }
    (folder / JUDGEMENTS).unlink(missing_ok=True)
    if judged:
        lines = [{"id": str(row["id"]), **asdict(item)} for row, item in zip(rows, judged, strict=True)]
        write_json_lines(folder / JUDGEMENTS, lines)
    write_json(folder / SCORES, result)
    return result


def _benchmark_now(folder: Path, asked: Benchmark, current: Benchmark | None) -> Benchmark:
    if current is None:
        return asked
    other = [name for name in ASKED if getattr(asked, name) != getattr(current, name)]
    if other:
        changes = "; ".join(f"{name} was {getattr(asked, name)!r}, is {getattr(current, name)!r}" for name in other)
        raise ValueError(
            f"{folder} answers benchmark {current.name} as it was before a change ({changes}): run the prediction step "
            "again, or score without benchmarks="
        )
    return current


def _without_folders(doubts: dict[str, Any], folders: Sequence[str]) -> dict[str, Any]:
    """The first error names the clip, not where this machine keeps it: reports and cards are passed on."""
    if "first_error" not in doubts:
        return doubts
    error = str(doubts["first_error"])
    for folder in folders:
        if Path(folder).is_absolute() and folder != "/":
            error = error.replace(f"{folder}/", "")
    return doubts | {"first_error": error}


def _doubts(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any]:
    """Caveats of the number: failures, references no answer can meet, unknown languages."""
    found: dict[str, Any] = {}
    if errors := [row["error"] for row in rows if row.get("error")]:
        found["first_error"] = errors[0]
    if benchmark.metric in ("choice", "airbench"):
        found["right_is_no_option"] = sum(row["gt"] not in (row.get("choices") or ()) for row in rows)
    if benchmark.metric in ("mmau", "tokens"):
        # By words, as in scoring: "Man" is right where the option is "man".
        options = [(str(row["gt"]), row.get("choices") or ()) for row in rows]
        found["right_is_no_option"] = sum(not any(tokens_match(gt, c, among) for c in among) for gt, among in options)
    if benchmark.metric == "contains":
        found["other_labels_unknown"] = sum(not row.get("choices") for row in rows)
    if benchmark.metric == "map":
        joined = [row for row in rows if isinstance(row["gt"], str) and not row.get("choices")]
        found["labels_in_one_text"] = sum("," in row["gt"] for row in joined)
    if benchmark.metric in ("wer", "cer", "bleu", "first_line_wer", "cp_wer", "timed_wer"):
        found["language_unknown"] = sum(row.get("language") not in LANGUAGES for row in rows)
        found["language_codes"] = sorted({str(row["language"]) for row in rows if row.get("language")} - {*LANGUAGES})
    return {name: value for name, value in found.items() if value}


def score_rows(
    benchmark: Benchmark, rows: Sequence[Row], judge: Judge | None = None, reference: Sequence[Row] | None = None
) -> tuple[dict[str, Any], list[Judgement]]:
    """Value, interval, counts, breakdowns and worst cases of a benchmark's predictions; and a judge's items.

    Without a judge, a judged benchmark has ``value`` None and the reason; so has one of silence only.
    """
    if benchmark.metric == UNSCORED:
        return {"value": None, "n": len(rows), "why": benchmark.rule or "no metric: answers only"}, []
    if benchmark.metric not in JUDGED:
        return _by_metric(benchmark, rows), []
    if judge is None:
        return {"value": None, "n": len(rows), "why": "needs a judge: give judge.model= and judge.url= or a cache"}, []
    result, items = judged_result(benchmark.metric, rows, judge, reference)
    result["by_length"] = judged_breakdown(rows, items, length_class)
    result["by_language"] = judged_breakdown(rows, items, lambda row: row.get("language"))
    if benchmark.group_by is not None:
        result["by_group"] = judged_breakdown(rows, items, lambda row: row.get(benchmark.group_by or ""))
    values = np.array([item.strict for item in items])
    best = {"1-10": 10.0, "1-5": 5.0, "percent": 100.0}[result["unit"]]
    result["worst"] = [
        case | {"question": rows[i].get("question"), "judge": list(items[i].said)}
        for i, case in _worst(rows, values, -values, -best)
    ]
    return result, items


def _by_metric(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any]:
    predictions = [to_prediction(row) for row in rows]
    try:
        result = score(benchmark.metric, predictions).as_dict()
    except NoReferenceWords as error:
        # Recordings without speech have no error rate. The others' scores do not wait for it.
        return {"value": None, "n": len(rows), "why": str(error), "lower_is_better": True}
    if benchmark.reader == "airbench_foundation":
        found = mean_over_tasks(rows, benchmark.metric)
        result |= {k: round(found[k], 2) for k in ("value", "ci_low", "ci_high")}
        result |= {"groups": found["tasks"], "official": found["official"], "what": "mean over tasks"}
    elif benchmark.metric in OFFICIAL_METRICS:
        metric, what = OFFICIAL_METRICS[benchmark.metric]
        official = score(metric, predictions)
        result["official"] = {"value": round(official.value, 2), "what": what}
    elif benchmark.reader == "mmsu":
        result["official"] = official_mmsu(rows)
    elif benchmark.reader == "muchomusic":
        result["official"] = muchomusic.official(rows)
    if benchmark.metric == "ifeval":
        rows_of, _ = item_statistics("ifeval", predictions)
        shares = ifeval_parts(rows_of.sum(0, keepdims=True))[0]
        result["parts"] = {name: round(float(share), 2) for name, share in zip(PARTS, shares, strict=True)}
    elif benchmark.reader == "voicebench" and (own := voicebench.official(benchmark.metric, result)) is not None:
        result["official"] = own
    if benchmark.also:
        found = {benchmark.metric: result} | {name: _beside(name, predictions) for name in benchmark.also}
        kept = (*CLASS_KEYS, "why")
        result["by_metric"] = {name: {k: one[k] for k in kept if k in one} for name, one in found.items()}
    result["lower_is_better"] = lower_is_better(benchmark.metric)
    if benchmark.metric not in STATISTICS:
        result["own_code"] = plugins.record(plugins.METRICS, benchmark.metric)
    result["by_length"] = breakdown(benchmark.metric, rows, length_class)
    result["by_language"] = breakdown(benchmark.metric, rows, lambda row: row.get("language"))
    if benchmark.metric in ("choice", "airbench", "mmau"):
        result["by_position"] = breakdown(benchmark.metric, rows, _position)
    if benchmark.group_by is not None:
        result["by_group"] = breakdown(benchmark.metric, rows, lambda row: row.get(benchmark.group_by or ""))
    result["worst"] = worst_cases(benchmark, rows)
    return result


def _beside(metric: str, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Another metric of the same answers; where it fails, the benchmark's own score stays."""
    try:
        return score(metric, predictions).as_dict()
    except ValueError as error:
        return {"value": None, "n": len(predictions), "why": str(error)}


def length_class(row: Row) -> str | None:
    """The clip's length class: "0-5 s", ..., "30 s and more"; None without a length."""
    seconds = row.get("duration_s")
    if seconds is None:
        return None
    ends = (0.0, *LENGTHS_S)
    for low, high in zip(ends, LENGTHS_S, strict=False):
        if seconds < high:
            return f"{low:.0f}-{high:.0f} s"
    return f"{LENGTHS_S[-1]:.0f} s and more"


def _position(row: Row) -> str | None:
    """The letter of the right option: a model that favours a place shows here."""
    place = gold_option(row.get("choices") or (), row["gt"] if isinstance(row["gt"], str) else row["gt"][0])
    return None if place is None else LETTERS[place]


def breakdown(metric: str, rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[str, dict[str, Any]]:
    """The score of every class of items: {class: {value, ci_low, ci_high, n}}; items without one are "unknown"."""
    classes, predictions = classes_of(rows, key), [to_prediction(row) for row in rows]
    if classes and rows_of_all(metric):
        statistics, value = item_statistics(metric, predictions)
        return {name: _interval_of(metric, statistics[places], value) for name, places in classes.items()}
    # A class without reference words (of clips without speech) has no score; the whole still has one.
    found = {name: _beside(metric, [predictions[i] for i in places]) for name, places in classes.items()}
    return {name: {k: one[k] for k in (*CLASS_KEYS, "why") if k in one} for name, one in found.items()}


def _interval_of(metric: str, rows: np.ndarray, value: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    low, high = interval(metric, rows, value)
    found = {"value": float(value(rows.sum(0, keepdims=True))[0]), "ci_low": low, "ci_high": high}
    return {k: round(v, 2) for k, v in found.items()} | {"n": len(rows)}


def worst_cases(benchmark: Benchmark, rows: Sequence[Row]) -> list[Row]:
    """The items with the worst score of their own, wrong ones only; the first of equals."""
    statistics, value = item_statistics(benchmark.metric, [to_prediction(row) for row in rows])
    values = value(statistics)
    badness = -values if benchmark.higher_is_better else values
    best = -100.0 if benchmark.higher_is_better else 0.0
    return [case for _, case in _worst(rows, values, badness, best)]


def _worst(rows: Sequence[Row], values: np.ndarray, badness: np.ndarray, best: float) -> list[tuple[int, Row]]:
    """(place, item) of the ``WORST`` largest of ``badness`` that are above ``best``; the first of equals."""
    picks = [int(i) for i in np.argsort(-badness, kind="stable")[:WORST] if badness[i] > best]
    keep = ("id", "audio", "prompt", "gt", "prediction", "error", "duration_s", "truncated")
    items = [{k: rows[i][k] for k in keep if k in rows[i]} | {"item_score": round(float(values[i]), 2)} for i in picks]
    return list(zip(picks, items, strict=True))
