"""Text as its reader sees it: the one place that knows widths and colours, and lays out paragraphs, lists and tables.

What prints asks `layout` for the `Layout` of its stream. What is kept in a file, and what a pipe or a log receives, is
``PLAIN``: no colours, and lines as long as they are, so that ``grep`` and diffs work.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TextIO

# Of a terminal that does not say how wide it is: some remote ones (srun --pty, containers).
STANDARD = 80
# A terminal narrower than this is treated as if it had so many columns.
_NARROWEST = 40
_STYLES = {"bold": "1", "red": "1;31", "green": "32", "yellow": "33", "cyan": "36"}
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
# Other kinds of space do not break a line.
_SPACES = " \n\r\v\f"
_SPACES_OR_WORD = re.compile(f"[{_SPACES}]+|[^{_SPACES}]+")
# A character with the codes that colour it.
_SIGN = re.compile(r"(?:\x1b\[[1-9][0-9;]*m)*.(?:\x1b\[0m)*", re.DOTALL)
# Less room than this beside a table, and notes go below it.
_NOTES = 18


@dataclass(frozen=True)
class Layout:
    """How text is laid out: ``width`` in columns, None for lines of any length; ``colour``: whether escape codes may be
    used."""

    width: int | None = None
    colour: bool = False

    def paint(self, text: str, style: str) -> str:
        """``text`` in a style ("bold", "red", "green", "yellow" or "cyan"), where there are colours."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.colour and style and text else text

    def fold(self, text: str) -> str:
        """``text`` with its longer lines broken between words; what follows is indented like the line, and by two more.

        A word that is longer than the width, such as a path, stays in one piece; wide characters, of languages without
        spaces, are broken anywhere.
        """
        if self.width is None:
            return text
        lines = []
        for line in text.split("\n"):
            if columns(line) <= self.width:
                lines.append(line)
                continue
            indent = line[: len(line) - len(line.lstrip())]
            lines += self._wrap(line.strip(), indent, indent + "  ")
        return "\n".join(lines)

    def entries(self, pairs: Iterable[tuple[str, str]], column: int, *, indent: int = 2, style: str = "cyan") -> str:
        """Terms on the left, descriptions from ``column`` on, or below a term that is too long."""
        lines = []
        for term, text in pairs:
            margin = " " * column
            told = self._wrap(text, margin, margin) if text else []
            left = " " * indent + self.paint(term, style)
            if told and columns(left) < column:
                left += " " * (column - columns(left)) + told.pop(0)[column:]
            lines += [left, *told]
        return "\n".join(line.rstrip() for line in lines)

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, notes: Sequence[str] = ()
    ) -> str:
        """Rows of cells under their titles, indented by two.

        Args:
            head: a title per column, and one for the notes if there are any.
            rows: cells; none is cut or broken. Where they need more than the width, the first one has its own line.
            left: the first columns, of text, are flush left; the others, of numbers, flush right.
            notes: a text or "" per row, beside it ("-" for none) if there is room, else indented below it.
        """
        cells = [list(head[: len(rows[0])] if rows else head), *map(list, rows)]
        widths = [max(columns(cell) for cell in column) for column in zip(*cells)]
        room = None if self.width is None else self.width - 2 - sum(widths) - 2 * len(widths)
        alone = room is not None and room < -2
        lines = []
        for number, row in enumerate(cells):
            padded = [_padded(cell, size, index < left) for index, (cell, size) in enumerate(zip(row, widths))]
            shown = [f"  {row[0]}", "    " + "  ".join(padded[1:])] if alone else ["  " + "  ".join(padded)]
            note = "" if not notes else head[-1] if number == 0 else notes[number - 1]
            if notes and (room is None or room >= _NOTES):
                margin = " " * columns(shown[-1]) + "  "
                told = self._wrap(note or ("-" if head[-1] else ""), margin, margin) or [margin]
                shown = [*shown[:-1], shown[-1] + told[0][len(margin) - 2 :], *told[1:]]
            elif note and number:
                shown += self._wrap(f"{head[-1]}: {note}", "      ", "        ")
            lines += [self.paint(line.rstrip(), "bold") for line in shown] if number == 0 else shown
        return "\n".join(line.rstrip() for line in lines)

    def _wrap(self, text: str, first: str, then: str) -> list[str]:
        if self.width is None:
            return [first + text]
        # However narrow the terminal is, a margin leaves room for some words.
        width = max(self.width, columns(first) + 16)
        lines: list[str] = []
        line = gap = ""
        for piece in _pieces(text.expandtabs()):
            if not piece.strip(_SPACES):
                gap = " " * len(piece)
                continue
            margin = then if lines else first
            if line and columns(margin + line + gap + piece) > width:
                lines.append(margin + line)
                line, gap = "", ""
            line, gap = line + gap + piece, ""
        return [*lines, (then if lines else first) + line] if line else lines


PLAIN = Layout()


def layout(stream: TextIO | None = None, environ: Mapping[str, str] = os.environ) -> Layout:
    """The layout for ``stream`` (stdout): a terminal's width (or ``COLUMNS``) and colours, for anything else ``PLAIN``.

    ``NO_COLOR`` and ``TERM=dumb`` turn colours off.
    """
    stream = sys.stdout if stream is None else stream
    if not stream.isatty():
        return PLAIN
    dumb = environ.get("TERM", "dumb") in ("dumb", "unknown", "")
    return Layout(max(_width(stream, environ), _NARROWEST), not dumb and not environ.get("NO_COLOR"))


def columns(text: str) -> int:
    """How many columns of a terminal a line takes: none for escape codes, two for a wide character."""
    return sum(1 + (unicodedata.east_asian_width(sign) in "WF") for sign in _ESCAPE.sub("", text))


def _pieces(text: str) -> Iterator[str]:
    """What a line is made of: spaces, words, and wide characters, between which it may be broken anywhere."""
    for word in _SPACES_OR_WORD.findall(text):
        if word.isascii():
            yield word
            continue
        for wide, signs in groupby(_SIGN.findall(word), key=_is_wide):
            whole = list(signs)
            yield from whole if wide else ["".join(whole)]


def _is_wide(sign: str) -> bool:
    return columns(sign) > 1


def _width(stream: TextIO, environ: Mapping[str, str]) -> int:
    if (given := environ.get("COLUMNS", "")).isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or STANDARD
    except OSError:
        return STANDARD


def _padded(text: str, width: int, left: bool) -> str:
    space = " " * (width - columns(text))
    return text + space if left else space + text
