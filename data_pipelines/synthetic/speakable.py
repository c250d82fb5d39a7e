"""Which texts can be read out and still be understood."""

from __future__ import annotations

import re

_URL = re.compile(
    r"https?://|www\.|\b[\w.+-]+@[\w-]+\.\w|\b\w+\.(?:com|org|net|io|py|js|html?|json|csv|txt)\b", re.IGNORECASE
)
_CODE = re.compile(
    r"```|`[^`]+`|^\s*(?:def|class|import|from|function|const|let|var|#include|public|SELECT)\b.*[(){};:=*]|"
    r"[\w\])]\s*(?:==|!=|<=|>=|\+=|&&|\|\||->|=>)\s*[\w(\[]|\w+\([^)]*\)\s*[;{]|[{};]\s*$",
    re.MULTILINE,
)
_FORMULA = re.compile(r"\$[^$\s][^$]*\$|\\[a-zA-Z]+\{|\\\(|\\\[|\w\^\w|_\{")
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|^\s{0,3}#{1,6}\s|\*\*|\[[^\]]*\]\([^)]*\)", re.MULTILINE)
_TABLE = re.compile(r"^.*\|.*\|.*$|^[^\n\t]*\t[^\n\t]*\t", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\[[A-Za-z _]+\]|\{[A-Za-z_ ]+\}|<\|[^<>]*\|>|_{3,}|\.{4,}")
_LIST_LINE = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)
_LATIN = re.compile(r"[a-zA-ZÀ-ɏ]")
MAX_LIST_LINES = 3


def unspeakable(text: str, *, max_words: int, latin: bool = True) -> str | None:
    """Why ``text`` cannot be spoken, in two words for the counts; None when it can.

    ``latin``: the voices read Latin letters only.
    """
    if not text.strip():
        return "no text"
    rules = (("code", _CODE), ("web address", _URL), ("formula", _FORMULA), ("table", _TABLE), ("markup", _MARKUP),
             ("placeholder", _PLACEHOLDER))  # fmt: skip
    for reason, pattern in rules:
        if pattern.search(text):
            return reason
    if len(_LIST_LINE.findall(text)) > MAX_LIST_LINES:
        return "long list"
    words = text.split()
    if len(words) > max_words:
        return "too long"
    if any(len(word) > 30 for word in words):
        return "long word"
    letters = [c for c in text if c.isalpha()]
    if len(letters) < 0.6 * sum(not c.isspace() for c in text):
        return "few letters"
    if latin and sum(bool(_LATIN.match(c)) for c in letters) < 0.95 * len(letters):
        return "other script"
    return None


def one_line(text: str) -> str:
    """The text as a synthesiser is given it: list marks gone, lines joined by sentence ends, spaces single."""
    lines = [_LIST_LINE.sub("", line).strip() for line in text.splitlines()]
    joined = " ".join(line if re.search(r"[.!?:;,]$", line) else f"{line}." for line in lines if line)
    # No leading dash: a command must not take the text for an option.
    return re.sub(r"\s+", " ", joined).strip().lstrip("-–— ")
