"""Names that a package offers and imports on first use, so that importing one of its modules loads no other.

They are the imports under ``if TYPE_CHECKING`` in the package's own file, which type checkers read.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def deferred(package: str, file: str) -> tuple[list[str], Callable[[str], Any]]:
    """``__all__`` and ``__getattr__`` (PEP 562) of the package in ``file``: also what it imports at once is offered."""
    homes: dict[str, str] = {}
    offered: list[str] = []
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        later = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for each in node.body if later and isinstance(node, ast.If) else [node]:
            if isinstance(each, ast.ImportFrom) and each.module and each.module.startswith(f"{package}."):
                names = [alias.name for alias in each.names]
                offered += names
                homes |= dict.fromkeys(names if later else (), each.module)

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return offered, find
