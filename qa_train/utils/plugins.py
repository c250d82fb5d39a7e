"""Code of the user's own, by name: a metric or a corpus that no file of this project lists.

A name is ``package.module:attribute``, or an entry point of an installed package in one of the groups below. Names come
from files too (questions, benchmarks, run folders), and these may be anyone's. So nothing is imported because a file
names it: the command line must name its package, ``plugins=[package]``. No YAML file has that key.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib import import_module, metadata
from operator import attrgetter
from pathlib import Path
from typing import Any

from qa_train.utils.process import is_first_rank

METRICS, CORPORA = "qa_train.metrics", "qa_train.corpora"
# No dots after the colon: a file must not reach through a package that is allowed, as in package:os.system.
_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_allowed: dict[str, str] = {}


def allow(names: Sequence[str] | str) -> None:
    """Let code of these packages or modules run in this process, and say so; of several ranks the first one speaks.

    The current folder is searched last. Nothing is imported yet.

    Raises:
        ValueError: a package that is not there.
    """
    for name in [names] if isinstance(names, str) else names:
        top = name.partition(".")[0]
        with _current_folder():
            spec = importlib.util.find_spec(top) if top.isidentifier() else None
        if spec is None:
            raise ValueError(
                f"plugins: there is no package {name!r}, installed or in {Path.cwd()}: give names as Python imports "
                "them, e.g. plugins=[my_package] or plugins=[my_package.metrics]"
            )
        _allowed[name] = spec.origin or str(next(iter(spec.submodule_search_locations or ()), ""))
    if _allowed and is_first_rank():
        told = ", ".join(f"{name} ({where})" for name, where in _allowed.items())
        print(f"own code that may run: {told}", flush=True)


def taken_from(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the other words, the packages of ``plugins=[A,B]``): it is a word of commands, not a key of YAML files."""
    found = [word for word in words if word.startswith("plugins=")]
    names = [name.strip() for word in found for name in word.partition("=")[2].strip("[]").split(",")]
    return [word for word in words if word not in found], [name for name in names if name]


def allowed() -> dict[str, str]:
    """The packages whose code may run, with their files."""
    return dict(_allowed)


def forget() -> None:
    """Allow nothing any more."""
    _allowed.clear()


def place_of(group: str, name: str) -> str | None:
    """``module:attribute`` that a name stands for; None: it is neither of that form nor an entry point of the group.

    Nothing is imported. ValueError: two installed packages have the name.
    """
    if _NAME.fullmatch(name):
        return name
    found = sorted({entry.value for entry in metadata.entry_points(group=group, name=name)})
    if len(found) > 1:
        raise ValueError(f"{name} is the name of {' and of '.join(found)} (entry points {group}): give one of these")
    return found[0] if found else None


def offered(group: str) -> dict[str, str]:
    """Entry points of a group, by name; nothing is imported."""
    return {entry.name: entry.value for entry in metadata.entry_points(group=group)}


def load(group: str, name: str, takes: Sequence[str] = ()) -> Any:
    """What a name stands for; ``takes``: names of the arguments that it must accept, of a function.

    Raises:
        ValueError: the command line does not name its package, there is no such thing, or it takes other arguments.
    """
    place = place_of(group, name)
    if place is None:
        raise ValueError(f"{name!r} is neither package.module:name nor an entry point of the group {group}")
    module, _, attribute = place.partition(":")
    told = name if name == place else f"{name} ({place})"
    if not any(module == each or module.startswith(f"{each}.") for each in _allowed):
        raise ValueError(
            f"{told} is code from outside qa-train, which runs only if the command line names its package: add "
            f"plugins=[{module.partition('.')[0]}] if you trust it"
        )
    try:
        with _current_folder():
            found = attrgetter(attribute)(import_module(module))
    except ImportError as error:
        raise ValueError(f"{told}: importing {module} failed: {error}") from error
    except AttributeError as error:
        public = [each for each in vars(sys.modules.get(module, object())) if not each.startswith("_")]
        raise ValueError(f"{told}: {error}; {module} has {', '.join(sorted(public)) or 'nothing'}") from error
    if takes:
        _check_call(told, found, takes)
    return found


def _check_call(told: str, found: Any, takes: Sequence[str]) -> None:
    wanted = f"expected a function of ({', '.join(takes)})"
    if not callable(found) or isinstance(found, type):
        raise ValueError(f"{told} is {type(found).__name__} {found!r}: {wanted}")
    try:
        signature = inspect.signature(found)
        signature.bind(*takes)
    except ValueError:
        # A function in C that does not tell.
        return
    except TypeError as error:
        raise ValueError(f"{told} takes {signature}: {wanted}") from error


def record(group: str, name: str) -> dict[str, str]:
    """What to keep with a result: ``code`` (module:attribute), ``about`` (its first line), ``sha256`` of its file.

    Raises:
        ValueError: as ``load``.
    """
    found = load(group, name)
    place = str(place_of(group, name))
    file = Path(getattr(sys.modules[place.partition(":")[0]], "__file__", None) or "")
    told = {"code": place, "about": (inspect.getdoc(found) or "").partition("\n")[0]}
    return told | ({"sha256": sha256(file.read_bytes()).hexdigest()} if file.is_file() else {})


def packaged(name: str | Path) -> Path:
    """A path; ``package:folder/file.yaml`` is that file inside an installed package, of which no code is run.

    Raises:
        ValueError: no such package, or a path that leaves it.
    """
    package, colon, inside = str(name).partition(":")
    if not colon or not package.isidentifier() or Path(name).exists():
        return Path(name)
    with _current_folder():
        spec = importlib.util.find_spec(package)
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    if not folders or ".." in Path(inside).parts or Path(inside).is_absolute():
        raise ValueError(f"{name}: expected a file, or package:file inside an installed package")
    return next((path for folder in folders if (path := folder / inside).is_file()), folders[0] / inside)


@contextmanager
def _current_folder() -> Iterator[None]:
    """Search the current folder last, for the time of one import: a folder ./wandb must not hide a package for good."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        # The last one: an import may have added others.
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]
