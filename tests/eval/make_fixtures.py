"""Makes the pairs under fixtures/: hypotheses, references and what the public scripts say of them.

    python tests/eval/make_fixtures.py FOLDER_WITH_cn_tn.py tests/eval/fixtures

The expected values come from the public tools themselves, joined here by the plainest code: the
``cn_tn.py`` of speechio/chinese_text_normalization (as shipped in lmms_eval 0.7.3), zhconv 1.4.3,
whisper_normalizer 0.1.15, sacrebleu 2.6.0 (mecab-python3 1.0.12 with ipadic 1.0.0) and a textbook
edit distance. Nothing of ``qa_train`` is imported. Seeds are stated below.
"""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

COUNT = 500
SEEDS = {"en": 11, "zh": 12, "yue": 13, "fr": 14, "bleu": 15, "cn_tn": 16}

WORDS = {
    "en": (
        "colour center honour Mr. Dr. can't won't it's let's she'd gonna grey theatre 21 twenty-five $20.5 3rd 1,000 "
        "50% 1990s two million percent okay uh um mm [noise] (laughs) hello world the cat sat café naïve programme "
        "Smith's they're analyse organisation 10:30 double oh seven half past one A.M. n't e-mail X-ray and , . ! ? ; :"
    ).split(),
    "fr": (
        "l'été c'est aujourd'hui où ça garçon 21 1er 2,5 % M. Mme n'est-ce pas œuvre cœur élève être -là «bonjour» "
        "[bruit] (rires) déjà vu À bientôt quatre-vingt-dix le chat noir , . ! ? ; : …"
    ).split(),
    "zh": (
        "今天 天气 很好 ， 。 ！ ？ 、 我们 去 公园 2023年 10月1日 08年5月 3月8号 两百 20% 3.5％ 1/2 100元 3块5 "
        "12.5万元 13812345678 010-62345678 86 15012345678 12345 2 20 200 2000 20002 10 12 110 1020 3个 2个 22本 "
        "0.5米 3.14 P2P B2B APP iPhone 15 《 三体 》 “ 你好 ” （ 笑 ） 女儿 一点儿 〇 零 － - · … 99多块 5几年 7分 "
        "19日 8点30分 1000000000 10000 100000000 120005 007 0 00 3.0 ２３ 3-4 5~6 $ A4"
    ).split(),
    "yue": (
        "今日 天氣 好 好 ， 。 我哋 去 飲茶 啦 佢 喺 邊度 呀 ？ 裏面 裡面 著 乾淨 後面 皇后 頭髮 發展 什麼 麵條 面對 "
        "計算機 軟件 鼠標 電腦 3 個 2023年 《 書 》 （ 笑 ） [噪音] ok GOOD 係 唔係 嘅 嚟 冇 鐘錶 體驗 雲 、 ！"
    ).split(),
}
TAGS = ["<|en|>", "<|zh|>", "<|yue|>", "<|fr|>", "<|0.00|>", "<|nospeech|>"]
BLEU_WORDS = {
    "13a": (
        "The cat isn't on the mat , Mr. Brown's 3.5 dollars ( or 1,000 ) \"quoted\" U.S. e-mail well-known ! ?"
    ).split(),
    "zh": "今天 天气 很好 ， 我们 去 公园 吧 。 ABC 2023 年 GDP 增长 3.5% ！ （ 笑 ） 你好".split(),
    "ja-mecab": "今日 は 天気 が いい です ね 。 私 たち は 公園 へ 行き ます 、 猫 ABC 2023 年 東京 タワー ！".split(),
}


def distance(a: list[str], b: list[str]) -> int:
    """Levenshtein distance by the full table."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
    return table[-1][-1]


def tokens(text: str) -> list[str]:
    """fairseq's EvaluationTokenizer: lower case, tokens of punctuation alone left out."""
    kept = [t for t in text.split(" ") if not all(unicodedata.category(c)[0] == "P" for c in t)]
    return " ".join(kept).lower().split()


def units(text: str, language: str, tools: dict[str, Any]) -> list[str]:
    """The steps of evaluate_asr.py for one text."""
    text = re.sub(r"<\|.*?\|>", " ", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?([!,.?;:])", r"\1", text).lstrip(" ")
    if language == "zh":
        return list("".join(tokens(tools["cn_tn"](re.sub(r"\s+", "", text)))))
    if language == "yue":
        text = tools["zhconv"](text, "zh-cn")
    if language == "en":
        text = tools["english"](text)
    text = tools["basic"](text)
    return list("".join(tokens(text))) if language == "yue" else tokens(text)


def spoil(words: list[str], vocabulary: list[str], draw: random.Random) -> list[str]:
    """Drop, change and add some words."""
    out: list[str] = []
    for word in words:
        fate = draw.random()
        out += [] if fate < 0.1 else [draw.choice(vocabulary)] if fate < 0.2 else [word]
        out += [draw.choice(vocabulary)] if draw.random() < 0.08 else []
    return out


def sentence(words: list[str], spaced: bool, draw: random.Random) -> str:
    text = "".join(w + (" " if spaced or draw.random() < 0.1 else "") for w in words)
    if draw.random() < 0.25:
        text = f"{draw.choice(TAGS)}{text}"
    return text.upper() if draw.random() < 0.05 else text + draw.choice(["", "", ".", "。", "\n", " \t"])


def speech_pairs(language: str, tools: dict[str, Any]) -> list[list[Any]]:
    draw, vocabulary = random.Random(SEEDS[language]), WORDS[language]
    spaced = language in ("en", "fr")
    rows: list[list[Any]] = []
    while len(rows) < COUNT:
        words = [draw.choice(vocabulary) for _ in range(draw.randrange(1, 9))]
        reference, answer = (
            sentence(w, spaced, draw) for w in (words, [] if draw.random() < 0.03 else spoil(words, vocabulary, draw))
        )
        try:
            sides = [units(text, language, tools) for text in (reference, answer)]
        except (ValueError, StopIteration, RuntimeError, IndexError):
            # cn_tn itself fails on some strings of digits: no expected value exists.
            continue
        rows.append([reference, answer, distance(*sides), len(sides[0])])
    return rows


def number_texts(tools: dict[str, Any]) -> list[list[str]]:
    draw, vocabulary = random.Random(SEEDS["cn_tn"]), WORDS["zh"]
    rows = []
    while len(rows) < COUNT:
        number = str(draw.randrange(10 ** draw.randrange(1, 14)))
        number += f".{draw.randrange(1000)}" if draw.random() < 0.2 else ""
        middle = number + draw.choice(["", "个", "元", "%", "万", "/7", "多块", "年", "月", "亿", "米", "日元"])
        text = draw.choice(vocabulary) + middle + draw.choice(vocabulary)
        try:
            rows.append([text, tools["cn_tn"](text)])
        except (ValueError, StopIteration, RuntimeError, IndexError):
            rows.append([text, None])
    return rows


def translation_pairs(tokenizer: str) -> dict[str, Any]:
    from sacrebleu import corpus_bleu

    draw, vocabulary = random.Random(SEEDS["bleu"]), BLEU_WORDS[tokenizer]
    glue = " " if tokenizer == "13a" else ""
    sides: tuple[list[str], list[str]] = ([], [])
    for _ in range(COUNT):
        words = [draw.choice(vocabulary) for _ in range(draw.randrange(2, 14))]
        sides[0].append(glue.join(words))
        sides[1].append("" if draw.random() < 0.03 else glue.join(spoil(words, vocabulary, draw)))
    scores = [
        corpus_bleu(sides[1][i : i + 50], [sides[0][i : i + 50]], tokenize=tokenizer).score for i in range(0, COUNT, 50)
    ]
    whole = corpus_bleu(sides[1], [sides[0]], tokenize=tokenizer).score
    return {"pairs": [list(pair) for pair in zip(*sides, strict=True)], "blocks_of_50": scores, "corpus": whole}


def main(scripts: str, out: str) -> None:
    sys.path.insert(0, scripts)
    import zhconv
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    tools = {
        "cn_tn": importlib.import_module("cn_tn").TextNorm(),
        "zhconv": zhconv.convert,
        "english": EnglishTextNormalizer(),
        "basic": BasicTextNormalizer(),
    }
    made: dict[str, Any] = {f"asr_{language}": speech_pairs(language, tools) for language in WORDS}
    made["cn_tn"] = number_texts(tools)
    made |= {f"bleu_{name}": translation_pairs(name) for name in BLEU_WORDS}
    for name, rows in made.items():
        if isinstance(rows, list):
            text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
        else:
            pairs = ",\n".join(json.dumps(pair, ensure_ascii=False) for pair in rows.pop("pairs"))
            text = json.dumps(rows)[:-1] + ', "pairs": [\n' + pairs + "\n]}\n"
        (Path(out) / f"{name}.json").write_text(text, encoding="utf-8")
        print(name, len(text))


if __name__ == "__main__":
    main(*sys.argv[1:])
