"""Texts as they are spoken: normalisation, and the rules by which two texts count as the same.

Every transcript that this project trains on or tests with has passed `spoken`, and every split
between training and test is decided by `conflicts`, so that the two always agree.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

# Single digits are read out as digits in every prompt language; longer numbers may be read in
# several ways ("500": five hundred, five oh oh) and make a clip ambiguous.
_DIGITS = {
    "en": "zero one two three four five six seven eight nine",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "it": "zero uno due tre quattro cinque sei sette otto nove",
    "ru": "ноль один два три четыре пять шесть семь восемь девять",
}
_SYMBOL_NOTE = re.compile(r"\[\s*[^\w\s]?\s*\]")  # "at [@]": the sign that the word stands for
_KEY_INSIDE = re.compile(r"\b[a-z]+(?:-[a-z]+)+:")  # a second prompt's key ran into this line
_UNSPOKEN = re.compile(r"[\[\](){}<>#*@%&=+/\\_|^~$]")
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})


def spoken(text: str, language: str) -> str | None:
    """The words of ``text`` as spoken: lower case, digits spelled out, no punctuation but apostrophes.

    Returns None when it is unclear what was said: stage directions in brackets, symbols, numbers of
    several digits, web addresses, or nothing at all. ``language`` chooses the digit words; digits in
    a language without digit words make the text ambiguous.
    """
    text = unicodedata.normalize("NFC", text).translate(_APOSTROPHES).lower().strip('\ufeff \t\n"')
    text = _SYMBOL_NOTE.sub(" ", text)
    if _UNSPOKEN.search(text) or _KEY_INSIDE.search(text) or re.search(r"\w\.\w|[^\W\d]\d|\d[^\W\d]", text):
        return None
    digits = _DIGITS.get(language, "").split()
    if re.search(r"\d\s*\d", text) or (re.search(r"\d", text) and not digits):
        return None
    text = re.sub(r"\d", lambda found: digits[int(found.group())], text)
    words = [word.strip("'") for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*'?", text)]
    return " ".join(word for word in words if word) or None


def _runs(words: Sequence[str], length: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[i : i + length]) for i in range(len(words) - length + 1))


class TextIndex:
    """A set of texts that answers: does this text equal, contain, or lie within one of them?

    Containment counts from three words on, because every language repeats its single words.
    """

    MIN_WORDS = 3

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts: set[tuple[str, ...]] = set()
        self._by_run: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
        self._lengths: set[int] = set()
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Adds a normalised text."""
        words = tuple(text.split())
        if not words or words in self._texts:
            return
        self._texts.add(words)
        self._lengths.add(len(words))
        for run in _runs(words, self.MIN_WORDS):
            self._by_run[run].add(words)

    def conflicts(self, text: str) -> list[str]:
        """The texts of the set that equal ``text``, contain it, or lie within it (sorted)."""
        words = tuple(text.split())
        found = {words} & self._texts
        if len(words) >= self.MIN_WORDS:
            found |= {other for other in self._by_run[words[: self.MIN_WORDS]] if words in _runs(other, len(words))}
            for length in self._lengths:
                if self.MIN_WORDS <= length < len(words):
                    found |= self._texts.intersection(_runs(words, length))
        return sorted(" ".join(other) for other in found)
