"""The words of a command: its options in order, and slips of the hand such as spaces around "="."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
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


def check_words(words: Sequence[str], command: str) -> None:
    """ValueError for a key with dashes before it, and for spaces around "="."""
    for i, word in enumerate(words):
        name = word.partition("=")[0]
        following = words[i + 1] if i + 1 < len(words) else ""
        if word.startswith("="):
            before = words[i - 1] if i else "key"
            raise ValueError(f'{command}: no spaces around "=": write {before}={word[1:] or following or "value"}')
        if word.endswith("=") and following and "=" not in following and not following.startswith(("-", "~", "+")):
            raise ValueError(f'{command}: no spaces around "=": write {word}{following}')
        if name.startswith("--") and name not in _FLAGS:
            key, value = name.lstrip("-").replace("-", "_"), word.partition("=")[2] or following or "value"
            raise ValueError(f"{command}: keys have no dashes before them: write {key}={value}, not {word}")
