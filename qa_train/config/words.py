"""The words of a command: its options in order, and slips of the hand such as spaces around "="."""

from __future__ import annotations

import glob
import inspect
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from omegaconf import MISSING

_FLAGS = set(
    "-h --help --hydra-help --version --cfg -c --resolve --package -p --run -r --multirun -m --shell-completion -sc "
    "--config-path -cp --config-name -cn --config-dir -cd --experimental-rerun --info -i --list".split()
)

_BRACES = re.compile(r"\{[^{}]*\}")


def option_fields(kind: type[Any]) -> list[Field[Any]]:
    """The options of a command's dataclass: required ones first, and those of a base with ``is_shared`` last."""
    bases = [base for base in kind.__mro__[1:] if vars(base).get("is_shared")]
    shared = {name for base in bases for name in inspect.get_annotations(base)}
    return sorted(fields(kind), key=lambda field: (field.default != MISSING, field.name in shared))


def is_place(word: str) -> bool:
    """Whether a word with "=" in it is a URL or a path, such as year=2024/*.tar, and no option: a key has no slash, and
    a relative path or pattern begins with what exists.
    """
    # Not Path.exists, for which a long word is an error.
    first = _BRACES.sub("*", word.partition("/")[0])
    return "/" in word.partition("=")[0] or os.path.lexists(word) or any(glob.iglob(first))


def check_words(
    words: Sequence[str],
    command: str,
    habit: Callable[[str], str | None],
    is_key: Callable[[str], bool],
    places: Collection[str] = (),
) -> None:
    """ValueError for words that a shell or a script made of what was meant (ends of lines, spaces around "=", nothing
    at all), and for keys with dashes before them and those of other tools, all at once.

    Args:
        words: what was typed after the command.
        command: its name.
        habit: what a key of another tool is here; None for any other.
        is_key: whether there is such a key.
        places: the words that are paths, whatever they look like.
    """
    dashed, foreign = [], []
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        following = words[i + 1] if i + 1 < len(words) else ""
        if word.endswith("\r"):
            raise ValueError(
                f"{command}: {word!r} ends with a carriage return: the script has Windows line ends; remove them: "
                r"sed -i 's/\r$//' SCRIPT"
            )
        if not word.strip():
            raise ValueError(f"{command}: an empty word between the others: a variable in quotes that is not set?")
        if name.endswith(" ") and is_key(name.strip()):
            raise ValueError(f'{command}: no spaces around "=": write {name.strip()}={value.strip()}')
        if word.startswith("="):
            before = words[i - 1] if i else "key"
            raise ValueError(f'{command}: no spaces around "=": write {before}={word[1:] or following or "value"}')
        if word.endswith("=") and following and "=" not in following and not following.startswith(("-", "~", "+")):
            raise ValueError(f'{command}: no spaces around "=": write {word}{following}')
        if re.match(r"--?[A-Za-z]", name) and name not in _FLAGS and word not in places:
            key = name.lstrip("-").replace("-", "_")
            written = value if equals else following if following and not following.startswith("--") else "value"
            known = habit(key)
            here = f"write {key}={written}, not {word}" if is_key(key) else f"there is no key {key}"
            dashed.append(f"{name}: {known}" if known else here)
        elif equals and word not in places and (known := habit(name)):
            foreign.append(f"there is no key {name}: {known}")
    if dashed:
        foreign.insert(0, f"keys have no dashes before them: {'; '.join(dashed)}")
    if foreign:
        raise ValueError(f"{command}: {'; '.join(foreign)}")


def with_home(word: str) -> str:
    """The word with the home folder for a ``~/`` that begins its value, or an item of a list or an object: shells leave
    it after ``key=``.
    """
    key, equals, value = word.partition("=")
    begins = r"""(^|[\[{,:]\s*["']?)""" if value[:1] in ("[", "{") else r"""(^["']?)"""
    return f"{key}{equals}" + re.sub(rf"{begins}~(?=/)", lambda found: f"{found[1]}{Path.home()}", value)


def check_bare(words: Sequence[str], command: str, is_setting: Callable[[str], bool]) -> None:
    """ValueError for a setting of a stage without "=", as in ``trainer.max_steps 3``."""
    for before, word, following in zip(["", *words], words, [*words[1:], ""]):
        if "=" not in word and before not in _FLAGS and is_setting(word):
            value = "VALUE" if not following or "=" in following or following.startswith("-") else following
            raise ValueError(f'{command}: {word} has no "=": write {word}={value}')
