"""Mandarin transcripts before scoring: numbers as they are spoken, punctuation as spaces.

The rules are those of ``cn_tn`` (speechio/chinese_text_normalization) with all its options off, as
the released ``evaluate_asr.py`` of Qwen2-Audio calls it; tests compare 500 texts with that tool.
Two of its habits are kept because they are part of the score: a rewritten number replaces the
FIRST place where its digits stand, and digits are looked for again after every rule.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

DIGITS = "零一二三四五六七八九"
# (power of ten, name), largest first.
UNITS = [(44 - 4 * i, name) for i, name in enumerate("载正涧沟穰秭垓京兆亿")] + [
    (4, "万"),
    (3, "千"),
    (2, "百"),
    (1, "十"),
]
_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃《》「」『』"
    "【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏·〈〉"
)
_AS_SPACE = str.maketrans(dict.fromkeys(_PUNCTUATION + string.punctuation, " "))
_NUMBER = r"\d+(?:\.\d+)?"
_BIG = "亿|千万|百万|万|千|百"
_MONEY_UNIT = f"(?:{_BIG}|(?:{_BIG}|)元|(?:{_BIG}|)块|角|毛|分)"
_COUNTERS = (
    "匹张座回场尾条个首阙阵网炮顶丘棵只支袭辆挑担颗壳窠曲墙群腔砣客贯扎捆刀令打手罗坡山岭江溪钟队单双对出口头脚板跳枝件贴"
    "针线管名位身堂课本页家户层丝毫厘分钱两斤铢石钧锱忽寸尺丈里寻常铺程撮勺合升斗盘碗碟叠桶笼盆盒杯斛锅簋篮罐瓶壶卮盏箩箱"
    "煲啖袋钵年月日季刻时周天秒旬纪岁世更夜春夏秋冬代伏辈丸泡粒幢堆根道面片块"
)


def spoken(number: str) -> str:
    """Digits, with at most one decimal point, as a number read out: 20002 is 两万零二.

    Raises:
        ValueError: more than one decimal point.
    """
    whole, *fraction = number.split(".")
    if len(fraction) > 1:
        raise ValueError(f"{number!r} is no number: it has more than one decimal point")
    symbols = _symbols(whole) if len(whole) > 1 else [DIGITS[int(c)] for c in whole]
    if fraction and fraction[0]:
        symbols += ["点", *(DIGITS[int(c)] for c in fraction[0])]
    text = "".join(_pairs(symbols))
    if text.startswith("点"):
        return "零" + text
    return text[1:] if text.startswith("一十") else text


def _symbols(digits: str) -> list[str]:
    """Digit and unit names in order; zeros in front give one 零 before a single digit."""
    bare = digits.lstrip("0")
    if not bare:
        return []
    if len(bare) == 1:
        return ["零"] * (len(digits) > 1) + [DIGITS[int(bare)]]
    power, name = next(unit for unit in UNITS if unit[0] < len(bare))
    return [*_symbols(digits[:-power]), name, *_symbols(bare[-power:])]


def _pairs(symbols: list[str]) -> list[str]:
    """二 becomes 两 before 百 and more, unless it is the last part of a number of tens."""
    units = {name for _, name in UNITS}
    out = list(symbols)
    for i, symbol in enumerate(symbols[:-1]):
        counted = symbols[i + 1] in units and symbols[i + 1] != "十"
        first = i == 0 or (symbols[i - 1] in units and symbols[i - 1] != "十")
        if symbol == "二" and counted and first:
            out[i] = "两"
    return out


def _read(digits: str) -> str:
    return "".join(DIGITS[int(c)] for c in digits)


def _date(found: str) -> str:
    year, mark, rest = found.rpartition("年")
    text = _read(year) + mark
    if rest:
        month, _, day = rest.partition("月")
        text += spoken(month) + "月" + (spoken(day[:-1]) + day[-1] if day else "")
    return text


def _money(found: str) -> str:
    for number in re.findall(_NUMBER, found):
        found = found.replace(number, spoken(number))
    return found


def _phone(found: str) -> str:
    return "".join(_read(part) for part in re.split(r"[\s-]+", found.strip("+")))


def _fraction(found: str) -> str:
    above, below = found.split("/")
    return f"{spoken(below)}分之{spoken(above)}"


# (what to look for, its group 1 rewritten by), in this order.
_RULES: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (re.compile(r"\D+((?:(?:[089]\d|(?:19|20)\d{2})年)?(?:\d{1,2}月(?:\d{1,2}[日号])?)?)"), _date),
    (re.compile(rf"\D+({_NUMBER}[多余几]?{_MONEY_UNIT}(?:\d{_MONEY_UNIT}?)?)"), _money),
    (re.compile(r"\D((?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8})\D"), _phone),
    (re.compile(r"\D((?:0(?:10|2[1-3]|[3-9]\d{2})-?)?[1-9]\d{6,7})\D"), _phone),
    (re.compile(r"(\d+/\d+)"), _fraction),
    (re.compile(rf"({_NUMBER}[%％])"), lambda found: "百分之" + spoken(found[:-1])),
    (re.compile(rf"({_NUMBER})[多余几]?(?:[{_COUNTERS}]|[千毫微]克|[千分厘毫]米)"), spoken),
    (re.compile(r"(\d{4,32})"), _read),
    (re.compile(rf"({_NUMBER})"), spoken),
)
_LETTERS_AROUND_TWO = re.compile(r"([a-zA-Z]+)二([a-zA-Z]+)")


def normalise_mandarin(text: str) -> str:
    """Numbers, dates, money, phone numbers, fractions and percentages in words; punctuation as spaces."""
    text = f"^{text}$"
    for pattern, rewrite in _RULES:
        for found in pattern.findall(text):
            if found:
                text = text.replace(found, rewrite(found), 1)
    for before, after in _LETTERS_AROUND_TWO.findall(text):
        # P2P, B2B.
        text = text.replace(f"{before}二{after}", f"{before}2{after}", 1)
    return text.lstrip("^").rstrip("$").translate(_AS_SPACE)
