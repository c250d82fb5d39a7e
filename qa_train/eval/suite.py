"""`qa-train eval`: benchmarks from a checkpoint to a report; predicting and scoring can be run separately."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qa_train.config import EvalConfig
from qa_train.eval.answers import Answerer, Limits, load_answerer
from qa_train.eval.benchmarks.benchmark import JUDGED, Benchmark, from_dict
from qa_train.eval.benchmarks.judged import prompts_of
from qa_train.eval.benchmarks.layouts import read_rows
from qa_train.eval.benchmarks.table import find_benchmarks
from qa_train.eval.compare import compare_folders, comparison_table
from qa_train.eval.contamination import contamination
from qa_train.eval.own_file import Asked, read_own_file, write_own_answers
from qa_train.eval.predict import predict
from qa_train.eval.ranks import ranks_from_environment
from qa_train.eval.result_folder import PREDICTIONS, RUN, SCORES, recorded
from qa_train.eval.scores import voicebench
from qa_train.eval.scores.prediction import read_predictions
from qa_train.eval.scoring import score_folder
from qa_train.infer.prompt_format import warn_of_form
from qa_train.llm.client import CallFailed, Endpoint
from qa_train.llm.judge import Judge
from qa_train.utils.atomic import local, write_json, write_text
from qa_train.utils.progress import progress

log = logging.getLogger(__name__)

STEPS = ("all", "predict", "score")
# Of the whole folder; the last one of data= alone.
REPORTS = ("results.json", "report.md", "report.html", PREDICTIONS)


def evaluate(options: EvalConfig) -> int:
    """Run the command; returns its exit code.

    Raises:
        ValueError: options that do not belong together, unknown benchmarks, missing data.
    """
    if options.compare is not None:
        return _compare(options)
    if options.step not in STEPS:
        raise ValueError(f"eval: step={options.step!r} is unknown: use one of {', '.join(STEPS)}")
    needed = {"out= (the folder for answers, scores and report)": options.out}
    if options.step != "score":
        needed["checkpoint= (or endpoint=)"] = options.checkpoint or options.endpoint
        needed["benchmarks=[...] (or data=, a file of your own questions)"] = options.benchmarks or options.data
    if missing := [name for name, value in needed.items() if value is None]:
        raise ValueError(f"eval: missing {', '.join(missing)}")
    out = local(str(options.out), "out")
    foreign = [name for name in REPORTS if (out / name).exists()] if not any(out.glob("*/run.json")) else []
    if foreign and not options.overwrite:
        raise ValueError(
            f"{out / foreign[0]} exists and belongs to no evaluation: choose another out=, or set overwrite=true"
        )
    if options.step in ("all", "predict"):
        main = predict_benchmarks(options, out)
        if not main or options.step == "predict":
            return 0
    results = score_benchmarks(options, out)
    # Answers that are scored again may be from anyone: their clips are searched in the named data only.
    print(write_reports(out, results, _data_root(options) if options.step == "score" else None))
    print(f"predictions, scores and report.html: {out}")
    return 0


def _compare(options: EvalConfig) -> int:
    folders = options.compare
    if isinstance(folders, str):
        folders = folders.split(",")
    if len(folders) != 2:
        raise ValueError(f"eval: compare= takes two evaluation folders, compare=[A,B]; found {len(folders)}")
    results = compare_folders(*folders)
    table = comparison_table(results, str(folders[0]), str(folders[1]))
    print(table, end="")
    if options.out is not None:
        Path(options.out).mkdir(parents=True, exist_ok=True)
        write_json(Path(options.out) / "comparison.json", results)
    return 0


def _asked(options: EvalConfig) -> list[Asked]:
    """The items requested by the options: of benchmarks, or of a file of questions. All data are read here."""
    if options.data is not None:
        if options.benchmarks is not None:
            raise ValueError("eval: give data= or benchmarks=, not both")
        return read_own_file(Path(options.data), options.max_new_tokens)
    root = Path(options.data_root).resolve()
    return [Asked(benchmark, read_rows(benchmark, root)) for benchmark in _benchmarks(options)]


def _data_root(options: EvalConfig) -> Path:
    return Path(options.data_root).resolve() if options.data is None else Path(options.data).resolve().parent


def _benchmarks(options: EvalConfig) -> list[Benchmark]:
    return find_benchmarks([options.benchmarks] if isinstance(options.benchmarks, str) else list(options.benchmarks))


def predict_benchmarks(options: EvalConfig, out: Path) -> bool:
    """Answer all benchmarks of the options into ``out/NAME``; whether this is rank 0, which goes on to score.

    All data are read before the model is loaded, so that a missing folder is known at once.

    Raises:
        ValueError: no benchmarks or model named, or data that are missing.
    """
    limits = Limits(options.batch_size, options.token_budget)
    asked = _asked(options)
    root = _data_root(options)
    ranks = ranks_from_environment()
    if any(one.benchmark.template == "chat" for one in asked):
        warn_of_form(
            options.checkpoint, "chat", "give it questions with audio and prompt, or template: base in a benchmark"
        )
    answerer, identity = _answerer(options)
    try:
        for one in asked:
            name, n = one.benchmark.name, len(one.rows)
            with progress(total=n, desc=name, unit="questions", disable=ranks.rank > 0) as bar:
                predict(
                    one.benchmark,
                    one.rows,
                    answerer,
                    out / name,
                    identity=identity,
                    questions=one.questions or None,
                    limits=limits,
                    ranks=ranks,
                    probe=options.probe,
                    data_root=root,
                    who=str(options.checkpoint or f"{options.endpoint_model} at {options.endpoint}"),
                    on_answers=bar.update,
                )
    except CallFailed as error:
        raise ValueError(f"{options.endpoint}: {error}; the same command again continues from here") from error
    finally:
        if ranks.rank == 0 and not all((out / one.benchmark.name / SCORES).is_file() for one in asked):
            # Reports of answers that no longer exist.
            for report in REPORTS:
                (out / report).unlink(missing_ok=True)
    if options.data is not None and ranks.rank == 0:
        write_own_answers(Path(options.data), asked, out)
    return ranks.rank == 0


def _answerer(options: EvalConfig) -> tuple[Answerer, dict[str, Any]]:
    """Who answers, and what names its answers."""
    if (options.checkpoint is None) == (options.endpoint is None):
        raise ValueError("eval: give checkpoint= or endpoint= (with endpoint_model=), one of them")
    if options.endpoint is not None:
        if options.endpoint_model is None:
            raise ValueError("eval: missing endpoint_model=, the name of the model behind endpoint=")
        from qa_train.eval.endpoint import EndpointModel

        endpoint = Endpoint(options.endpoint, options.endpoint_model, options.endpoint_key_env)
        return EndpointModel(endpoint), {"endpoint": options.endpoint, "model": options.endpoint_model}
    return load_answerer(
        str(options.checkpoint), options.device, verify=options.verify, allow_missing=options.allow_missing
    )


def score_benchmarks(options: EvalConfig, out: Path) -> dict[str, dict[str, Any]]:
    """Score the folders of ``out`` that hold predictions: {benchmark: result}.

    Raises:
        ValueError: no predictions in ``out``, or a judge's refusal to start (cost, offline).
    """
    folders = sorted(path.parent for path in out.glob("*/run.json"))
    current: dict[str, Benchmark] = {}
    if options.benchmarks is not None or options.data is not None:
        now = [one.benchmark for one in _asked(options)] if options.data is not None else _benchmarks(options)
        current = {benchmark.name: benchmark for benchmark in now}
        folders = [folder for folder in folders if folder.name in current]
    if not folders:
        raise ValueError(
            f"{out} holds no predictions: run the prediction step first (checkpoint=, and benchmarks= or data=)"
        )
    if unanswered := [name for name in current if name not in {folder.name for folder in folders}]:
        raise ValueError(
            f"{out} holds no predictions of {', '.join(unanswered)}: run the prediction step for them, or score what "
            "is there without benchmarks= and data="
        )
    judge = _judge(options, out)
    if judge is not None:
        prompts = _prompts(options, folders, current)
        print(judge.estimate(prompts).line())
        judge.check(prompts)
    results = {}
    for folder in folders:
        results[folder.name] = score_folder(folder, judge, _reference(options, folder), current.get(folder.name))
        if options.training is not None:
            shards = [options.training] if isinstance(options.training, str) else list(options.training)
            rows = read_predictions(folder / PREDICTIONS)
            found = contamination(rows, shards, Path(results[folder.name]["data_root"]), options.storage)
            results[folder.name]["contamination"] = found
    if (average := voicebench.average(results)) is not None:
        next(result for name, result in results.items() if name.startswith("voicebench_"))["suite"] = average
    return results


def _reference(options: EvalConfig, folder: Path) -> Path | None:
    """The folder of the reference system's answers to a judged benchmark. ValueError: they are missing."""
    if options.judge.reference is None or recorded(folder / RUN)["benchmark"]["metric"] not in JUDGED:
        return None
    reference = Path(options.judge.reference) / folder.name
    if not (reference / PREDICTIONS).is_file():
        raise ValueError(
            f"judge.reference={options.judge.reference} has no answers to {folder.name}: evaluate it first"
        )
    return reference


def _judge(options: EvalConfig, out: Path) -> Judge | None:
    config = options.judge
    if config.model is None:
        if config.url is not None:
            raise ValueError("eval: judge.url= needs judge.model=, the name of the judge")
        return None
    endpoint = None
    if config.url is not None:
        endpoint = Endpoint(config.url, config.model, config.key_env, config.timeout_s)
    return Judge(
        config.model,
        Path(config.cache) if config.cache is not None else out / "judge-cache.jsonl",
        endpoint,
        max_tokens=config.max_tokens,
        workers=config.workers,
        price_in=config.price_in,
        price_out=config.price_out,
        max_cost=config.max_cost,
    )


def _prompts(options: EvalConfig, folders: list[Path], current: Mapping[str, Benchmark]) -> list[str]:
    """All that the judge will be asked, of the answers and of the reference system's."""
    found: list[str] = []
    for folder in folders:
        benchmark = current.get(folder.name) or from_dict(recorded(folder / RUN)["benchmark"])
        if benchmark.metric in JUDGED:
            for each in filter(None, (folder, _reference(options, folder))):
                found += prompts_of(benchmark.metric, read_predictions(each / PREDICTIONS))
    return found


def write_reports(out: Path, results: Mapping[str, Mapping[str, Any]], below: Path | None = None) -> str:
    """results.json, report.md and report.html in ``out``; returns the Markdown table.

    ``below``: see `qa_train.report.scores_page.render_benchmarks`.
    """
    from qa_train.report.scores_page import markdown_report, render_benchmarks

    write_json(out / "results.json", results)
    text = markdown_report(results)
    write_text(out / "report.md", text)
    write_text(out / "report.html", render_benchmarks(results, below=below))
    return text
