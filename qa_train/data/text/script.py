"""Does a transcript use the script of its language? From the Unicode names of its letters."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from qa_train.data.text.records import LANGUAGES

_HAN = ("CJK",)
# Languages that are not written in Latin letters, and the first words of their letters' Unicode names.
_SCRIPTS: dict[str, tuple[str, ...]] = {
    "zh": _HAN,
    "yue": _HAN,
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "ko": ("HANGUL", "CJK"),
    "ru": ("CYRILLIC",),
    "uk": ("CYRILLIC",),
    "bg": ("CYRILLIC",),
    "mn": ("CYRILLIC", "MONGOLIAN"),
    "el": ("GREEK",),
    "ar": ("ARABIC",),
    "fa": ("ARABIC",),
    "ur": ("ARABIC",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "bn": ("BENGALI",),
    "ta": ("TAMIL",),
    "th": ("THAI",),
}
_DENSE = ("zh", "yue", "ja", "ko")


def script_share(text: str, language: str | None) -> tuple[float | None, bool]:
    """Share of a text's letters in the script of its language, and whether that script has one syllable per letter.

    The share is None when the language is unknown or the text has no letters.
    """
    if language not in LANGUAGES:
        return None, False
    wanted = _SCRIPTS.get(language, ("LATIN",))
    letters = [_script(c) for c in text if c.isalpha()]
    share = sum(script in wanted for script in letters) / len(letters) if letters else None
    return share, language in _DENSE


def spoken_characters(text: str) -> int:
    """Letters and digits of a text, with the marks that belong to them."""
    return sum(unicodedata.category(c)[0] in "LNM" for c in text)


@lru_cache(maxsize=20_000)
def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0]
