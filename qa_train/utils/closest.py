"""The known name that a person most probably meant, for the hints of error messages."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def closest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word most like ``word``, or None; ``cutoff``: least likeness, from 0 (any) to 1 (equal)."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known: Iterable[str], shown: str = "{}", cutoff: float = 0.6) -> str:
    """ "did you mean X? " with the closest known word, as ``shown`` writes it; "" if none is near."""
    near = closest(word, known, cutoff)
    return f"did you mean {shown.format(near)}? " if near else ""
