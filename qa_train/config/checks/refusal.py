"""How a value that cannot be is refused."""

from __future__ import annotations

from typing import Any


def require(fits: bool, key: str, value: object, use: str) -> None:
    """ValueError "KEY is VALUE: use ..." for a value that does not fit."""
    if not fits:
        raise ValueError(f"{key} is {value!r}: use {use}")


def check_where(key: str, where: dict[str, Any]) -> None:
    """ValueError for a language that YAML has read as no."""
    wanted = where.get("language")
    if False in (wanted if isinstance(wanted, list) else [wanted]):
        raise ValueError(f"{key}.where.language is false, which YAML reads for no: write 'no' in quotes")
