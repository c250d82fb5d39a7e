"""The help of a training stage, and what a shell can complete, read from the YAML files themselves."""

from __future__ import annotations

import inspect
import re
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml

from qa_train.config.nearest import free_sections, how_to_clear, valid_keys
from qa_train.config.places import config_dir

GROUPS = ("experiment", "model", "data", "trainer", "deepspeed", "tracking")

_KEYS = """
keys used most (all: qa-train {stage} --cfg job run.dir=x experiment=...)
  run.dir=FOLDER                     where the run lives; the same command again resumes it (required)
  model.checkpoint=PATH              start from a run, a checkpoint, a Hugging Face folder or a hub id
  model.freeze=[encoder]             parts that do not train: encoder, projector, llm
  model.lora.parts=[llm]             train low-rank adapters of these parts instead
  data.tokens_per_batch=8000         audio and text tokens that one GPU runs at a time
  trainer.max_steps=1000             optimizer steps
  trainer.batches_per_step=64        batches of one step over all GPUs, whatever their number
  trainer.learning_rate=1e-5
  trainer.bf16=auto                  bfloat16 where the hardware multiplies it, else float32
  trainer.gradient_checkpointing.llm=selective   none, selective or full; also .encoder

more
  qa-train plan {stage} experiment=... gpu=h100 gpus=8     memory, time and cost, without a GPU
  qa-train plan data stage={stage} experiment=...          what the mixture comes to
  qa-train {stage} --cfg job ...     the configuration that would run, and nothing else
  qa-train {stage} -m trainer.learning_rate=1e-4,3e-4 'run.dir=runs/sweep-${{hydra:job.num}}'   one run after another
  qa-train {stage} --hydra-help      every option of Hydra
"""


def stage_help(stage: str) -> str:
    """What ``qa-train STAGE --help`` prints: the stage, its groups and options, the experiments, the usual keys."""
    root = config_dir()
    opening = _comment(root / f"{stage}.yaml").partition(". qa-train")[0]
    lines = [f"qa-train {stage} [group=option ...] [key=value ...]", "", opening + "."]
    chosen = _defaults(root / f"{stage}.yaml")
    for group in GROUPS[1:]:
        lines += ["", f"{group}=..." + (f" (default: {chosen[group]})" if group in chosen else "")]
        for path in sorted((root / group).glob("*.yaml")):
            lines.append(f"  {path.stem:<26} {shorten(_comment(path), 92, placeholder=' ...')}".rstrip())
    lines += ["", "experiment=... (what differs from the defaults, as one file)"]
    for path in sorted((root / "experiment").glob("*.yaml")):
        facts = _facts(path)
        if re.search(rf"(?:qa-train|qa_train) (?:\w+\|)*{stage}\b", facts.get("Command", "")):
            lines.append(f"  {path.stem:<26} {shorten(facts.get('Hardware', ''), 92, placeholder=' ...')}")
    return "\n".join(lines) + "\n" + _KEYS.format(stage=stage)


def options_help(kind: type[Any]) -> str:
    """The fields of a command's dataclass as ``key=default``, each with the comment above it."""
    lines: list[str] = []
    comment: list[str] = []
    # Its own options, then those it inherits.
    classes = [base for base in kind.__mro__ if base is not object]
    for line in "\n".join(map(inspect.getsource, classes)).splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
        elif found := re.fullmatch(r"    (\w+): [^=]+(?: = (.*))?", line):
            name, default = found.groups()
            value = {"MISSING": "(required)", "None": "null", "True": "true", "False": "false"}.get(
                default, default or ""
            )
            shown = (
                f"{name}.KEY=..." if re.fullmatch(r"field\(default_factory=\w+Config\)", value) else f"{name}={value}"
            )
            lines.append(f"  {shown:<28} {' '.join(comment)}".rstrip())
            comment = []
    return "\n".join(lines)


def check_experiment(words: list[str]) -> None:
    """ValueError for words that Hydra takes without doing what they say.

    An ``experiment=`` that is not there (the group is optional), and a dictionary set to {}, which it merges.
    """
    for word in words:
        name, equals, value = word.partition("=")
        if equals and value.replace(" ", "") == "{}" and name.lstrip("+") in free_sections():
            raise ValueError(f"{word} would clear nothing: {how_to_clear(name.lstrip('+'))}")
    if any(word.startswith(("--config-dir", "-cd", "--config-path", "-cp")) for word in words):
        return
    known = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
    for word in words:
        name, _, value = word.lstrip("+").partition("=")
        for each in value.split(",") if name == "experiment" else []:
            if each not in (*known, "null"):
                near = get_close_matches(each, known, n=1, cutoff=0.4)
                hint = f"did you mean experiment={near[0]}? " if near else ""
                raise ValueError(f"there is no experiment={each}: {hint}there are {', '.join(known)}")


def complete_stage(word: str) -> list[str]:
    """Completions of one word of a training stage: ``group=option`` and ``key=``."""
    name, mark, value = word.partition("=")
    if mark and name in GROUPS:
        return [f"{name}={p.stem}" for p in sorted((config_dir() / name).glob(f"{value}*.yaml"))]
    if mark:
        return []
    return [f"{key}=" for key in sorted({*GROUPS, *valid_keys()}) if key.startswith(word)]


def _comment(path: Path) -> str:
    """The comment that a YAML file opens with, on one line."""
    words = []
    for line in path.read_text().splitlines():
        if not line.startswith("#") or line.startswith("# @"):
            break
        words.append(line.lstrip("# "))
    return " ".join(words)


def _facts(path: Path) -> dict[str, str]:
    """Command, Hardware, Time and Expected from an experiment's header."""
    found = re.findall(r"^# (\w+): +(.*)$", path.read_text(), flags=re.MULTILINE)
    # Of two lines of one name the first counts.
    return dict(reversed(found))


def _defaults(path: Path) -> dict[str, str]:
    entries = yaml.safe_load(path.read_text())["defaults"]
    return {name: option for each in entries if isinstance(each, dict) for name, option in each.items()}
