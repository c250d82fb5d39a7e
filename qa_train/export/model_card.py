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

from qa_train import __version__
from qa_train.config import from_references
from qa_train.report.markdown import code, plain
from qa_train.report.results import markdown_table
from qa_train.report.runs import read_metrics
from qa_train.report.scores_page import markdown_report
from qa_train.utils.masking import name_of
from qa_train.utils.safe_yaml import read_yaml

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Of the card of a base; longer ones are not read.
_CARD_BYTES = 2**20
_USE = """```python
import numpy as np
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration


def windows(wave, size=480_000, shortest=1_600):
    \"\"\"A clip as the model was trained on it: windows of at most 30 s, the last of at least 0.1 s.\"\"\"
    cuts = list(range(size, len(wave), size))
    if cuts and len(wave) - cuts[-1] < shortest:
        cuts[-1] -= shortest
    return np.split(wave, cuts)


processor = AutoProcessor.from_pretrained("FOLDER")
model = Qwen2AudioForConditionalGeneration.from_pretrained("FOLDER")
question = [{"type": "audio", "audio_url": "clip.wav"}, {"type": "text", "text": "What is said?"}]
chat = [{"role": "user", "content": question}]
text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
parts = windows(wave)  # wave: float32 [n] at 16 kHz
text = text.replace("<|AUDIO|>", "<|AUDIO|>" * len(parts))
inputs = processor(text=text, audio=parts, sampling_rate=16_000, return_tensors="pt")
reply = model.generate(**inputs, max_new_tokens=128)[:, inputs["input_ids"].shape[1]:]
print(processor.batch_decode(reply, skip_special_tokens=True)[0])
```

The processor cuts a clip at 30 s without a warning. `windows` passes a longer one in parts, all between one pair of
audio marks, as in training. To a server (`transformers serve`, `vllm serve`), send the parts as clips that follow each
other, with `"chat_template_kwargs": {"windows": true}`."""


_ADAPTED = """base = Qwen2AudioForConditionalGeneration.from_pretrained("BASE")
model = PeftModel.from_pretrained(base, "FOLDER")"""
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
    use = _USE
    if not merged:
        front |= {"library_name": "peft", "tags": [*front["tags"], "lora"]}
        use = use.replace('model = Qwen2AudioForConditionalGeneration.from_pretrained("FOLDER")', _ADAPTED)
        use = use.replace("import numpy as np\n", "import numpy as np\nfrom peft import PeftModel\n")
        use = use.replace('"BASE"', json.dumps(str(front.get("base_model", "BASE"))))
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {plain(name)}",
        "An audio-language model of the Qwen2-Audio architecture "
        f"([arXiv 2407.10759](https://arxiv.org/abs/2407.10759)), {parameters / 1e6:,.1f} M parameters"
        f"{'' if merged else ' of adapters'}, trained with "
        f"qa-train {__version__}. It takes audio and text, and answers in text.",
        "## Use",
        use,
        "## Training",
        *stages,
    ]
    if parts[-1] == "## Training":
        parts.append("The checkpoint does not belong to a run of qa-train, so nothing is known of its training.")
    parts += shown
    parts += [
        "## Licence",
        "Weights follow the licences of the checkpoints and of the data above; check them before you publish.",
    ]
    return "\n\n".join(parts) + "\n"


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
        run = next(
            (each for each in (folder, folder.parent, folder.parent.parent) if (each / "config.yaml").is_file()), None
        )
        if run is None or run in seen:
            break
        seen.add(run)
        config = read_yaml(run / "config.yaml")
        starts = run / "environment.json"
        environments = json.loads(starts.read_text(encoding="utf-8")) if starts.is_file() else []
        step = folder.name.removeprefix("checkpoint-")
        last = int(step) if step.isdigit() else config["trainer"]["max_steps"]
        rows = [row for row in read_metrics(run) if row["step"] == last and "evaluation" in row]
        found.append((config, environments, last, rows[-1] if rows else {}))
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


def _stage(config: dict[str, Any], environments: list[dict[str, Any]], step: int, record: dict[str, Any]) -> str:
    model, trainer, data = config["model"], config["trainer"], config["data"]
    start = from_references(model.get("checkpoint")) or "; ".join(
        f"{part}: {model[part].get('source') or 'random weights'}" for part in ("encoder", "llm")
    )
    if model.get("checkpoint") and Path(start).is_dir():
        start = "the model before it" if (Path(start) / "config.yaml").is_file() else Path(start).name
    lines = [
        f"### {plain(config['stage'])}",
        f"- from {plain(start)}; frozen: {plain(', '.join(model.get('freeze') or []) or 'nothing')}",
        f"- {step} steps of {plain(trainer['batches_per_step'])} x {plain(data['tokens_per_batch'])} tokens, learning "
        f"rate {_number(trainer['learning_rate'])} ({plain(trainer['lr_scheduler_type'])}), "
        f"seed {plain(config['run']['seed'])}",
    ]
    if adapted := (model.get("lora") or {}).get("parts"):
        rank = plain(model["lora"]["r"])
        lines.append(f"- adapters (LoRA, rank {rank}) on {plain(', '.join(adapted))}")
    if environments:
        last = environments[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items() if version[:1].isdigit())
        commit = last.get("git_commit") or "unknown"
        lines.append(f"- {plain(last['world_size'])} process(es); {plain(versions)}; commit {plain(commit)}")
    for name, found in record.get("evaluation", {}).items():
        value, interval = record[f"eval/{name}"], f"{found['ci_low']} to {found['ci_high']}"
        lines.append(plain(f"- held out, {name}: {found['metric']} {value} ({interval}, n = {found['n']})"))
    lines += ["", "| source | task | template | weight | shards |", "|---|---|---|---:|---|"]
    for name, source in data["sources"].items():
        shards = ", ".join(code(name_of(str(path))) for path in source["shards"])
        told = " | ".join(plain(cell) for cell in (name, source["task"], source["template"]))
        lines.append(f"| {told} | {_number(source['weight'])} | {shards} |")
    return "\n".join(lines)


def _number(value: Any) -> str:
    """A number as read; plain text if it is a reference to an environment variable."""
    return f"{value:g}" if isinstance(value, int | float) else plain(value)
