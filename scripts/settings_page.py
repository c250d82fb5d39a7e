"""Write the tables of docs/settings.md from the dataclasses of stages and commands.

    python scripts/settings_page.py

Every key with its default and the comment above it. What precedes the mark is written by hand.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import MISSING as REQUIRED

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qa_train.command_line.command_table import COMMANDS  # noqa: E402
from qa_train.command_line.help import comments  # noqa: E402
from qa_train.config import BY_NAME, StageConfig, StorageConfig  # noqa: E402
from qa_train.config.words import option_fields  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"
BEGIN = "<!-- made by scripts/settings_page.py -->"
# Longer values are shortened in the column of defaults.
MAX_DEFAULT = 40


def default(one: Field[Any]) -> str:
    """The default as it is typed on the command line."""
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    if value is MISSING or value == REQUIRED:
        return "required"
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else str(value)
    return f"`{text or repr(value)}`" if len(text or "") <= MAX_DEFAULT else "…"


def rows(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, comment) of every key of a section, those of its sections after it."""
    hints, said = get_type_hints(kind), comments(kind)
    for one in option_fields(kind):
        if one.metadata.get("omegaconf_ignore"):
            continue
        if hints[one.name] is StorageConfig and prefix != "data.":
            yield f"{one.name}.KEY", "", "How remote shards are read: the keys of [`data.storage`](#data)."
        elif is_dataclass(hints[one.name]):
            yield from rows(hints[one.name], f"{prefix}{one.name}.")
        else:
            yield f"{prefix}{one.name}", default(one), said.get(one.name, "")
        if entry := BY_NAME.get(prefix + one.name):
            yield from rows(entry, f"{prefix}{one.name}.NAME.")


def table(kind: type[Any], prefix: str = "") -> str:
    """A section as Markdown."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, value, comment in rows(kind, prefix):
        lines.append(f"| `{key}` | {value} | {comment.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def summary(kind: Any) -> str:
    """The first paragraph of the docstring, on one line."""
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def page() -> str:
    """docs/settings.md with the tables of today."""
    parts = [PAGE.read_text(encoding="utf-8").partition(BEGIN)[0] + BEGIN, "## Training stages"]
    hints = get_type_hints(StageConfig)
    for one in fields(StageConfig):
        kind = hints[one.name]
        if is_dataclass(kind):
            parts += [f"### {one.name}", summary(kind), table(kind, f"{one.name}.")]
    parts.append("## Commands")
    for command in COMMANDS.values():
        if (kind := command.options) is not None:
            parts += [f"### `qa-train {command.name}`", summary(command.load()), table(kind)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
