"""What people type who come from transformers, TRL, peft, ms-swift or LLaMA-Factory, and what it is here: habits.yaml.

A test compares the tables with the fields of the installed libraries: each of them is a setting of that name, or is
answered here.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

import yaml


@cache
def tables() -> dict[str, dict[str, list[str]]]:
    """Answers with the names that they stand for, by table of habits.yaml."""
    stored = yaml.safe_load(Path(__file__).with_name("habits.yaml").read_text(encoding="utf-8"))
    return {table: {answer: names.split() for answer, names in rows.items()} for table, rows in stored.items()}


def habit(key: str) -> str | None:
    """What a key of another tool, with or without a section before it, is here; None for an unknown one."""
    return _answers().get(key.rpartition(".")[2])


def option_habit(name: str, options: Collection[str]) -> str | None:
    """What an option of another tool is for a command with these ``options``; None for an unknown one."""
    for answer, names in tables()["options"].items():
        known, _, value = answer.partition("=")
        option = next((each for each in known.split() if each in options), None)
        if option and name in names:
            return f"here it is {option}={value}"
    if "checkpoint" not in options:
        return None
    return next((f"not needed: {why}" for why, names in tables()["no_option"].items() if name in names), None)


@cache
def _answers() -> dict[str, str]:
    here = {name: f"here it is {answer}" for answer, names in tables()["settings"].items() for name in names}
    return here | {name: f"not needed: {why}" for why, names in tables()["no_setting"].items() for name in names}
