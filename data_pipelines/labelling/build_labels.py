"""`qa-train data label shards=... out=FOLDER task=asr checkpoint=...`: labels for recordings without any, by a model.

Each clip is asked about as training would (a wording of the prompt bank), and the answer becomes the field that the
task trains on: a transcript, a caption, a language. Answers that look invented are left out: of silence, cut short, in
loops, or unlike those of a second model. A shard is made from a shard, whole or not at all; the audio is not changed.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from data_pipelines.importing.budget import lacking, make_within_budget
from data_pipelines.importing.import_report import Report
from data_pipelines.importing.import_shard import LeftOut
from data_pipelines.labelling.label_options import LabelConfig, Labeller
from data_pipelines.labelling.label_shard import Asking, LabelJob, write_labels
from qa_train.data.shards.catalog import shard_paths
from qa_train.data.shards.index import load_index
from qa_train.data.shards.sidecar import load_summary
from qa_train.data.stores.folders import open_folder
from qa_train.data.text.prompts import PromptBank
from qa_train.eval.answers import Journal
from qa_train.eval.questions import part_text
from qa_train.infer.prompt_format import template_for, warn_of_form
from qa_train.model import find_checkpoint, fingerprint
from qa_train.utils.masking import masked, name_of, without_query
from qa_train.utils.progress import duration

REPORT = "label.report.json"
# What was answered for shards that are not whole yet.
_ANSWERS = ".answers"
# Options on which no label depends.
_FREE = {
    "shards", "out", "engine", "ray_address", "workers", "cores", "gpus", "url", "requests", "device", "verify",
    "key_env", "error_budget", "retry_bad", "date", "price_per_hour", "max_cost", "dry_run", "storage",
}  # fmt: skip
_LOOK_UPS = 16


def label(options: LabelConfig) -> int:
    """Make one labelled shard of each shard, and ``out/label.report.json``.

    Raises:
        ValueError: wrong options, a shard without an index, a price above ``max_cost``, more errors than
            ``error_budget`` allows, or no label at all.
    """
    options = _checked(options)
    asking = Asking(options)
    if options.second.name and asking.metric not in ("wer", "accuracy"):
        raise ValueError(
            f"data label: second= compares transcripts and labels; answers to task={options.task} are neither"
        )
    jobs = _jobs(options)
    report = Report(f"labels by {options.name}", options.task, "that of the recordings")
    report.notes.append(_example(asking, jobs))
    again = {job.path for job in lacking(jobs, retry_bad=options.retry_bad)}
    todo = [job for job in jobs if job.path in again or not job.finished]
    print(_plan(options, todo, len(jobs)), report.notes[0], sep="\n", flush=True)
    if options.dry_run:
        return 0
    report.listed = sum(job.num_clips for job in jobs)
    engine = replace(options.engine_with(options.workers), keep=True, cores=options.cores, gpus=options.gpus)
    place = jobs[0].path.with_name(REPORT)
    place.parent.mkdir(parents=True, exist_ok=True)
    report.save(place)
    make_within_budget(jobs, report, engine, error_budget=options.error_budget, retry_bad=options.retry_bad)
    for path in (path for job in jobs for path in job.shards):
        report.count_shard(load_index(str(path), options.storage))
    report.save(place)
    if (answers := jobs[0].answers) is not None:
        for path in (path for job in jobs for name in job.journals for path in Journal.files(answers, name)):
            path.unlink(missing_ok=True)
        # Those of another command into the same folder stay.
        with suppress(OSError):
            answers.rmdir()
    print(report.text())
    if not report.made:
        raise ValueError("data label: no record was labelled")
    return 0


def _checked(options: LabelConfig) -> LabelConfig:
    """The options with the checkpoints that they mean now, and the date."""
    if options.second.checkpoint or options.second.url:
        options = replace(options, second=_found(options.second, "second."))
    elif options.second.model:
        raise ValueError("data label: second.model= needs second.url=")
    if options.audio not in ("copy", "in_place"):
        raise ValueError(f"data label: audio={options.audio}: use copy or in_place")
    least = min(options.window_s, options.requests, options.cores, options.workers + 1, options.max_new_tokens)
    if least < 1 or not 0 <= options.error_budget <= 1:
        raise ValueError(
            "data label: window_s, requests, cores and max_new_tokens must be at least 1, workers 0 or more, and "
            "error_budget between 0 and 1"
        )
    if options.max_cost is not None and not options.price_per_hour + options.second.price_per_hour:
        raise ValueError(f"data label: max_cost={options.max_cost:g} bounds nothing without price_per_hour=")
    date = options.date or datetime.now(UTC).date().isoformat()
    found = _found(options, "")
    template = template_for(found.checkpoint, options.template)
    warn_of_form(options.second.checkpoint, template, "template= sets it for both")
    return replace(options, checkpoint=found.checkpoint, model=found.model, template=template, date=date)


def _found(by: Labeller, prefix: str) -> Labeller:
    if (by.checkpoint is None) == (by.url is None) or bool(by.url) != bool(by.model):
        raise ValueError(f"data label: give {prefix}checkpoint=, or {prefix}url= with {prefix}model=, one of the two")
    # A run may save another one while it is labelled with.
    return replace(by, checkpoint=find_checkpoint(by.checkpoint)) if by.checkpoint is not None else by


def _check_task(out: Path, task: str) -> None:
    """ValueError where labels of another task are: their shards would be made again without these labels."""
    before = Report.saved(out / REPORT).get("split", task)
    if before != task:
        raise ValueError(
            f"data label: {out} has labels of task={before}, which task={task} would replace: choose another out=; "
            f"with shards={out} its records keep those and get both"
        )


def _check_linkable(options: LabelConfig, places: Sequence[str]) -> None:
    remote = [place for place in places if "://" in place]
    if options.audio == "in_place" and remote:
        raise ValueError(f"data label: audio=in_place links local shards, {masked(remote[0])} is none: use audio=copy")


def _jobs(options: LabelConfig) -> list[LabelJob]:
    """A job for each shard, of the same name."""
    _check_linkable(options, [options.out])
    out = open_folder(options.out, options.storage)
    shards = _sources(options, out)
    _check_linkable(options, shards)
    _check_task(out, options.task)
    names = list(map(name_of, shards))
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise ValueError(f"data label: {twice[0]} is there in several folders: label them into an out= each")
    # Written before the first shard is.
    foreign = [] if (out / REPORT).exists() else [name for name in names if (out / name).exists()]
    if foreign:
        raise ValueError(f"data label: {out / foreign[0]} was not made by this command: choose another out=")
    rules = {name: value for name, value in asdict(options).items() if name not in _FREE}
    rules |= {"bank": PromptBank.load(options.prompt_files).digest(options.task)}
    rules |= {"checkpoint": _weights(options), "second": _weights(options.second)}
    with ThreadPoolExecutor(_LOOK_UPS) as pool:
        summaries = list(pool.map(partial(load_summary, cfg=options.storage), shards))
    return [
        LabelJob(
            out / name, write_labels, (summary.fingerprint, json.dumps(rules, sort_keys=True)), summary.rows,
            source=shard, hours=summary.seconds / 3600, options=options,
            answers=out / _ANSWERS if isinstance(out, Path) else None,
        )
        for shard, name, summary in zip(shards, names, summaries, strict=True)
    ]  # fmt: skip


def _sources(options: LabelConfig, out: Path) -> list[str]:
    """The shards to label. Where their folder holds ``out`` too, what an earlier run made of them is none."""
    found: list[str] = []
    for pattern in options.shards if isinstance(options.shards, list) else [options.shards]:
        shards = shard_paths([pattern], options.storage)
        sources = [shard for shard in shards if not _replaced(shard, out)]
        if {*map(name_of, shards)} > {*map(name_of, sources)}:
            raise ValueError(f"data label: out={options.out} holds the shards themselves: choose another folder")
        found += sources
    return list(dict.fromkeys(found))


def _replaced(shard: str, out: Path) -> bool:
    """Whether a labelled shard would take the place of this one."""
    name = name_of(shard)
    if "://" in shard:
        return posixpath.normpath(without_query(shard)) == posixpath.normpath(str(out / name))
    # A link is another file than what it leads to; replacing either would lose the shard.
    path = Path(shard).absolute()
    return out.resolve() / name in (path.parent.resolve() / name, path.resolve())


def _weights(by: Labeller) -> str:
    """What names the weights of a checkpoint, wherever it lies; of an endpoint and of the hub, the model's name."""
    return fingerprint(Path(by.checkpoint)) if by.checkpoint and Path(by.checkpoint).is_dir() else by.name


def _plan(options: LabelConfig, todo: Sequence[LabelJob], shards: int) -> str:
    """What will be asked, for the user. ValueError above ``max_cost``."""
    hours = sum(job.hours for job in todo)
    text = (
        f"labels by {options.name}: {len(todo)} of {shards} shards to make, at most "
        f"{sum(job.num_clips for job in todo):,} records, {duration(hours * 3600)} of audio"
    )
    if cost := hours * (options.price_per_hour + options.second.price_per_hour):
        text += f", {cost:,.2f} at the given price"
    if options.max_cost is not None and cost > options.max_cost:
        raise ValueError(f"data label: {text}: more than max_cost={options.max_cost:g}")
    return text


def _example(asking: Asking, jobs: Sequence[LabelJob]) -> str:
    """The prompt of the first record of the first shard, or why there is none."""
    index = load_index(jobs[0].source, asking.options.storage)
    first = json.loads(index.table["meta"][0].as_py()) if len(index) else {}
    try:
        return f"first prompt: {part_text(asking.question(jobs[0].source, first | asking.options.fields))!r}"
    except LeftOut as error:
        return f"the first record cannot be asked about: {error}"
