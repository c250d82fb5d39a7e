"""Where the YAML files and the starter data are."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def config_dir() -> Path:
    """The folder of the YAML files: inside the installed package, or ``configs/`` of a checkout."""
    packaged = _PACKAGE / "_configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def starter_dir() -> Path:
    """The folder of the starter data of a checkout (the data are not part of the wheel)."""
    return _PACKAGE.parent / "data" / "starter"
