"""Words that a prompt says may be spoken: some of the transcript's own, and others that are not in it.

A record is asked in ``ways`` ways. The list of a way follows from the transcript and the number of the way; the way is
drawn as wordings are, by sample and epoch. So the tokens of every list are counted before training, and a run that
resumes asks what it would have asked.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from qa_train.utils import draws

FIELD = "hotwords"
MAX_FILE_BYTES = 1 << 22
_KEYS = {"file", "most", "none", "ways"}
_BREAK = re.compile(r"[\s—–/…]+")
# Chinese and Japanese: a letter is a word, since there are no spaces.
_DENSE = re.compile("([\u3040-\u30ff\u3400-\u9fff])")


def spoken_words(text: str) -> list[str]:
    """The words of a text as they are compared: without the punctuation around them, in one case."""
    return [_compared(word) for word, _ in _words(text)]


def spaced_words(text: str) -> list[tuple[str, str]]:
    """The words of a text between spaces, as they are compared and as they are written."""
    return [(_compared(word), word) for word, dense in _words(text) if not dense]


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Each word, and whether it is a letter of a script without spaces."""
    for chunk in _BREAK.split(unicodedata.normalize("NFC", text)):
        for at, part in enumerate(_DENSE.split(chunk)):
            inner = [place for place, letter in enumerate(part) if unicodedata.category(letter)[0] in "LNM"]
            if inner:
                yield part[inner[0] : inner[-1] + 1], at % 2 == 1


def _compared(word: str) -> str:
    return word.replace("’", "'").casefold()


@dataclass(frozen=True)
class Hotwords:
    """The lists of a task: of 1 to ``most`` words each; a share ``none`` of the ``ways`` has no list."""

    most: int
    none: float
    ways: int
    # Of all words in their order: equal where the lists are.
    digest: str
    words: tuple[str, ...] = field(repr=False, compare=False)

    @cached_property
    def _entries(self) -> dict[tuple[str, ...], str]:
        return {tuple(spoken_words(entry)): entry for entry in self.words}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._entries))

    def spoken(self, text: str) -> list[str]:
        """The entries that the text holds as whole words, in their order there."""
        words = tuple(spoken_words(text))
        sizes = range(1, self._longest + 1)
        spans = (words[at : at + size] for at in range(len(words)) for size in sizes)
        return list(dict.fromkeys(self._entries[span] for span in spans if span in self._entries))

    def lists(self, text: str) -> list[str]:
        """The list of each way, joined by commas; empty for the ways without one."""
        own = self.spoken(text)
        without = round(self.none * self.ways)
        start = draws.digest(text).hex()
        lists = (self._list(f"{start} {way}", own) for way in range(without, self.ways))
        return [""] * without + [", ".join(words) for words in lists]

    def _list(self, key: str, own: list[str]) -> list[str]:
        """Words in the order of a prompt. Keys are texts, which cost a third of lists."""
        size = 1 + draws.below(self.most, f"{key} size")
        ordered = sorted(own, key=lambda word: draws.digest(f"{key} own {word}"))
        chosen = ordered[: draws.below(min(size, len(own)) + 1, f"{key} own")]
        # Not for ever: a short file may hold few words that are not spoken.
        for attempt in range(4 * size):
            if len(chosen) == size:
                break
            other = self.words[draws.below(len(self.words), f"{key} {attempt}")]
            chosen += [other] if other not in own and other not in chosen else []
        return sorted(chosen or ordered[:1], key=lambda word: draws.digest(f"{key} place {word}"))


def read_hotwords(spec: Any, folder: Path) -> Hotwords:
    """A task's ``hotwords``: ``file`` (one word or phrase a line; relative to the prompt file) and, if not as here,
    ``most: 8``, ``none: 0.2``, ``ways: 10``.

    Raises:
        ValueError: a fault in them or in the file.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("file"), str) or set(spec) - _KEYS:
        raise ValueError(f"'{FIELD}' must have 'file', and may have {sorted(_KEYS - {'file'})}")
    most, none, ways = spec.get("most", 8), spec.get("none", 0.2), spec.get("ways", 10)
    for name, value, limit in (("most", most, 100), ("ways", ways, 100)):
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise ValueError(f"'{FIELD}': {name} is {value!r}; expected a whole number from 1 to {limit}")
    if isinstance(none, bool) or not isinstance(none, int | float) or not 0 <= none < 1 or round(none * ways) == ways:
        raise ValueError(f"'{FIELD}': none is {none!r}; expected a share from 0 to less than 1 of {ways} ways")
    path = folder / spec["file"]
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"the words in {path} cannot be read: {error}") from error
    words = tuple(dict.fromkeys(line for line in lines if spoken_words(line)))
    if not words:
        raise ValueError(f"{path} holds no words: expected one per line (qa-train data words makes such a file)")
    return Hotwords(most, float(none), ways, hashlib.sha256("\n".join(words).encode()).hexdigest(), words)
