"""Files of JSON objects, whatever the file name: one per line, in one array, or in one object over several lines, by
their ids (SpeechBrain) or as a list under a name. A row at a time, parsed strictly. A byte-order mark is not part of
the first row. A bad row does not hide later ones; a truncated array or object does.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from qa_train.data.text.records import BadRecord, parse_object

# A row may hold clips as base64; texts are bounded again once those are taken out.
MAX_ROW_BYTES = 1 << 28
_BLOCK = 1 << 16
# The first line of an object that goes on: it ends where a value begins.
_OPENED = re.compile(r'\{\s*("(?:[^"\\]|\\.)*"\s*:\s*[\[{]?\s*)?')
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
    whole = first.startswith("[") or _OPENED.fullmatch(first)
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
                    hint += " (jq -c . FILE writes one object on each line)"
                yield number, f"{kind} {number}", BadRecord(f"{error}{hint}")


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
    return _values(text, buffer[buffer.index("[", buffer.find(start)) + 1 :], "]", alone=key is None)


def _whole_items(text: IO[str]) -> Iterator[tuple[Any, str]]:
    """(item, its text) of the array or the object at the top of a JSON file. What an object holds by a name that it
    does not have itself has it as its ``id``; what is neither an object nor a list of them is no item.
    """
    beginning = text.read(_BLOCK).lstrip()
    if beginning.startswith("["):
        yield from _values(text, beginning[1:], "]")
        return
    name, empty = "", True
    for number, (value, raw) in enumerate(_values(text, beginning[1:], "}")):
        if number % 2 == 0:
            name = str(value)
        elif isinstance(value, dict):
            empty = False
            yield value, raw if "id" in value or not value else f'{{"id": {json.dumps(name)}, {raw[1:]}'
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            empty = False
            yield from ((item, json.dumps(item)) for item in value)
    if empty:
        raise ValueError(
            "an object without rows: expected one JSON object on each line, or one array or object of them"
        )


def _values(text: IO[str], buffer: str, closing: str, *, alone: bool = True) -> Iterator[tuple[Any, str]]:
    """(value, its text) one after the other, names and what they name alike, up to the ``closing`` bracket."""
    decoder = json.JSONDecoder()
    while True:
        buffer = buffer.lstrip(" \t\r\n,:")
        if buffer.startswith(closing):
            if alone and (buffer[1:] + text.read(_BLOCK)).strip():
                raise ValueError("more follows the end of the list: give one list, or one object on each line")
            return
        try:
            item, end = decoder.raw_decode(buffer)
        except json.JSONDecodeError as error:
            # Twice as much each time: an object is parsed again only a few times.
            block = text.read(max(_BLOCK, len(buffer)))
            if not block:
                raise ValueError(f"not JSON, or cut short ({error})") from error
            buffer += block
            continue
        except RecursionError as error:
            raise ValueError("JSON nested too deeply") from error
        if end == len(buffer) and (block := text.read(_BLOCK)):
            # A number may go on.
            buffer += block
            continue
        yield item, buffer[:end]
        buffer = buffer[end:]
