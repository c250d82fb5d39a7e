"""Tables as people write them: comma, tab or bar between the cells, with or without quotes, names and a known encoding.

A quotation mark is a letter in most tables with tabs and bars, and opens a text over several lines in others. One that
is taken for the latter by mistake swallows rows, so the file is looked at once before it is read: what cannot be one
table with quotes is read line by line. A row that does not fit the header is handed on as such, never filled up.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from data_pipelines.corpora.base import Request

Rows = Iterator[tuple[int, "dict[str, str] | str"]]
# Between whose cells quotation marks are letters, unless the file shows otherwise.
_UNQUOTED = ("\t", "|")
# Lines by which the delimiter of a table without a line of names is found.
_LOOKED_AT = 100
_REMEDY = "give its encoding, e.g. encoding=cp1252, latin-1, gb18030, shift_jis or utf-16"


@dataclass(frozen=True)
class _Form:
    """How a table is written: ``whole`` with quotes over its cells, else line by line."""

    delimiter: str
    header: tuple[str, ...]
    encoding: str
    whole: bool
    # Spaces after a comma are no part of a cell in quotes.
    skip: bool = False


def open_table(request: Request, name: str) -> tuple[tuple[str, ...], Rows]:
    """The names of a table's columns, and (line number, row); a row that does not fit them is a sentence about it.

    ``request.table`` has settings that cannot be detected. Adds to ``request.notes`` when quotes do not pair.

    Raises:
        ValueError: a file that is empty, or not in its encoding.
    """
    form = _form(request, name)
    return form.header, _rows(request, name, form)


def _rows(request: Request, name: str, form: _Form) -> Rows:
    try:
        for number, cells in _cells(request, name, form):
            if len(cells) != len(form.header):
                more = "more" if len(cells) > len(form.header) else "fewer"
                yield number, f"{name}, line {number}: {len(cells)} cells, {more} cells than the header has"
                continue
            yield number, dict(zip(form.header, cells, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{name}: {error}; quoted=false reads quotation marks as letters") from error


def _form(request: Request, name: str) -> _Form:
    given = request.table
    encoding = given.encoding or _encoding(request, name)
    beginning = list(islice((line for line in _lines(request, name, encoding) if line.strip()), _LOOKED_AT))
    if not beginning:
        raise ValueError(f"{name} is empty")
    header = tuple(given.header)
    delimiter = given.delimiter or _delimiter(name, beginning, len(header))
    if not header:
        (cells,) = csv.reader(beginning[:1], delimiter=delimiter, skipinitialspace=delimiter not in _UNQUOTED)
        header = _told_apart([cell.strip() for cell in cells])
    if given.quoted is not None:
        return _Form(delimiter, header, encoding, given.quoted, skip=given.quoted and delimiter not in _UNQUOTED)
    for skip in (False, True) if delimiter not in _UNQUOTED else (False,):
        form = _Form(delimiter, header, encoding, True, skip)
        if _is_whole(request, name, form):
            return form
    if delimiter not in _UNQUOTED:
        request.notes.append(f"{name}: its quotation marks are unbalanced, so each line was read separately")
    return _Form(delimiter, header, encoding, False)


def _told_apart(names: list[str]) -> tuple[str, ...]:
    """The names of columns; the second of one name becomes NAME.1, as in pandas, and is listed as not used."""
    return tuple(f"{name}.{names[:i].count(name)}" if name in names[:i] else name for i, name in enumerate(names))


def _encoding(request: Request, name: str) -> str:
    """By the byte-order mark, else UTF-8; the whole file must be it."""
    with request.tree.open(name) as file:
        beginning = file.read(2)
    encoding = "utf-16" if beginning in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    for _ in _lines(request, name, encoding):
        pass
    return encoding


def _lines(request: Request, name: str, encoding: str) -> Iterator[str]:
    """Lines with their ends; ValueError with the position of a byte that is not in the encoding."""
    number = 0
    with request.tree.open(name) as file:
        try:
            for number, line in enumerate(io.TextIOWrapper(file, encoding=encoding, newline=""), 1):  # noqa: B007
                yield line
        except (UnicodeError, LookupError) as error:
            raise ValueError(
                f"{name} is not in {encoding.removesuffix('-sig')} (after line {number}: {error}): {_REMEDY}"
            ) from error


def _delimiter(name: str, beginning: list[str], columns: int) -> str:
    """By the name, by what the line of names has, or, without one, by what gives most lines their ``columns``."""
    if name.lower().endswith((".tsv", ".tsv.gz")):
        return "\t"
    marks = ("\t", "|", ";")
    if columns:
        # The texts of such lines have commas, the first one too.
        fits = {mark: sum(line.count(mark) == columns - 1 for line in beginning) for mark in marks}
        likely = max(marks, key=lambda mark: fits[mark])
        return likely if columns > 1 and 2 * fits[likely] > len(beginning) else ","
    counts = {mark: beginning[0].count(mark) for mark in marks}
    likely = max(counts, key=lambda mark: counts[mark])
    return likely if counts[likely] and "," not in beginning[0] else ","


def _is_whole(request: Request, name: str, form: _Form) -> bool:
    """Whether quotes pair all through the file, and no text in quotes is made of lines that are rows themselves.

    Of tables with tabs or bars, only if something shows that quotes are used: a name or a mark in quotes, or a cell
    that holds the delimiter.
    """
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in _lines(request, name, form.encoding):
            taken.append(line)
            yield line

    shown = form.delimiter not in _UNQUOTED
    try:
        for cells in csv.reader(lines(), delimiter=form.delimiter, strict=True, skipinitialspace=form.skip):
            spaced = form.delimiter not in _UNQUOTED and not form.skip and any(' "' in line for line in taken)
            if spaced and len(cells) != len(form.header):
                return False  # `a.wav, "hello, you"`: the other way of reading fits.
            if len(taken) > 1 and all(line.count(form.delimiter) == len(form.header) - 1 for line in taken):
                return False
            shown = shown or any('""' in line for line in taken) or any(form.delimiter in cell for cell in cells)
            shown = shown or (bool(taken) and taken[0].startswith('"') and taken[0].rstrip().endswith('"'))
            taken.clear()
    except csv.Error:
        return False
    return shown


def _cells(request: Request, name: str, form: _Form) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty, after the header where the file has one."""
    skipped = bool(request.table.header)
    lines = _lines(request, name, form.encoding)
    if form.whole:
        reader = csv.reader(lines, delimiter=form.delimiter, skipinitialspace=form.skip)
        found = ((reader.line_num, cells) for cells in reader)
    else:
        quotes = form.delimiter not in _UNQUOTED and request.table.quoted is None
        found = ((number, _one_line(line, form.delimiter, quotes)) for number, line in enumerate(lines, 1))
    for number, cells in found:
        if not any(cells):
            continue
        if not skipped:
            skipped = True
            continue
        yield number, cells


def _one_line(line: str, delimiter: str, quotes: bool) -> list[str]:
    line = line.rstrip("\r\n")
    if quotes and '"' in line:
        try:
            (cells,) = csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True)
            return cells
        except csv.Error:
            pass
    return line.split(delimiter)
