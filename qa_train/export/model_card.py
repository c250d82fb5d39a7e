"""The model card of an export: what was trained on what, how, and what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index
from jinja2 import Environment, StrictUndefined, Template

from qa_train import __version__
from qa_train.config import from_references, run_of
from qa_train.report.markdown import code, plain
from qa_train.report.results import markdown_table
from qa_train.report.runs import Steps
from qa_train.report.scores_page import markdown_report
from qa_train.utils.masking import name_of
from qa_train.utils.safe_yaml import read_yaml

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CARD = Path(__file__).with_name("card.md.j2")
# Of the card of a base; longer ones are not read.
_CARD_BYTES = 2**20
# What the card of a base says of it and holds for what is made of it. Its own base is not ours.
_FACTS = ("license", "language", "datasets")


def model_card(
    checkpoint: Path, *, name: str, parameters: int, results: str | Path | None = None, weights: str | None = None,
    merged: bool = True, facts: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """A README.md in Markdown with the front matter that model hubs read.

    ``checkpoint``: a checkpoint's folder. If it belongs to a run, the card lists the run's stage, data and settings,
    and those of the runs that it started from, as long as they are found. ``results``: the folder of a
    ``qa-train eval``, shown as a table and in the front matter as model hubs read it (its answers must be of these
    ``weights``, a digest); or a quickstart's ``results.json``. ``merged``: whether the folder has whole weights, not
    adapters alone. ``facts``: base_model, license, language and datasets of the front matter. Those that are not given
    are those of the model that the first run started from: its hub id, or what its card has if it is a folder; but the
    base of adapters is given or not named.
    Shards are named without their folders, so that a published card reveals nothing about the machine. ValueError if
    ``results`` cannot be read.
    """
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "audio-text-to-text",
        "tags": ["audio", "qwen2_audio"],
    }
    shown, found = _results(Path(results), name, weights) if results is not None else ([], [])
    if found:
        front |= {"model-index": eval_results_to_model_index(name, found)}
    try:
        stages = [_stage(*run) for run in _runs(checkpoint)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"the run around {checkpoint} has settings or records that no run of qa-train writes ({said}): copy the "
            "checkpoint out of it, or restore its files"
        ) from error
    known = _known(checkpoint)
    if not merged:
        known.pop("base_model", None)
    front |= known | dict(facts or {})
    if not merged:
        front |= {"library_name": "peft", "tags": [*front["tags"], "lora"]}
    return _template().render(
        front=yaml.safe_dump(front, sort_keys=False),
        name=name,
        parameters=f"{parameters / 1e6:,.1f}",
        merged=merged,
        version=__version__,
        base=json.dumps(str(front.get("base_model", "BASE"))),
        stages=stages,
        results=shown,
    )


def _template() -> Template:
    """The card, of which Markdown's marks in what a run says are escaped by ``plain``."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["plain"] = plain
    return environment.from_string(CARD.read_text(encoding="utf-8"))


def _results(path: Path, name: str, weights: str | None) -> tuple[list[str], list[EvalResult]]:
    """The card's section of results, and its lines for the front matter."""
    path = path / "results.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "metrics" in found:
            table = markdown_table(found).strip()
            return ["## Results", "On held-out items, with 95 % intervals, after each stage.", table], []
        answered = {result["identity"].get("weights") for result in found.values()}
        table = markdown_report(found).strip()
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds no results to show ({error!r}): give the folder of a qa-train eval, or a quickstart's "
            "results.json"
        ) from error
    if weights is not None and answered != {weights}:
        raise ValueError(
            f"the answers in {path} are of other weights than these: evaluate this checkpoint, then export"
        )
    lines = [
        EvalResult("audio-text-to-text", key, _dataset(key, r), r["benchmark"]["metric"], r["value"])
        for key, r in found.items()
        if r.get("value") is not None
    ]
    what = "By qa-train eval: greedy answers, 95 % intervals; odd answers are in every denominator."
    return ["## Results", what, table], lines


def _dataset(name: str, result: dict[str, Any]) -> str:
    """The benchmark's title; with what a number alone would hide, since hubs show the front matter without the card."""
    notes = []
    if result.get("items_differ"):
        notes.append(f"{result['n']} items of {result['items_expected']}")
    if result.get("failed"):
        notes.append(f"{result['failed']} unanswered")
    if result.get("judge"):
        notes.append(f"judge {result['judge']}")
    title = str(result["benchmark"]["title"] or name)
    return f"{title} ({', '.join(notes)})" if notes else title


def _runs(checkpoint: Path) -> list[tuple[dict[str, Any], list[dict[str, Any]], int, dict[str, Any]]]:
    """Configuration, environments, last step and its record of the run around ``checkpoint`` and of those before.

    Oldest first.
    """
    found: list[tuple[dict[str, Any], list[dict[str, Any]], int, dict[str, Any]]] = []
    seen: set[Path] = set()
    folder: Path | None = checkpoint.resolve()
    while folder is not None:
        run = run_of(folder)
        if run is None or run in seen:
            break
        seen.add(run)
        config = read_yaml(run / "config.yaml")
        starts = run / "environment.json"
        environments = json.loads(starts.read_text(encoding="utf-8")) if starts.is_file() else []
        step = folder.name.removeprefix("checkpoint-")
        last = int(step) if step.isdigit() else config["trainer"]["max_steps"]
        metrics = run / "metrics.jsonl"
        rows = Steps(metrics).rows() if metrics.is_file() else []
        found.append((config, environments, last, next((row for row in rows if row["step"] == last), {})))
        before = from_references(config["model"].get("checkpoint"))
        folder = Path(before).resolve() if before and Path(before).is_dir() else None
    return found[::-1]


def _known(checkpoint: Path) -> dict[str, Any]:
    """The facts of the model that the first run started from."""
    runs = _runs(checkpoint)
    start = from_references(runs[0][0]["model"].get("checkpoint")) if runs else None
    if not start:
        return {}
    if not Path(start).is_dir():
        return {"base_model": start} if _HUB_ID.fullmatch(start) else {}
    card = Path(start) / "README.md"
    if not card.is_file() or card.stat().st_size > _CARD_BYTES:
        return {}
    try:
        found = metadata_load(card) or {}
    except (ValueError, yaml.YAMLError, OSError):
        return {}
    # What somebody else wrote: words and lists of words, no more.
    return {name: found[name] for name in _FACTS if _words(found.get(name))}


def _words(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _stage(
    config: dict[str, Any], environments: list[dict[str, Any]], step: int, record: dict[str, Any]
) -> dict[str, Any]:
    """What the template shows of a run."""
    model, trainer, data = config["model"], config["trainer"], config["data"]
    start = from_references(model.get("checkpoint")) or "; ".join(
        f"{part}: {model[part].get('source') or 'random weights'}" for part in ("encoder", "llm")
    )
    if model.get("checkpoint") and Path(start).is_dir():
        start = "the model before it" if (Path(start) / "config.yaml").is_file() else Path(start).name
    more = []
    if adapted := (model.get("lora") or {}).get("parts"):
        more.append(f"adapters (LoRA, rank {plain(model['lora']['r'])}) on {plain(', '.join(adapted))}")
    if environments:
        last = environments[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items() if version[:1].isdigit())
        commit = last.get("git_commit") or "unknown"
        more.append(f"{plain(last['world_size'])} process(es); {plain(versions)}; commit {plain(commit)}")
    for name, found in record.get("evaluation", {}).items():
        value, interval = record[f"eval/{name}"], f"{found['ci_low']} to {found['ci_high']}"
        more.append(plain(f"held out, {name}: {found['metric']} {value} ({interval}, n = {found['n']})"))
    return {
        "name": config["stage"],
        "start": start,
        "frozen": ", ".join(model.get("freeze") or []) or "nothing",
        "steps": step,
        "batches": trainer["batches_per_step"],
        "tokens": data["tokens_per_batch"],
        "rate": _number(trainer["learning_rate"]),
        "schedule": trainer["lr_scheduler_type"],
        "seed": config["run"]["seed"],
        "more": more,
        "sources": [
            (
                *map(plain, (name, source["task"], source["template"])),
                _number(source["weight"]),
                ", ".join(code(name_of(str(path))) for path in source["shards"]),
            )
            for name, source in data["sources"].items()
        ],
    }


def _number(value: Any) -> str:
    """A number as read; plain text if it is a reference to an environment variable."""
    return f"{value:g}" if isinstance(value, int | float) else plain(value)
