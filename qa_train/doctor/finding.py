"""One thing that the doctor looked at: its state, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from qa_train.utils.terminal import PLAIN, Layout

_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "problem": ("PROBLEM", "red")}
# Where what was found begins.
_COLUMN = 32


@dataclass(frozen=True)
class Finding:
    """One thing looked at. state: "ok", "note" (works, but know it) or "problem"; remedy: what to do, unless ok."""

    name: str
    state: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return self.shown(PLAIN)

    def shown(self, page: Layout) -> str:
        """Its line, and the remedy below it, laid out for ``page``."""
        mark, colour = _MARKS[self.state]
        term = f"{page.paint(mark, colour)}{'':<{9 - len(mark)}}{self.name}"
        text = page.entries([(term, self.found)], _COLUMN, indent=0, style="")
        return f"{text}\n" + page.entries([("", f"-> {self.remedy}")], _COLUMN) if self.remedy else text


def ok(name: str, found: str) -> Finding:
    """A finding that needs no action."""
    return Finding(name, "ok", found)


def note(name: str, found: str, remedy: str) -> Finding:
    """A note, with an optional remedy."""
    return Finding(name, "note", found, remedy)


def problem(name: str, found: str, remedy: str) -> Finding:
    """A problem, with its remedy; the exit code becomes 1."""
    return Finding(name, "problem", found, remedy)
