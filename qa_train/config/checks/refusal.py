"""How a value that cannot be is refused."""

from __future__ import annotations


def require(fits: bool, key: str, value: object, use: str) -> None:
    """ValueError "KEY is VALUE: use ..." for a value that does not fit."""
    if not fits:
        raise ValueError(f"{key} is {value!r}: use {use}")
