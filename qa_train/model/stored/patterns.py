"""Regular expressions of tokenizers that others wrote: whether matching them can take exponential time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# What a repeat may follow: an escape (with the name of its class), a class of characters, a group's beginning with its
# kind, its end, alternatives, a repeat (greedy, lazy or possessive), any other character.
_TOKEN = re.compile(
    r"(?P<escape>\\(?:[pPxuNkgo]\{[^}]*\}|.))|(?P<open>\((?:\?(?:[a-zA-Z-]*:|[=!>]|<[=!]|P?<\w+>|[a-zA-Z-]+(?=\))))?)"
    r"|(?P<close>\))|(?P<either>\|)|(?P<repeat>(?:[*+?]|\{\d*,?\d*\})[+?]?)|(?P<set>\[)|(?P<other>.)",
    re.DOTALL,
)
# A group repeated more often than this counts as repeated without end.
_FEW = 8


def expressions(content: Any, depth: int = 0) -> Iterator[str]:
    """Every ``{"Regex": ...}`` of a part of a tokenizer.json."""
    if isinstance(content, dict) and depth < 64:
        if isinstance(found := content.get("Regex"), str):
            yield found
        for value in content.values():
            yield from expressions(value, depth + 1)
    elif isinstance(content, list) and depth < 64:
        for value in content:
            yield from expressions(value, depth + 1)


def ambiguous(pattern: str) -> str | None:
    """The first part that can match a text in exponentially many ways, or None.

    That is a group which is repeated without end, or often, and holds such a repeat or alternatives itself, as
    ``(a+)+`` or ``(a|aa)*``. The expressions of the released tokenizers have none: they repeat classes of characters.
    """
    # Of each open group: where it begins, and whether it holds a repeat or alternatives.
    groups: list[tuple[int, bool]] = [(0, False)]
    last: tuple[int, bool] = (0, False)  # of what the next repeat would follow
    place = 0
    while place < len(pattern):
        found = _TOKEN.match(pattern, place)
        assert found is not None  # "other" takes any character
        start, place, kind = place, found.end(), found.lastgroup
        if kind == "repeat":
            if _often(found["repeat"]):
                if last[1]:
                    return pattern[last[0] : place]
                groups[-1] = (groups[-1][0], True)
            continue
        if kind == "set":
            place = _end_of_set(pattern, start)
        last = (start, False)
        if kind == "open":
            groups.append((start, False))
        elif kind == "either":
            groups[-1] = (groups[-1][0], True)
        elif kind == "close" and len(groups) > 1:
            last = groups.pop()
            groups[-1] = (groups[-1][0], groups[-1][1] or last[1])
    return None


def _often(repeat: str) -> bool:
    if repeat[0] in "*+":
        return True
    numbers = repeat.rstrip("+?").strip("{}")
    if repeat[0] == "?" or not numbers:
        return False
    least, comma, most = numbers.partition(",")
    return (comma != "" and most == "") or int(most or least or 0) > _FEW


def _end_of_set(pattern: str, start: int) -> int:
    """Where a class of characters ends; classes may hold others, and begin with ``]``."""
    depth, place = 0, start
    while place < len(pattern):
        char = pattern[place]
        if char == "\\":
            place += 1
        elif char == "[":
            depth += 1
            place += pattern.startswith("[^", place)
            place += pattern.startswith("]", place + 1)
        elif char == "]":
            depth -= 1
            if depth == 0:
                return place + 1
        place += 1
    return len(pattern)
