"""Files of scripts/, and of other projects, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "scripts"


def module_at(path: Path) -> Any:
    """The file as a module of its name, run anew."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and NamedTuples look their module up.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def script(name: str) -> Any:
    """scripts/NAME.py as a module."""
    return module_at(SCRIPTS / f"{name}.py")
