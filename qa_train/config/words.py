"""The words of a command: its options in order, and slips of the hand such as spaces around "="."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from typing import Any

_FLAGS = set(
    "-h --help --hydra-help --version --cfg -c --resolve --package -p --run -r --multirun -m --shell-completion -sc "
    "--config-path -cp --config-name -cn --config-dir -cd --experimental-rerun --info -i --list".split()
)


def option_fields(kind: type[Any]) -> list[Field[Any]]:
    """The options of a command's dataclass: its own before those that it inherits."""
    own = inspect.get_annotations(kind)
    return sorted(fields(kind), key=lambda field: field.name not in own)


def check_words(words: Sequence[str], command: str, habit: Callable[[str], str | None]) -> None:
    """ValueError for spaces around "=", for keys with dashes before them, and for those of other tools, all at once.

    habit: what a key of another tool is here; None for any other.
    """
    dashed, foreign = [], []
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        following = words[i + 1] if i + 1 < len(words) else ""
        if word.startswith("="):
            before = words[i - 1] if i else "key"
            raise ValueError(f'{command}: no spaces around "=": write {before}={word[1:] or following or "value"}')
        if word.endswith("=") and following and "=" not in following and not following.startswith(("-", "~", "+")):
            raise ValueError(f'{command}: no spaces around "=": write {word}{following}')
        if name.startswith("--") and name not in _FLAGS:
            key = name.lstrip("-").replace("-", "_")
            written = value if equals else following if following and not following.startswith("--") else "value"
            known = habit(key)
            dashed.append(f"{name}: {known}" if known else f"write {key}={written}, not {word}")
        elif equals and (known := habit(name)):
            foreign.append(f"there is no key {name}: {known}")
    if dashed:
        foreign.insert(0, f"keys have no dashes before them: {'; '.join(dashed)}")
    if foreign:
        raise ValueError(f"{command}: {'; '.join(foreign)}")
