"""Where the YAML files are, ours and the user's own, and the starter data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

GROUPS = ("experiment", "model", "data", "trainer", "deepspeed", "tracking")
_PACKAGE = Path(__file__).parent.parent
# Of one's own files, in the folder in which a command is given; more folders come with --config-dir.
_OWN = "configs"
_FLAGS = ("--config-dir", "-cd")
# Those that `search_also` was given.
_given: list[Path] = []


def config_dir() -> Path:
    """The folder of the YAML files: inside the installed package, or ``configs/`` of a checkout."""
    packaged = _PACKAGE / "_configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def own_config_dirs() -> list[Path]:
    """Folders of the user's own YAML files that are there: those of ``--config-dir``, then ``./configs``."""
    ours = config_dir().resolve()
    folders = [folder.resolve() for folder in (*_given, Path(_OWN)) if folder.is_dir()]
    return [folder for folder in dict.fromkeys(folders) if folder != ours]


def option_files(group: str) -> list[Path]:
    """The files of a group's options, in all folders, by name. Copies of ours, as in a checkout, are ours."""
    ours = {path.name: path for path in _yaml_files(config_dir() / group)}
    own = [path for folder in own_config_dirs() for path in _yaml_files(folder / group)]
    added = [path for path in own if path.name not in ours or not _is_copy(path, ours[path.name])]
    return sorted([*ours.values(), *added], key=lambda path: path.stem)


def _yaml_files(folder: Path) -> list[Path]:
    # Editors leave hidden files and links to nowhere.
    return [path for path in folder.glob("*.yaml") if path.is_file() and not path.name.startswith(".")]


def _is_copy(path: Path, ours: Path) -> bool:
    """Whether it is the same file, or one of another version, in a checkout of qa-train."""
    checkout = path.parent.parent.parent / "qa_train" / "config" / Path(__file__).name
    return checkout.is_file() or path.read_bytes() == ours.read_bytes()


def searched(group: str) -> str:
    """Where a group's options are looked for, for an error message."""
    own = own_config_dirs()
    here = [] if Path(_OWN).resolve() in (*own, config_dir().resolve()) else [f"{_OWN}/{group} (not there)"]
    return f"looked in {', '.join([*(str(folder / group) for folder in (config_dir(), *own)), *here])}"


def without_config_dirs(words: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Words of a command line without ``--config-dir FOLDER`` (``-cd``), and these folders.

    Raises:
        ValueError: no folder is given, or it does not exist.
    """
    rest, folders, waiting = list[str](), list[Path](), iter(words)
    for word in waiting:
        flag, equals, value = word.partition("=")
        if flag not in _FLAGS:
            rest.append(word)
            continue
        folder = Path(value if equals else next(waiting, ""))
        if not folder.is_dir() or folder == Path():
            raise ValueError(
                f"{flag}: {folder} is not a folder: give one that holds data/NAME.yaml, model/NAME.yaml ..."
            )
        folders.append(folder)
    return rest, folders


def search_also(folders: Sequence[Path]) -> None:
    """Look for configurations in these folders too, until the next call."""
    _given[:] = folders


def starter_dir() -> Path:
    """The folder of the starter data: in a checkout; else of what stands for them, in the user's cache.

    The recordings are not part of the wheel: see `qa_train.data.stand_in`.
    """
    recordings = _PACKAGE.parent / "data" / "starter"
    if recordings.is_dir():
        return recordings
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "qa-train" / "stand-in-1"
