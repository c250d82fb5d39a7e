"""In which form a checkpoint is asked: "chat" (ChatML), or "base", audio and the prompt of a task.

The run of a checkpoint has it: the templates of its training data. A folder or hub id outside a run does not say.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from qa_train.config import run_of
from qa_train.data.text.sample import TEMPLATES
from qa_train.utils.process import is_first_rank
from qa_train.utils.safe_yaml import read_yaml


def template_for(checkpoint: str | None, asked: str | None) -> str:
    """``asked``, or else the form that the run of ``checkpoint`` trained; "chat" if that is unknown, or both.

    ``checkpoint`` is None for a model behind an endpoint. A line on stderr tells where "base" was not asked for.

    Raises:
        ValueError: ``asked`` is neither of the two.
    """
    if asked is not None:
        if asked not in TEMPLATES:
            raise ValueError(f"template={asked}: use {' or '.join(TEMPLATES)}, or leave it out")
        return asked
    run, form = _trained(checkpoint)
    if form != "base":
        return "chat"
    _say(f"{checkpoint} is asked with template=base: the data of its run had no chat ({run}/config.yaml)")
    return form


def warn_of_form(checkpoint: str | None, template: str, remedy: str) -> None:
    """A line on stderr for a checkpoint that will be asked in ``template``, and whose run had only the other."""
    run, form = _trained(checkpoint)
    if form not in (None, template):
        had = f"the data of its run had only template={form} ({run}/config.yaml)"
        _say(f"{checkpoint} is asked with template={template}, and {had}: {remedy}")


def _say(line: str) -> None:
    if is_first_rank():
        print(line, file=sys.stderr, flush=True)


def _trained(checkpoint: str | None) -> tuple[Path | None, str | None]:
    """The run of a checkpoint, and the form of all its training data; None where there is none, or the forms differ."""
    place = None if checkpoint is None else Path(checkpoint).resolve()
    # A hub id is no folder here, even if this is a run.
    run = run_of(place) if place is not None and place.exists() else None
    if run is None:
        return None, None
    try:
        sources = read_yaml(run / "config.yaml")["data"]["sources"].values()
        templates = {source["template"] for source in sources if source.get("weight") != 0}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        # The file of another program, or damaged: `qa-train doctor` reads it, an answer needs only the weights.
        return run, None
    return run, templates.pop() if len(templates) == 1 else None
