"""What an answer in free words concludes: a number, or that an argument is valid. None: nothing of the kind is said."""

from __future__ import annotations

import re

_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = {word: n for n, word in enumerate(_UNITS)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
# "7", "1,000", "seven", "twenty-one"; nothing of "3.5", "-3", "50%" and "2nd".
_NUMBER = (
    r"(?<![\w.,-])(?:\d{1,3}(?:,\d{3})+|\d+)(?![\w%]|[.,]\d)"
    rf"|\b(?:(?:{'|'.join(_TENS)})[ -](?:{'|'.join(_UNITS[1:10])})|{'|'.join((*_TENS, *_UNITS))})\b"
)
# "The final answer is 7", "a total of 7", "In total, you have 7", "The total number of red apples is 7".
_BETWEEN = (
    r"(?:[\s:=,]|\b(?:number|count|of|to|the|this|your|question|is|are|be|would|must|should|therefore|thus|you|i|we|have|"
    r"there|comes)\b)*"
)
_NAMED_NUMBER = re.compile(
    rf"\b(?:answer|total|altogether|conclusion)\b{_BETWEEN}(?:\b(?:number|count) of (?:\w+ ){{1,4}}(?=is\b|are\b))?"
    rf"{_BETWEEN}({_NUMBER})"
)
_NOT = r"(?:\bnot|\bnever|n['’]t|\bcannot be)(?: (?:be|a|an|logically|considered|\w+ly))*"
_VALID = re.compile(rf"(?P<no>{_NOT} valid\b)|(?P<yes>{_NOT} in-?valid\b|\bvalid\b)|(?P<invalid>\bin-?valid\b)")
# A repeated question is no answer.
_ASKED = re.compile(r"\bvalid or in-?valid\b|\bwhether [^.,;?!\n]*|[^.!?\n]*\?")


def concluded_number(text: str) -> int | None:
    """The whole number that an answer calls its answer or total, the last of several; else its last number.

    Digits, or English words below 100.
    """
    text = re.sub(r"[*_${}\\]|\b(?:boxed|text)(?=\{)", " ", text.lower())
    found = _NAMED_NUMBER.findall(text) or re.findall(_NUMBER, text)
    if not found:
        return None
    said = found[-1].replace(",", "")
    return int(said) if said.isdigit() else sum(_WORDS[word] for word in re.split("[ -]", said))


def concluded_valid(text: str) -> bool | None:
    """Whether an answer is that something is valid; False: that it is not.

    In this order: what it calls its answer, its first word, its last statement.
    """
    text = " ".join(_ASKED.sub(" ", re.sub(r"[*_${}\\]", " ", text.lower())).split())
    named = [m for start in re.finditer(r"\banswer(?: is|:)", text) if (m := _VALID.search(text, start.end()))]
    said = [*_VALID.finditer(text)]
    if not said:
        return None
    first = said[0] if not text[: said[0].start()].strip(" \"'(") else said[-1]
    return (named[-1] if named else first).lastgroup == "yes"
