"""Files of JSON objects, whatever the file name: one per line, in one array, or in one object: over several lines by
their ids (SpeechBrain), or as the only list of objects in it (SALMONN). A row at a time, parsed strictly; such an
object is read twice, first to see that it is no row itself. A byte-order mark is not part of the first row. A bad row
does not hide later ones; a truncated array does, and a truncated object has none.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from qa_train.data.text.chat_rows import CLIP_NAMES, TURNS
from qa_train.data.text.chat_turns import CLIPS
from qa_train.data.text.records import KNOWN_FIELDS, BadRecord, parse_object

# A row may hold clips as base64; texts are bounded again once those are taken out.
MAX_ROW_BYTES = 1 << 28
_BLOCK = 1 << 16
# The first line of an object that goes on: it ends where a value begins.
_OPENED = re.compile(r'\{\s*("(?:[^"\\]|\\.)*"\s*:\s*(?:[\[{]\s*)?)?')
# A line that may be nothing but a list of objects under a name.
_LIST = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\[\s*\{')
_PRETTY = "jq -c . FILE writes one object on each line"
# An object with one of these names is a row.
_OF_A_ROW = {*TURNS, *CLIPS, *CLIP_NAMES, "text", "path", "file", "file_name", "filename"}
Row = tuple[int, str, dict[str, Any] | BadRecord]


def read_rows(path: Path | str) -> Iterator[Row]:
    """``rows`` of a file."""
    with Path(path).open("rb") as file:
        yield from rows(file)


def objects(path: Path | str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Like ``read_rows``; the first bad row is a ValueError with the file's name and its place."""
    for number, where, row in read_rows(path):
        if isinstance(row, BadRecord):
            raise ValueError(f"{path}, {where}: {row}") from row
        yield number, where, row


def rows(file: IO[bytes]) -> Iterator[Row]:
    """(number, "line 3" or "item 3", object) of every row that is not empty; a faulty row gives an error instead of the
    object. ``file`` is read from its start and must be seekable.
    """
    beginning = file.read(_BLOCK)
    file.seek(0)
    # As in a single record (`decode_text`): the mark tells the encoding.
    encoding = "utf-16" if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    first = beginning.decode(encoding, "ignore").lstrip().partition("\n")[0]
    whole = first.startswith("[") or _OPENED.fullmatch(first) or (_LIST.match(first) and _is_list(file, encoding))
    kind, found = ("item", _items(file, encoding)) if whole else ("line", _lines(file, encoding))
    for number, raw in enumerate(found, 1):
        if isinstance(raw, BadRecord):
            yield number, f"{kind} {number}", raw
        elif raw.strip():
            try:
                yield number, f"{kind} {number}", parse_object(raw, MAX_ROW_BYTES)
            except BadRecord as error:
                # Not JSON, or not even text: the file is of another kind.
                other = str(error).startswith(("not JSON", "the JSON is not"))
                hint = "; expected one JSON object on each line, or one array of them" if other else ""
                if other and not whole and beginning.lstrip().startswith(b"{"):
                    hint += f" ({_PRETTY})"
                yield number, f"{kind} {number}", BadRecord(f"{error}{hint}")


def _is_list(file: IO[bytes], encoding: str) -> bool:
    """Whether a file has no more than one object with one list of rows: a single row of a column has no clip."""
    text = io.TextIOWrapper(file, encoding=encoding, errors="replace")
    values = _Values(text)
    try:
        found = {(name, listed and isinstance(value, dict)) for name, value, _, listed in _members(values)}
        name, of_objects = found.pop()
        return of_objects and not found and name not in {*_OF_A_ROW, *KNOWN_FIELDS} and not values.sign()
    except ValueError:
        return False
    finally:
        text.detach()
        file.seek(0)


def _lines(file: IO[bytes], encoding: str) -> Iterator[bytes | BadRecord]:
    if encoding == "utf-16":
        # Half a surrogate pair costs its own row.
        text = io.TextIOWrapper(file, encoding=encoding, errors="surrogatepass", newline="\n")
        try:
            while line := text.readline(MAX_ROW_BYTES + 1):
                yield _encoded(line)
        except UnicodeError as error:
            yield BadRecord(f"it is not {encoding}, as its byte-order mark says: {error}")
        return
    yield file.readline(MAX_ROW_BYTES + 1).removeprefix(codecs.BOM_UTF8)
    while raw := file.readline(MAX_ROW_BYTES + 1):
        yield raw


def _items(file: IO[bytes], encoding: str) -> Iterator[bytes | BadRecord]:
    try:
        errors = "surrogatepass" if encoding == "utf-16" else "strict"
        for _, text in _whole_items(io.TextIOWrapper(file, encoding=encoding, errors=errors)):
            yield _encoded(text)
    except ValueError as error:
        yield BadRecord(str(error))


def _encoded(row: str) -> bytes | BadRecord:
    try:
        return row.encode()
    except UnicodeEncodeError:
        return BadRecord("it holds half a surrogate pair: not Unicode text")


def array_items(text: IO[str], key: str | None = None) -> Iterator[tuple[Any, str]]:
    """(item, its text) of the array at the top of a JSON file, or of its array ``key``, one at a time.

    Only one item is in memory (some lists have gigabytes). Raises ValueError when the array is missing, invalid or
    truncated, or something follows it.
    """
    buffer = ""
    start = f'"{key}"' if key else ""
    while start not in buffer or "[" not in buffer[buffer.find(start) :]:
        block = text.read(_BLOCK)
        if not block:
            raise ValueError(f"no list {key or 'at its top'}")
        buffer += block
    values = _Values(text, buffer[buffer.index("[", buffer.find(start)) + 1 :])
    return values.until("]") if key else _alone(values)


def _alone(values: _Values) -> Iterator[tuple[Any, str]]:
    yield from values.until("]")
    if values.sign():
        raise ValueError("more follows the end of the list: give one list, or one object on each line")


def _whole_items(text: IO[str]) -> Iterator[tuple[Any, str]]:
    """(item, its text) of the array or the object at the top of a JSON file. What an object holds by a name that it
    does not have itself has it as its ``id``.
    """
    values = _Values(text)
    if values.sign() == "[":
        values.skip()
        yield from _alone(values)
        return
    rows_under = _list_of_rows(values)
    text.seek(0)
    for name, value, raw, listed in _members(_Values(text)):
        if listed:
            if name == rows_under:
                yield value, raw
        elif rows_under is None:
            yield value, raw if "id" in value or not value else f'{{"id": {json.dumps(name)}, {raw[1:]}'


def _list_of_rows(values: _Values) -> str | None:
    """The name in the object at the top of a file under which its rows are; None where each value is a row.

    Raises:
        ValueError: a row, or an object of something else.
    """
    names, lists, others, empty = set[str](), set[str](), set[str](), True
    for name, value, _, listed in _members(values):
        names.add(name)
        empty = False
        if listed and isinstance(value, dict):
            lists.add(name)
        elif listed or not isinstance(value, dict):
            others.add(name)
    if values.sign():
        raise ValueError(f"more follows the end of the object: expected one object on each line ({_PRETTY})")
    if said := sorted(names & _OF_A_ROW | lists & {*KNOWN_FIELDS}):
        raise ValueError(f"a row over several lines (it has {', '.join(said)}): {_PRETTY}")
    if len(lists) > 1:
        raise ValueError(f"several lists of objects ({', '.join(sorted(lists))}): jq -c '.NAME[]' FILE writes out one")
    if empty or (others and not lists):
        raise ValueError(
            f"an object without rows: expected one JSON object on each line, or one array or object of them ({_PRETTY})"
        )
    return next(iter(lists), None)


def _members(values: _Values) -> Iterator[tuple[str, Any, str, bool]]:
    """(name, value, its text, False) of an object at the top of a file; of a list each item, with True."""
    values.sign()
    values.skip()
    while values.sign() != "}":
        name = str(values.one()[0])
        if values.sign() == "[":
            values.skip()
            for item, raw in values.until("]"):
                yield name, item, raw, True
        else:
            value, raw = values.one()
            yield name, value, raw, False
    values.skip()


class _Values:
    """JSON values one after the other, names and what they name alike; only one is in memory."""

    def __init__(self, text: IO[str], buffer: str = "") -> None:
        self._text = text
        self._buffer = buffer
        self._decoder = json.JSONDecoder()

    def sign(self) -> str:
        """The first character of what follows; "" at the end of the file."""
        self._buffer = self._buffer.lstrip(" \t\r\n,:")
        while not self._buffer and (block := self._text.read(_BLOCK)):
            self._buffer = block.lstrip(" \t\r\n,:")
        return self._buffer[:1]

    def skip(self) -> None:
        """Goes over a bracket."""
        self._buffer = self._buffer[1:]

    def until(self, closing: str) -> Iterator[tuple[Any, str]]:
        """(value, its text) up to the ``closing`` bracket, and over it."""
        while self.sign() != closing:
            yield self.one()
        self.skip()

    def one(self) -> tuple[Any, str]:
        """The value that follows ``sign``, and its text. Raises ValueError when it is invalid or truncated."""
        while True:
            try:
                item, end = self._decoder.raw_decode(self._buffer)
            except json.JSONDecodeError as error:
                # Twice as much each time: an object is parsed again only a few times.
                block = self._text.read(max(_BLOCK, len(self._buffer)))
                if not block:
                    raise ValueError(f"not JSON, or cut short ({error})") from error
                self._buffer += block
                continue
            except RecursionError as error:
                raise ValueError("JSON nested too deeply") from error
            if end == len(self._buffer) and (block := self._text.read(_BLOCK)):
                # A number may go on.
                self._buffer += block
                continue
            raw, self._buffer = self._buffer[:end], self._buffer[end:]
            return item, raw
