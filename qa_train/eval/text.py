"""Text normalisation before scoring: what two answers may differ in without being different.

The order of steps for transcripts is that of the released evaluation script of Qwen2-Audio
(``eval_audio/evaluate_asr.py``): remove ``<|tags|>``, tidy spaces, Whisper's normaliser, drop
punctuation, lower case, split into words (or characters, where words are not written apart).
Two of its steps need packages that are not installed here and are therefore not applied:
traditional-to-simplified conversion for Cantonese, and ``cn_tn`` number rewriting for Chinese.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

# Written without spaces between words: an error is counted per character (WER is then CER).
CHARACTER_LANGUAGES = frozenset({"zh", "yue", "ja"})

_TAG = re.compile(r"<\|[^|<>]*\|>")
_SPACE_BEFORE_MARK = re.compile(r"\s+([!,.?;:])")


def strip_tags(text: str) -> str:
    """Remove ``<|...|>`` tags, collapse white space, close the gap before ``! , . ? ; :``."""
    text = " ".join(_TAG.sub(" ", text).split())
    return _SPACE_BEFORE_MARK.sub(r"\1", text)


@lru_cache(maxsize=1)
def _english() -> Callable[[str], str]:
    # Building the spelling table takes tens of milliseconds: once per process.
    return EnglishTextNormalizer()


@lru_cache(maxsize=1)
def _basic() -> Callable[[str], str]:
    return BasicTextNormalizer()


def whisper_normalise(text: str, language: str | None) -> str:
    """Whisper's normalisers in the released order: English then basic for "en", else basic."""
    if language == "en":
        text = _english()(text)
    return _basic()(text)


def _is_punctuation(token: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in token)


def transcript_words(
    text: str, language: str | None, normalise: Callable[[str, str | None], str] = whisper_normalise
) -> list[str]:
    """The units a transcript is scored in: words, or characters for zh, yue and ja.

    ``normalise(text, language)`` is the normaliser; pass ``lambda text, language: text`` for none.
    """
    text = strip_tags(text)
    if language in CHARACTER_LANGUAGES:
        text = "".join(text.split())
    words = [word for word in normalise(text, language).lower().split() if not _is_punctuation(word)]
    return list("".join(words)) if language in CHARACTER_LANGUAGES else words


def label_form(text: str) -> str:
    """The form in which two labels are compared: equal forms are the same label, nothing else is.

    Tags, letter case, compatibility forms (NFKC), the characters ``_`` and ``-``, runs of white
    space, and quotes, brackets and full stops around the label do not count. No synonym, no
    substring and no edit distance: "dog" and "a dog barking" differ.
    """
    text = unicodedata.normalize("NFKC", strip_tags(text)).casefold()
    text = " ".join(text.replace("_", " ").replace("-", " ").split())
    edge = [not (unicodedata.category(c)[0] in "PZ" or c == "`") for c in text]
    if True not in edge:
        return ""
    return text[edge.index(True) : len(edge) - edge[::-1].index(True)]


def label_words(text: str) -> list[str]:
    """``label_form`` as words without punctuation, to look for a label inside a sentence."""
    return re.findall(r"\w+", label_form(text))
