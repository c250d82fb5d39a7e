"""STM, NIST's lists of segments, and TED-LIUM, which is published so: "file channel speaker start end <label> text".

What scoring leaves out is no transcript: ``ignore_time_segment_in_scoring``, gaps between segments. In texts there are
alternatives, ``{ um / uh }``, of which the first is taken; ``(word)`` may be left out, and is; ``<unk>``, ``[NOISE]``
and ``%hesitation`` are marks (github.com/usnistgov/SCTK, doc/infmts.htm). ``<unk>`` stands for a word: the field
``has_unknown`` says that a text lacks one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath
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
    seconds_of,
)
from qa_train.data.text.records import BadRecord

_IGNORED = "ignore_time_segment_in_scoring"
_LABEL = re.compile(r"<(?!unk>)([^<>\s]*)>", re.IGNORECASE)
# Innermost first: they may lie in one another.
_ALTERNATIVES = re.compile(r"\{([^{}]*)\}")
_MARKS = re.compile(r"<(?!unk>)[^<>\s]*>|\[[^\[\]\s]*\]|\([^()\s]*\)|%\w+%?", re.IGNORECASE)
# A word that the list does not know, with what TED-LIUM parts from it: "<unk> 's", "<unk> '".
_UNKNOWN = re.compile(r"<unk>(?: ?'[a-z]{0,2}(?!\S))?", re.IGNORECASE)
# A pair around one word, the mark of a suffix, of a plural, of a word without its beginning.
_APOSTROPHES = re.compile(r"(?<!\S)' (\w+) '(?!\S)|(?<=\w) '(?=\w)|(?<=s) '(?!\S)|(?<!\S)' (?=\w)")
_CHANNELS = {"1": 0, "a": 0, "2": 1, "b": 1}
_NO_SPEAKER = ("inter_segment_gap", "excluded_region")


def _words(transcript: str) -> tuple[str, bool]:
    """The text of a transcript without its marks, and whether a word is unknown; "" where nothing is to be scored."""
    if transcript.strip().lower() == _IGNORED:
        return "", False
    while transcript != (transcript := _ALTERNATIVES.sub(_first, transcript)):
        pass
    text, unknown = _UNKNOWN.subn(" ", " ".join(_MARKS.sub(" ", transcript).split()))
    return " ".join(text.split()), unknown > 0


def _first(alternatives: re.Match[str]) -> str:
    first, *others = re.split(r"\s/|/\s", alternatives[1])
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
        """Its segments, of recordings that are found by name in the folder ``within`` and below it."""
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
            self._unknown += record["has_unknown"]
            try:
                found = tree.recording(self._request.listed_audio(file, within), place.start_s, place.end_s)
            except BadRecord as error:
                yield Drop(name, error.reason, f"{error}; listed in {listed}")
                continue
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
        words, unknown = _words(text)
        if words:
            seconds_of(start, end)
        marks = re.split(r"[,_]", label[1]) if label else []
        record = present(
            text=self._text_of(words),
            has_unknown=unknown,
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
    named = [name for name in request.tree.named if name.lower().endswith(".stm")]
    for listed in request.lists(named or request.tree.need("*.stm", what="list of segments (*.stm)")):
        yield from reader.items(listed)
    reader.note()


def _tedlium(request: Request) -> Found:
    tree = request.tree
    # Release 3 links legacy/train to data. Where links were not unpacked there is only data.
    data = tree.glob("data/stm/*.stm") if request.split == TRAIN else []
    lists = tree.glob(f"{request.split}/stm/*.stm") or data
    reader = _Reader(request, "en", _joined)
    for listed in lists or tree.need(f"{request.split}/stm/*.stm", what="TED-LIUM lists"):
        # Releases 2 and 3 have other files of the same talks.
        yield from reader.items(listed, within=str(PurePosixPath(listed).parent.parent))
    reader.note()


def _joined(text: str) -> str:
    """ "they 're" -> "they're", "boys ' toys" -> "boys' toys", "the ' 60s" -> "the '60s", "a ' n ' b" -> "a 'n' b"."""
    return _APOSTROPHES.sub(lambda found: f"'{found[1]}'" if found[1] else "'", text)


CORPORA = (
    Corpus("stm", "STM: lists of segments as NIST's sclite reads them", "not stated: set fields.license=", "",
           {"train": TRAIN, "dev": DEV, "test": TEST}, _stm, ("text", "speaker", "gender"),
           "recordings are found by name; fields.language=... says what is spoken; where.has_unknown=false takes "
           "texts without <unk>", generic=True),
    Corpus("tedlium", "TED-LIUM, releases 1 to 3", "CC-BY-NC-ND-3.0", "https://www.openslr.org/51",
           {"train": TRAIN, "dev": DEV, "test": TEST}, _tedlium, ("text", "language", "speaker", "gender"),
           "release 3 as its legacy distribution; where.has_unknown=false takes texts without <unk>, which is left out",
           tasks=("asr", "lid", "speaker", "gender")),
)  # fmt: skip
