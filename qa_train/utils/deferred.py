"""Names that a package offers and imports on first use, so that importing one of its modules loads no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def deferred(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """``__getattr__`` of ``package`` (PEP 562). names: module of it -> the names that it holds, space between them."""
    homes = {name: module for module, held in names.items() for name in held.split()}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find
