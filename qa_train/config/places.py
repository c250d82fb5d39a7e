"""Where the YAML files and the starter data are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def config_dir() -> Path:
    """The folder of the YAML files: inside the installed package, or ``configs/`` of a checkout."""
    packaged = _PACKAGE / "_configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def config_dirs() -> list[Path]:
    """``config_dir``, then ``./configs`` where there is one: files of the user's own, by new names."""
    own = Path("configs").resolve()
    return [config_dir(), *([own] if own.is_dir() and own != config_dir().resolve() else [])]


def with_own_configs(words: Sequence[str]) -> list[str]:
    """Settings with the word that makes Hydra search the user's own folder after ours."""
    own = [f'"file://{folder}"' for folder in config_dirs()[1:]]
    return [*words, *([f"hydra.searchpath=[{','.join(own)}]"] if own else [])]


def starter_dir() -> Path:
    """The folder of the starter data of a checkout (the data are not part of the wheel)."""
    return _PACKAGE.parent / "data" / "starter"
