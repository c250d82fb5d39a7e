"""What `--help` prints: one renderer for commands, options, settings and experiments."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, cast

from qa_train import __version__
from qa_train.command_line.command_table import DATA, SECTIONS, Command, Section
from qa_train.config import STAGES, StorageConfig
from qa_train.config.words import option_fields
from qa_train.utils.terminal import Layout, layout

# Of a pipe; and the most that is read easily in one line.
WIDTH, _WIDEST = 80, 100
_COLUMN = 28


def page() -> Layout:
    """The layout of help: the terminal's width up to a readable one, 80 columns in a pipe."""
    found = layout()
    return replace(found, width=min(found.width or WIDTH, _WIDEST))


def entries(pairs: Iterable[tuple[str, str]]) -> str:
    """Terms in the left column, descriptions in the right one, or below a term that is too long."""
    pairs = list(pairs)
    column = min(_COLUMN, 4 + max((len(term) for term, _ in pairs), default=0))
    return page().entries(pairs, column)


def overview() -> str:
    """What `qa-train --help` prints."""
    return "\n".join(
        [
            f"qa-train {__version__}: train audio-language models with the recipe of Qwen2-Audio",
            "",
            "qa-train COMMAND [key=value ...]",
            "qa-train COMMAND --help explains one command",
            *map(_section, SECTIONS),
            "",
            'completion in this shell: eval "$(qa-train completion bash)", or zsh',
        ]
    )


def group_help() -> str:
    """What `qa-train data --help` prints."""
    return "\n".join(["qa-train data COMMAND --help explains one command", *map(_section, DATA)])


def _section(section: Section) -> str:
    text = f"\n{page().paint(section.title, 'bold')}\n" + entries(
        (command.name, command.about) for command in section.commands
    )
    return f"{text}\n{section.note}" if section.note else text


def command_help(command: Command) -> str:
    """Text of `qa-train COMMAND --help`: usage, description, options with defaults and comments."""
    lines = [f"usage: qa-train {command.name} {command.usage}".rstrip(), ""]
    if command.name in STAGES:
        return "\n".join([f"{lines[0]} [group=option ...] [key=value ...]", *_stage(command.name)])
    lines += [_prose(command.load())]
    if command.options is not None:
        lines += ["", page().paint("options", "bold"), entries(described(command.options))]
    if "settings" in command.takes():
        lines += ["", "Any setting of the stage may follow (qa-train STAGE --help)."]
    return "\n".join(lines)


def _prose(function: Any) -> str:
    """The docstring for a user: paragraphs wrapped to the width, indented blocks unchanged, no ``Raises:``."""
    paragraphs = []
    for paragraph in textwrap.dedent("    " + (function.__doc__ or "")).strip().replace("``", "").split("\n\n"):
        if paragraph.startswith("Raises:"):
            break
        as_is = any(line.startswith(("  ", "- ")) for line in paragraph.splitlines())
        paragraphs.append(paragraph if as_is else _filled(paragraph))
    return "\n\n".join(paragraphs)


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, page().width or WIDTH, break_long_words=False, break_on_hyphens=False)


def comments(kind: type[Any]) -> dict[str, str]:
    """field -> the comment above it, of a dataclass and those it inherits from."""
    found: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(kind.__mro__)):
        lines: list[str] = []
        for line in inspect.getsource(base).splitlines():
            if line.startswith("    #"):
                lines.append(line.lstrip("# "))
            elif match := re.match(r"    (\w+): ", line):
                found[match[1]] = " ".join(lines)
                lines = []
    return found


def described(kind: type[Any], prefix: str = "") -> list[tuple[str, str]]:
    """(key=default, comment above it) of every option of a dataclass, in their order; those of a section by their
    dotted names.
    """
    found, last, told = list[tuple[str, str]](), list[tuple[str, str]](), comments(kind)
    for field in option_fields(kind):
        section = field.default_factory
        if not is_dataclass(section):
            key = f"{field.name}.KEY" if section is dict else field.name
            found.append((f"{prefix}{key}={_default(field.default, section)}", told.get(field.name, "")))
        elif section is StorageConfig:
            # The same in every command, and only for those who keep shards elsewhere.
            keys = ", ".join(each.name for each in fields(StorageConfig))
            last.append((f"{prefix}{field.name}.KEY=", f"How shards at http(s), hf, s3 and gs are read: {keys}."))
        else:
            last += described(cast(type[Any], section), f"{prefix}{field.name}.")
    return found + last


def _default(value: Any, factory: Any) -> str:
    if factory is not dataclasses.MISSING:
        value = factory()
        listed = ",".join(map(str, value)) if isinstance(value, list) else ""
        return listed and f"[{listed if len(listed) < WIDTH - _COLUMN else '...'}]"
    if isinstance(value, bool):
        return str(value).lower()
    # omegaconf.MISSING
    return {"None": "", "???": "... (required)"}.get(str(value), str(value))


def _stage(stage: str) -> list[str]:
    from qa_train.config.guide import GROUPS, about_stage, chosen, experiments, group_options

    bold = partial(page().paint, style="bold")
    lines = ["", _filled(about_stage(stage))]
    for group in GROUPS[1:]:
        default = chosen(stage).get(group)
        title = f"{group}=..." + (f" (default: {default})" if default else "")
        lines += ["", bold(title), entries(group_options(group))]
    lines += ["", bold("experiment=... (a ready set of settings, and its hardware)"), entries(experiments(stage))]
    lines += ["", bold("keys used most (--cfg job shows all of them)"), entries(_KEYS)]
    more = [(f"qa-train {words.format(stage=stage)}", text) for words, text in _MORE]
    return [*lines, "", bold("more"), entries(more)]


_KEYS = (
    ("run.dir=FOLDER", "folder of the run; the same command again resumes it (required)"),
    ("model.checkpoint=PATH", "start from a run, a checkpoint, a Hugging Face folder or a hub id"),
    ("model.freeze=[encoder]", "frozen parts: encoder, projector, llm"),
    ("model.lora.parts=[llm]", "train low-rank adapters of these parts"),
    ("data.tokens_per_batch=8000", "audio and text tokens of a micro-batch on one GPU"),
    ("trainer.max_steps=1000", "optimizer steps"),
    ("trainer.batches_per_step=64", "micro-batches of an optimizer step, over all GPUs"),
    ("trainer.learning_rate=1e-5", "maximum learning rate, reached after the warm-up"),
    ("trainer.bf16=auto", "bfloat16 if the hardware supports it, else float32"),
    ("trainer.gradient_checkpointing.llm=selective", "recompute activations: none, selective or full; also .encoder"),
    ("plugins=[my_package]", "packages whose code may run, for held-out metrics of your own"),
)
_MORE = (
    ("plan {stage} experiment=... gpu=h100 gpus=8", "memory, time and cost, without a GPU"),
    ("plan data stage={stage} experiment=...", "effective mixture and epochs"),
    ("{stage} ... --cfg job", "print the configuration and exit"),
    ("{stage} --config-dir FOLDER ...", "also use your own files FOLDER/data/NAME.yaml ... (./configs is always used)"),
    (
        "{stage} -m trainer.max_steps=100,200 run.dir='runs/${{hydra:job.num}}'",
        "one run per value, one after another",
    ),
    ("{stage} --hydra-help", "every option of Hydra"),
)
