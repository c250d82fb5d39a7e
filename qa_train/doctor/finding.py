"""One thing that the doctor looked at: its state, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing looked at. state: "ok", "note" (works, but know it) or "problem"; remedy: what to do, unless ok."""

    name: str
    state: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}[self.state]
        text = f"{mark}  {self.name:<22} {self.found}"
        return f"{text}\n{'':>33}-> {self.remedy}" if self.remedy else text


def ok(name: str, found: str) -> Finding:
    """A finding that needs no action."""
    return Finding(name, "ok", found)


def note(name: str, found: str, remedy: str) -> Finding:
    """A note, with an optional remedy."""
    return Finding(name, "note", found, remedy)


def problem(name: str, found: str, remedy: str) -> Finding:
    """A problem, with its remedy; the exit code becomes 1."""
    return Finding(name, "problem", found, remedy)
