"""The quickstart's results file and page: measured values, their targets, and what was missed."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from qa_train.report import write_report
from qa_train.report.results import merge_samples
from qa_train.report.runs import read_run

STAGES = ("before", "pretrain", "sft", "dpo")
# evaluation.sets of the experiments -> titles
TITLES = {
    "wer_en": "WER, recorded English",
    "wer_unseen": "WER, voice never heard",
    "lid": "language identification",
    "sound_class": "sound class",
    "chat": "spoken questions, voices never heard",
    "chat_unseen": "spoken questions, neural voice never heard",
    "ask_language": "asked: which language?",
    "ask_speech": "asked: is there speech? (speech)",
    "ask_speech_sounds": "asked: is there speech? (sounds)",
    "ask_sound": "asked: which sound?",
    "silence": "silence is called silence",
    "wer_es": "WER, recorded Spanish",
    "wer_fr": "WER, recorded French",
    "wer_it": "WER, recorded Italian",
    "wer_ru": "WER, recorded Russian",
    "translate": "translation into English",
}
ENGLISH_WER, DENIAL = TITLES["wer_en"], TITLES["silence"]
ANALYSIS = tuple(title for name, title in TITLES.items() if name.startswith("ask_"))
QUESTIONS = (TITLES["chat"], TITLES["chat_unseen"])
UNITS = {"wer": "%", "accuracy": "%", "contains": "%", "chrf": "chrF"}

# Name in the table -> (target, stage that must reach it).
TARGETS: dict[str, tuple[float, str]] = {
    ENGLISH_WER: (45.0, "pretrain"),
    "language identification": (80.0, "pretrain"),
    "sound class": (40.0, "pretrain"),
    "spoken questions, all": (60.0, "sft"),
    "audio analysis questions, all": (60.0, "sft"),
    "held-out pairs, reward": (70.0, "dpo"),
}
NOTES = {
    ENGLISH_WER: "one speaker, who is also in training: the texts are held out, not the voice",
    "WER, voice never heard": "a neural voice (piper, joe) that training never hears",
    "sound class": "nine classes; always answering the most frequent one gives 22 %",
    "asked: is there speech? (sounds)": "two answers: chance is 50 % together with the row above",
    DENIAL: "asked what is said in a sound without speech, the answer is that there is none",
}


def entry(name: str, results: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """One row of the table from the scores of each stage."""
    found = {stage: scores for stage, scores in results.items() if scores}
    if not found:
        return None
    last = list(found.values())[-1]
    metric = last.get("metric", "accuracy")
    row: dict[str, Any] = {
        "name": name,
        "unit": UNITS.get(metric, "%"),
        "higher_is_better": metric not in ("wer", "cer"),
        "n": last["n"],
        "values": {stage: round(scores["value"], 2) for stage, scores in found.items()},
        "ci": {stage: [round(s["ci_low"], 2), round(s["ci_high"], 2)] for stage, s in found.items()},
    }
    if name in TARGETS:
        row["target"], row["target_stage"] = TARGETS[name]
    if name in NOTES:
        row["note"] = NOTES[name]
    return row


def together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Several accuracies as one over all their items."""
    from qa_train.eval.scores.task_metrics import wilson_interval

    n = sum(part["n"] for part in parts)
    right = round(sum(part["value"] * part["n"] / 100 for part in parts))
    low, high = wilson_interval(right, n)
    return {"metric": "accuracy", "value": 100 * right / n, "ci_low": low, "ci_high": high, "n": n}


def change(
    name: str, scores: dict[str, dict[str, Any]], of: str, stage: str, base: str, limit: float, *, rise: bool = False
) -> dict[str, Any] | None:
    """How much one score moved from a stage to a later one; ``rise``: it should, by ``limit`` at least."""
    if stage not in scores or base not in scores:
        return None
    moved = scores[stage][of]["value"] - scores[base][of]["value"]
    return {
        "name": name,
        "unit": "points",
        "higher_is_better": rise,
        "n": scores[stage][of]["n"],
        "values": {stage: round(moved, 2)},
        "target": limit,
        "target_stage": stage,
    }


def without_target(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a smaller recipe: the targets are the full recipe's."""
    return {key: value for key, value in row.items() if key not in ("target", "target_stage")}


def write_results(quick: Any, progress: dict[str, Any] | None = None) -> Path:
    """report.html of what there is, and of a finished quickstart results.json; returns the path of the last written.

    progress: of a quickstart that is not finished, as in ``qa_train.report.results``.
    """
    root: Path = quick.root
    results = collected(quick)
    if progress is not None:
        results["progress"] = progress
        if now := progress.get("now"):
            results["seconds"][now] = results["seconds"].get(now, 0.0) + progress["spent_s"]
    runs = {stage: root / stage for stage in STAGES[1:]}
    # The clips are copies that the evaluations made.
    page = write_report(results, runs, root / "report.html", below=root)
    if progress is not None:
        return page
    path = root / "results.json"
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False))
    return path


def collected(quick: Any) -> dict[str, Any]:
    """The results of the parts that are done."""
    root: Path = quick.root
    scores = {}
    for stage in STAGES:
        path = root / "eval" / f"{stage}.json"
        if path.is_file():
            scores[stage] = json.loads(path.read_text())
    for stage_scores in scores.values():
        stage_scores["spoken questions, all"] = together([stage_scores[name] for name in QUESTIONS])
        stage_scores["audio analysis questions, all"] = together([stage_scores[name] for name in ANALYSIS])
    names = list(dict.fromkeys(name for stage_scores in scores.values() for name in stage_scores))
    first = [name for name in (*TARGETS, DENIAL) if name in names]
    rows = [entry(name, {s: scores[s][name] for s in scores if name in scores[s]}) for name in [*first, *names]]
    rows += [
        change("WER change by SFT", scores, ENGLISH_WER, "sft", "pretrain", 5.0),
        change("WER change by DPO", scores, ENGLISH_WER, "dpo", "sft", 1.0),
        # What DPO is for. Half as much would lie inside the intervals of the two scores.
        change("silence called silence, rise by DPO", scores, DENIAL, "dpo", "sft", 20.0, rise=True),
    ]
    unique = {row["name"]: row for row in rows if row}
    samples = {
        stage: [s for each in found.values() for s in each.get("samples", [])] for stage, found in scores.items()
    }
    full = quick.recipe.name == "full"
    word = "" if full else f" --{quick.recipe.name}"
    return {
        "title": "qa-train quickstart" + ("" if full else f", {quick.recipe.name} recipe"),
        "created": time.strftime("%Y-%m-%d %H:%M"),
        "notes": [quick.recipe.note] if quick.recipe.note else [],
        "metrics": [row if full else without_target(row) for row in unique.values()],
        "seconds": {name: round(value, 1) for name, value in quick.seconds.items()},
        "samples": merge_samples(samples),
        "environment": environment_facts(root, quick.recipe.name),
        "commands": [f"scripts/quickstart.sh {root}{word}"],
    }


def environment_facts(root: Path, recipe: str) -> dict[str, str]:
    """What explains the numbers later: when, on what processor, with which versions, commit and seed."""
    import torch

    from qa_train.doctor.processor import instructions
    from qa_train.train.job.run import environment

    found = environment()
    loops = torch.backends.cpu.get_cpu_capability()
    seed = (
        read_run(root / "pretrain", "").setting("run.seed") if (root / "pretrain" / "metrics.jsonl").is_file() else None
    )
    facts = {
        "date": found["time"],
        "processor": f"{platform.machine()}, {found['cpus']} CPUs",
        "instruction sets": instructions(torch.cpu.get_capabilities(), loops, dict(os.environ)).found,
        "system": found["system"],
        "python": found["python"],
        **{name: version for name, version in found["versions"].items() if version != "not installed"},
        "commit": found["git_commit"] or "not in a git repository",
        "recipe": recipe,
    }
    return facts | ({} if seed is None else {"seed": str(seed)})
