"""Where the YAML files and the starter data are."""

from __future__ import annotations

import os
from pathlib import Path

from qa_train import __version__

_PACKAGE = Path(__file__).parent.parent


def config_dir() -> Path:
    """The folder of the YAML files: inside the installed package, or ``configs/`` of a checkout."""
    packaged = _PACKAGE / "_configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def starter_dir() -> Path:
    """The folder of the starter data: in a checkout; else of what stands for them, in the user's cache.

    The recordings are not part of the wheel: see `qa_train.data.stand_in`.
    """
    recordings = _PACKAGE.parent / "data" / "starter"
    if recordings.is_dir():
        return recordings
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "qa-train" / f"starter-{__version__}"
