"""STM, NIST's lists of segments, and TED-LIUM, which is published so: "file channel speaker start end <label> text".

What scoring leaves out is no transcript: ``ignore_time_segment_in_scoring``, gaps between segments. In texts there are
alternatives, ``{ um / uh }``, of which the first is taken; ``(word)`` may be left out, and is; ``<unk>``, ``[NOISE]``
and ``%hesitation`` are marks (github.com/usnistgov/SCTK, doc/infmts.htm).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.corpora.base import (
    DEV,
    TEST,
    TRAIN,
    Corpus,
    Drop,
    Found,
    Item,
    Recording,
    Request,
    gender_of,
    present,
    role_named,
)

_IGNORED = "ignore_time_segment_in_scoring"
_LABEL = re.compile(r"<([^<>\s]*)>")
# Innermost first: they may lie in one another.
_ALTERNATIVES = re.compile(r"\{([^{}]*)\}")
_MARKS = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|\([^()\s]*\)|%\w+%?")
_CHANNELS = {"1": 0, "a": 0, "2": 1, "b": 1}
_NO_SPEAKER = ("inter_segment_gap", "excluded_region")


def _words(transcript: str) -> str:
    """The text of a transcript without its marks; "" where nothing is to be scored."""
    if transcript.strip().lower() == _IGNORED:
        return ""
    while transcript != (transcript := _ALTERNATIVES.sub(_first, transcript)):
        pass
    return " ".join(_MARKS.sub(" ", transcript).split())


def _first(alternatives: re.Match[str]) -> str:
    first, *others = re.split(r"\s/\s", alternatives[1])
    # In braces alone a noise is named.
    return first.strip().strip("@") if others else ""


class _Reader:
    """Items of lists; counts the texts in which a word is missing."""

    def __init__(self, request: Request, language: str | None = None, text_of: Callable[[str], str] = str) -> None:
        self._request = request
        self._language = language
        self._text_of = text_of
        self._unknown = 0

    def items(self, listed: str, within: str = "") -> Found:
        """Its segments, of recordings that are found by name in folders whose path holds ``within``."""
        tree = self._request.tree
        for number, line in enumerate(tree.lines(listed, self._request.table.encoding or "utf-8-sig"), 1):
            if not line.strip() or line.startswith(";;"):
                continue
            try:
                file, place, record = self._parsed(line)
            except ValueError as error:
                yield Drop(f"{listed}-{number}", "bad line", f"{listed}, line {number}: {error}")
                continue
            name = f"{file}-{number:05d}"
            if "text" not in record:
                yield Drop(name, "no speech", line[-80:], filter=True)
                continue
            audio = tree.by_stem(file, within=within)
            if audio is None:
                yield Drop(name, "missing audio", f"no {within}*/{file}.sph or other audio file, listed in {listed}")
                continue
            found = tree.recording(audio, place.start_s, place.end_s)
            yield Item(name, (replace(found, channel=place.channel),), record)

    def _parsed(self, line: str) -> tuple[str, Recording, dict[str, Any]]:
        cells = line.split(maxsplit=5)
        if len(cells) < 5:
            raise ValueError(f"{len(cells)} columns; expected file, channel, speaker, start, end, <label>, text")
        file, channel, speaker, start, end, *rest = cells
        place = Recording(file, start_s=float(start), end_s=float(end), channel=_CHANNELS.get(channel.lower()))
        text = rest[0] if rest else ""
        label = _LABEL.match(text)
        text = text[label.end() :] if label else text
        self._unknown += "<unk>" in text
        marks = re.split(r"[,_]", label[1]) if label else []
        record = present(
            text=self._text_of(_words(text)),
            language=self._language,
            speaker=None if speaker in _NO_SPEAKER else speaker,
            gender=next((gender for mark in marks if (gender := gender_of(mark))), None),
        )
        return file, place, record

    def note(self) -> None:
        """Say in the report how many texts lack a word."""
        if self._unknown:
            self._request.notes.append(f"texts without a word that their list marks as <unk>: {self._unknown}")


def _stm(request: Request) -> Found:
    reader = _Reader(request)
    for listed in _lists(request):
        yield from reader.items(listed)
    reader.note()


def _lists(request: Request) -> Iterator[str]:
    """The lists that are named in path=, else those of the split by their name or folder, else those that say none."""
    tree = request.tree
    names = [Path(path).name for path in tree.files if path.lower().endswith(".stm")]
    if not names:
        said = {name: request.role_said(name) for name in tree.need("*.stm", what="list of segments (*.stm)")}
        role = role_named(request.published_split)
        names = [name for name in said if said[name] == role]
        if names:
            yield from names
            return
        names = [name for name in said if said[name] is None]
        if not names:
            raise ValueError(f"no list is of split {request.split}: {', '.join(said)}; name one, path=[LIST,AUDIO]")
    for name in names:
        request.without_split(name)
        yield name


def _tedlium(request: Request) -> Found:
    tree = request.tree
    # Release 3 links legacy/train to data, where links were not unpacked there is only the latter.
    data = tree.glob("data/stm/*.stm") if request.split == TRAIN else []
    lists = tree.glob(f"{request.split}/stm/*.stm") or data
    reader = _Reader(request, "en", _joined)
    for listed in lists or tree.need(f"{request.split}/stm/*.stm", what="TED-LIUM lists"):
        # Releases 2 and 3 have other files of the same talks.
        yield from reader.items(listed, within=f"{PurePosixPath(listed).parent.parent}/")
    reader.note()


def _joined(text: str) -> str:
    """ "they 're" -> "they're", "boys ' toys" -> "boys' toys", "the ' 60s" -> "the '60s"."""
    text = re.sub(r"(?<=\w) '(?=\w)|(?<=s) '(?!\S)", "'", text)
    return re.sub(r"(?<!\S)' (?=\w)", "'", text)


CORPORA = (
    Corpus("stm", "STM: lists of segments as NIST's sclite reads them", "not stated: set fields.license=", "",
           {"train": TRAIN, "dev": DEV, "test": TEST}, _stm, ("text", "speaker", "gender"),
           "recordings are found by name; fields.language=... says what is spoken", generic=True),
    Corpus("tedlium", "TED-LIUM, releases 1 to 3", "CC-BY-NC-ND-3.0", "https://www.openslr.org/51",
           {"train": TRAIN, "dev": DEV, "test": TEST}, _tedlium, ("text", "language", "speaker", "gender"),
           "release 3 as its legacy distribution; <unk> is left out of texts, and such texts are counted",
           tasks=("asr", "lid", "speaker", "gender")),
)  # fmt: skip
