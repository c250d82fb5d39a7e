"""Makes fixtures/{mmau_words,voicebench_*}.json: made answers, and what public scripts read in them.

    python -m tests.eval.make_choice_fixtures FOLDER_WITH_evaluation.py tests/eval/fixtures

``evaluation.py`` holds string_match, the rule that MMAU's and MMAR's evaluation scripts share. VoiceBench's readers
(AdvBench's refusals, spoken options, BBH) are those of its repository as lmms_eval 0.7.3 carries them in
tasks/voicebench/utils.py (pip install --no-deps lmms_eval==0.7.3 numpy); all run unchanged, except that their draws
among the choices return None: the script would have guessed. Nothing of ``qa_train`` is imported. Seed 19.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import sys
import types
from pathlib import Path
from typing import Any

from tests.by_path import module_at

WORDS, REFUSALS, OPTIONS, BBH = 600, 500, 600, 600
CHOICES = [
    ["guitar", "bass guitar", "drum kit", "piano"], ["Man", "Woman", "Child"], ["two", "three", "2 times", "3 times"],
    ["C major", "C minor", "A major", "D minor"], ["happy", "Not happy", "unhappy"], ["yes", "no"],
    ["Yes, it is", "No"],
    ["a dog barks", "a cat", "dog and cat", "None of the above"], ["天气", "音乐", "speech"],
    ["rock'n'roll", "hip-hop", "R&B"],
]  # fmt: skip
SAID = ("{}|The answer is {}.|({}) {}|{}!|I hear {}, not {}|{} and {}|It is a {}|**{}**|{}?|the {} of it|{}s|not {}|"
        "A. {}|_{}_|{}\n|Maybe {} or {}.|\"{}\"|{} {}").split("|")  # fmt: skip
HARM = (
    "Sorry, no.|I'm sorry, but I cannot help with that.|I can't do that|I can’t assist with that request|I cant help|"
    "As an AI I must decline|As a friend, I'd say yes|That is illegal|It is against the rules|It is against the law|"
    "Sure, here is how|First you buy a rope|Instead, let's talk|Instead of that, try this|I won't|I wont|I will not|"
    "I do not know|I don't know|I don't think so|Please don't ask me that|Please do ask|It's wrong to do so|unethical|"
    "Ethical hackers do it|This may be harmful|This can be harmful to others|legal and ethical standards matter|OK|"
    "抱歉，我不能帮你|这是违法的|当然可以|I am unable to do it|I'm unable to|I am able to do it|I'm just a model|"
    "I'm not going to|i apologize|I APOLOGIZE FOR THE DELAY|My apologies|I refuse|No.|no|"
    "That goes against the principles I hold|"
    "I'm an expert, so listen|You are not responsible|it is not appropriate|It is not right|well-being first||  |\n|..."
).split("|")
LETTER = (
    "{}|{}.|({})|{})|{}: the river|**{}**|The answer is {}.|the answer is {}|The correct answer is {}, the river.|"
    "{} is right|I would choose {}.|I would go with {}, because it flows|It's option {}|Option {} fits best.|"
    "I think {}|It must be **{}**|"
    'The best choice is ({}).|Answer: {}|answer is: **{}**|So the right one is "{}".|'
    "The answer is \\boxed{{{}}}.|答案是{}|"
    "is \\( \\text{{{}}} \\)|{}, because of the river|My final choice would be {}.|{}, I believe|I'd say {}.|"
    "It is '{}'|A dog, so {}.|Not sure|The river|"
    "Either {} or B, I cannot tell.|{} and C|All of them|None|I'm going with {} on this one|Both|"
    "The letter {} it is.|: \n{}.|"
    "The answer to the question is '{}'|{} is the best answer|would be ({})|"
    "question asks for water; that is {}: the river"
).split("|")
YES_NO = (
    "{0}|{0}.|{0}, that is so|The answer is {0}.|So the answer is {0}|**{0}**|Final answer: {0}|the answer is: {0}!|"
    "Well, {0}|The answer to the question is {0}.|I would answer {0}|In conclusion: {0}|\\boxed{{{0}}}|I know|"
    "Nothing to say|"
    "Let me think. Step by step, the answer must be {0}.|The answer is {1}.|{1}|answer {1}|It depends|Not {0}"
).split("|")
MATTER = {
    "navigate": (
        "You return to the starting point.|You do not return to the starting point.|"
        "We end up back at the starting point|"
        "You end up three steps away.|I am back where I started|You will not return to the starting point|"
        "You are not at the starting point.|So we don't return to the starting point|"
        "You'll end up back where you started"
    ),
    "sports_understanding": (
        "The sentence is plausible.|The sentence is not plausible.|It is implausible.|It's not a plausible sentence|"
        "Considering these points, the sentence seems plausible.|It seems unlikely|This makes it a plausible sentence|"
        "making it implausible|I would say the sentence is plausible|The sentence is not entirely accurate"
    ),
    "web_of_lies": (
        "So Fidel tells the truth|So Fidel does not tell the truth|Fidel lies|Fidel is lying|So Fidel must be lying|"
        "Fidel must be telling the truth|The answer is Fidel lies|The answer is Ka tells the truth.|"
        "Therefore Ka cannot be telling the truth|Ka says so"
    ),
}
ORDER = (
    "({})|The answer is ({}).|The correct adjective order is option {}.|"
    "option {} has the correct adjective order|{}|{}.|{})|"
    "Sentence {} has the correct order|I pick ({}) here|The correct sentence is ({})|{} is correct|"
    "Option {} sounds natural|"
    "The answer is {}|It is the first option|the correct sentence is option {}|Neither|answer is [{}]|"
    "{} because of the order"
).split("|")


def filled(form: str, draw: random.Random, words: list[str]) -> str:
    return form.format(*(draw.choice(words) for _ in range(form.count("{"))))


def word_rows(folder: str, draw: random.Random) -> list[list[Any]]:
    script = module_at(Path(folder, "evaluation.py"))
    rows = []
    for _ in range(WORDS):
        choices = draw.choice(CHOICES)
        answer = draw.choice(choices)
        said = filled(draw.choice(SAID), draw, [answer, answer, draw.choice(choices)])
        said = draw.choice([str, str, str.upper, str.lower, str.title])(said) if draw.random() < 0.95 else ""
        rows.append([answer, said, choices, script.string_match(answer, said, choices)])
    return rows


def voicebench() -> Any:
    """lmms_eval's tasks/voicebench/utils.py, without what it imports for its judges."""
    spec = importlib.util.find_spec("lmms_eval")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    folders = {"lmms_eval": root, "lmms_eval.tasks": root / "tasks"}
    folders["lmms_eval.tasks.voicebench"] = root / "tasks/voicebench"
    for name in (*folders, "loguru", "lmms_eval.llm_judge", "lmms_eval.verifiers", "lmms_eval.verifiers.openai"):
        module = types.ModuleType(name)
        module.__path__ = [str(folders[name])] if name in folders else []
        module.__getattr__ = lambda _: Silent()  # type: ignore[method-assign]
        sys.modules[name] = module
    script = importlib.import_module("lmms_eval.tasks.voicebench.utils")
    script.random = types.SimpleNamespace(choice=lambda among: None)
    return script


class Silent:
    """Takes the place of loggers and judges."""

    def __call__(self, *_: Any, **__: Any) -> Silent:
        return self

    def __getattr__(self, _: str) -> Silent:
        return self


def refusal_rows(script: Any, draw: random.Random) -> list[list[Any]]:
    rows = []
    for _ in range(REFUSALS):
        text = " ".join(draw.choice(HARM) for _ in range(draw.choice([1, 1, 2, 3])))
        text = draw.choice([str, str, str, str.lower, str.upper])(text)
        rows.append([text, bool(script.voicebench_process_results_harm({}, [text])["accuracy"])])
    return rows


def option_rows(script: Any, draw: random.Random) -> list[list[Any]]:
    rows = []
    for _ in range(OPTIONS):
        text = filled(draw.choice(LETTER), draw, [draw.choice("ABCD")])
        if draw.random() < 0.2:
            text = draw.choice(["Rivers carry water. ", "Let me think about it.\n", "That's a great question! "]) + text
        found = [x for x in "ABCD" if script.voicebench_process_results_mcq({"reference": x}, [text])["accuracy"]]
        rows.append([text, found[0] if found else None])
    return rows


def bbh_rows(script: Any, draw: random.Random) -> list[list[Any]]:
    rows = []
    for _ in range(BBH):
        task = draw.choice([*MATTER, "hyperbaton"])
        if task == "hyperbaton":
            text, said = filled(draw.choice(ORDER), draw, [draw.choice("AB")]), ("(A)", "(B)")
        else:
            forms = YES_NO if draw.random() < 0.6 else MATTER[task].split("|")
            words = draw.choice([("yes", "true"), ("no", "false"), ("Yes", "True"), ("No", "False")])
            text, said = draw.choice(forms).format(*words), ("yes", "no")
        if draw.random() < 0.2:
            text = draw.choice(["Let me see.\n", "After a moment of thought: "]) + text
        score = script.voicebench_process_results_bbh
        found = [x for x in said if score({"id": task, "reference": x}, [text])["accuracy"]]
        rows.append([task, text, found[0] if found else None])
    return rows


def main(scripts: str, out: str) -> None:
    draw, script = random.Random(19), voicebench()
    made = {
        "mmau_words": word_rows(scripts, draw),
        "voicebench_refusals": refusal_rows(script, draw),
        "voicebench_options": option_rows(script, draw),
        "voicebench_bbh": bbh_rows(script, draw),
    }
    for name, rows in made.items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        Path(out, f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        print(
            name, len(rows), {str(value): sum(row[-1] == value for row in rows) for value in {row[-1] for row in rows}}
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
