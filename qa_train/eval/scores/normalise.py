"""Text normalisation before scoring: what two answers may differ in without being different.

The order of steps for transcripts is that of the released evaluation script of Qwen2-Audio
(``eval_audio/evaluate_asr.py``), which tests compare on 500 pairs per language:

- all: remove ``<|tags|>``, collapse spaces, close the gap before ``! , . ? ; :``; zh: no spaces;
- en: Whisper's English normaliser, then its basic one (the script does both); fr and the rest: basic;
- zh: the rules of ``cn_tn`` (``qa_train.eval.scores.chinese``); yue: simplified characters, then basic;
- all: words of punctuation alone removed, lower case; zh and yue (and ja): single characters.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from threading import Lock

from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from qa_train.eval.scores.chinese import normalise_mandarin

# Written without spaces between words: an error is counted per character (WER is then CER).
CHARACTER_LANGUAGES = frozenset({"zh", "yue", "ja"})

_TAG = re.compile(r"<\|[^|<>]*\|>")
# As the released scripts look for tags and gaps.
_ANY_TAG = re.compile(r"<\|.*?\|>")
_ONE_SPACE_BEFORE_MARK = re.compile(r" ?([!,.?;:])")
_SPACE_BEFORE_MARK = re.compile(r"\s+([!,.?;:])")


def strip_tags(text: str) -> str:
    """Remove ``<|...|>`` tags, collapse white space, close the gap before ``! , . ? ; :``."""
    text = " ".join(_TAG.sub(" ", text).split())
    return _SPACE_BEFORE_MARK.sub(r"\1", text)


# Words that the package spells out and the normaliser released with Qwen2-Audio, which is OpenAI's, does not change.
_NOT_RELEASED = ("kinda", "sorta", "dunno", "cause")


@lru_cache(maxsize=1)
def _english() -> Callable[[str], str]:
    # Building the spelling table takes tens of milliseconds: once per process.
    normaliser = EnglishTextNormalizer()
    for word in _NOT_RELEASED:
        normaliser.replacers.pop(rf"\b{word}\b", None)
    return normaliser


@lru_cache(maxsize=1)
def _basic() -> Callable[[str], str]:
    return BasicTextNormalizer()


# Python has one limit for all threads.
_limit = Lock()


def whisper_normalise(text: str, language: str | None) -> str:
    """Whisper's normalisers in the released order: English then basic for "en", else basic."""
    if language == "en":
        # The normaliser reads numbers, and a model may repeat a digit for thousands of characters.
        with _limit:
            limit = sys.get_int_max_str_digits()
            sys.set_int_max_str_digits(0)
            try:
                text = _english()(text)
            finally:
                sys.set_int_max_str_digits(limit)
    return _basic()(text)


def _is_punctuation(token: str) -> bool:
    return all(unicodedata.category(character).startswith("P") for character in token)


def _simplified(text: str) -> str:
    """Cantonese in simplified characters as zhconv writes them (zh-cn)."""
    try:
        import zhconv
    except ImportError as error:
        raise ValueError(
            "scoring Cantonese (yue) needs zhconv for simplified characters: pip install 'qa-train[eval]'"
        ) from error
    return str(zhconv.convert(text, "zh-cn"))


def released_normalise(text: str, language: str | None) -> str:
    """The normaliser that the released evaluation applies to a transcript of ``language``.

    Raises:
        ValueError: yue without the package zhconv.
    """
    if language == "zh":
        return normalise_mandarin(text)
    return whisper_normalise(_simplified(text) if language == "yue" else text, language)


def without_tags(text: str, *, strip: bool = True) -> str:
    """The answer as the released scripts read it: special tokens removed, and the ends stripped."""
    text = _ANY_TAG.sub("", text)
    return text.strip() if strip else text


def transcript_words(text: str, language: str | None) -> list[str]:
    """The units a transcript is scored in: words, or characters for zh, yue and ja."""
    text = re.sub(r"\s+", " ", _ANY_TAG.sub(" ", text))
    text = _ONE_SPACE_BEFORE_MARK.sub(r"\1", text).lstrip(" ")
    if language in ("zh", "ja"):
        text = "".join(text.split())
    kept = (word for word in released_normalise(text, language).split(" ") if not _is_punctuation(word))
    words = " ".join(kept).lower().split()
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
