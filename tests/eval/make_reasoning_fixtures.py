"""Makes fixtures/{big_bench_audio,muchomusic}.json: made answers, and what public scripts read in them.

    python -m tests.eval.make_reasoning_fixtures FOLDER tests/eval/fixtures

FOLDER holds ``big_bench_audio.py``: speech_to_speech/evals/big_bench_audio/scoring.py of the package speech-to-speech
1.1.0; and ``muchomusic.py``: muchomusic_eval/scoring.py of github.com/mulab-mir/muchomusic at d3c9a42 (imports pandas).
They run unchanged; nothing of ``qa_train`` is imported. Seed 23.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from tests.by_path import module_at

ANSWERS = 800
TASKS = {
    "formal_fallacies": ("valid", "invalid"),
    "navigate": ("yes", "no"),
    "web_of_lies": ("yes", "no"),
    "object_counting": ("2", "seven", "12", "eighteen", "Ten", "5"),
}
# {0}: the answer; {1}: another one.
ANY = (
    "{0}|{0}.|**{0}**|Final answer: {0}|Final answer: {0}.|The final answer is {0}.|So the answer is {0}.|"
    "My answer is {0}|The answer to the question is {0}.|Answer - {0}|Let me think step by step.\nFinal answer: {0}|"
    "At first I said {1}. Final answer: {0}.|The answer is {1}. No wait, the answer is {0}.|I think it is {0}.|{0}!|"
    "Final answer: {0}, not {1}.|It is not {1} but {0}|Final answer: {0}. I am certain that {1} is wrong.|"
    "{0}, and not {1}|Not sure.|I cannot hear a question.||Hm"
).split("|")
OWN = {
    "formal_fallacies": (
        "The argument is {0}.|This argument is deductively {0}.|The argument is not valid.|It isn't deductively valid.|"
        "The argument is {0}, because the premises do not lead there.|It looks {1}, but in fact it is {0}.|"
        "The argument is in-valid|{0}, since the first premise says so"
    ).split("|"),
    "navigate": (
        "{0}, you take three steps.|Turning left and walking on, so {0}.|{0}, you do|Yeah, you do.|Nope."
    ).split("|"),
    "web_of_lies": "{0}, she tells the truth.|Delbert lies, so {0}.|{0}, he does|Nah|Yep, he does".split("|"),
    "object_counting": (
        "You have {0} fruits.|There are {0} of them.|3 apples and 4 plums, so {0}.|That makes {0} in total.|"
        "I count {0} animals.|One plus one plus one: {0}|A total of {0} objects.|You have {0} instruments"
    ).split("|"),
}

MUSIC = 600
OPTIONS = [
    ["Reggae", "Pop music", "Latin rock", "Ska"], ["Piano", "Electric piano", "Bass Drum", "Double bass"],
    ["It builds tension.", "A calm mood", "It slows down", "Dance"], ["C major", "D minor", "A major", "B flat major"],
    ["Four on the floor", "A waltz", "Off-beat", "None of the above"],
]  # fmt: skip
SAID = (
    "({0})|{0}|{0}.|({0}) {1}|{1}|{1}.|The correct answer is: {0}|The correct answer is: ({0}) {1}|It is {1}.|"
    "I hear {1} and {2}|{0} or C|The answer is {0}|Answer: {0}|The music is {1}, I think|the option is {1}|not sure||"
    "**{0}**|A fast song with drums|It is hard to say. Maybe {2}?|({0}) and ({3})|{0}) {1}|BASS"
).split("|")


def answers(theirs: Any, draw: random.Random) -> list[list[Any]]:
    rows = []
    for _ in range(ANSWERS):
        task = draw.choice([*TASKS])
        pair = draw.sample(TASKS[task], 2)
        text = draw.choice(ANY if draw.random() < 0.5 else OWN[task]).format(*pair)
        text = draw.choice([str, str, str.capitalize, str.upper])(text)
        rows.append([task, text, theirs.extract_answer(task, text)[0]])
    return rows


def music(theirs: Any, draw: random.Random) -> dict[str, Any]:
    """Rows of [options as asked, the right one, answer, place that is read or -1], and the scores of them all."""
    rows, orders = [], []
    for _ in range(MUSIC):
        answers = draw.choice(OPTIONS)
        orders.append(draw.sample(range(4), 4))
        asked = [answers[i] for i in orders[-1]]
        place, other = draw.randrange(4), draw.randrange(4)
        text = draw.choice(SAID).format("ABCD"[place], asked[place], asked[other], "ABCD"[other])
        text = draw.choice([str, str, str, str.lower])(text)
        rows.append([asked, answers[0], text])
    read = theirs.extract_responses([text for *_, text in rows], [asked for asked, *_ in rows])
    scores = theirs.compare_answers(read, orders)
    made = [[*row, place] for row, place in zip(rows, read, strict=True)]
    return {"accuracy": scores["accuracy"], "unanswered": scores["unanswered"], "rows": made}


def main(scripts: str, out: str) -> None:
    theirs = {name: module_at(Path(scripts, f"{name}.py")) for name in ("big_bench_audio", "muchomusic")}
    made: dict[str, Any] = {
        "big_bench_audio": answers(theirs["big_bench_audio"], random.Random(23)),
        "muchomusic": music(theirs["muchomusic"], random.Random(23)),
    }
    for name, value in made.items():
        text = json.dumps(value, ensure_ascii=False).replace("], [[", "],\n[[").replace('], ["', '],\n["')
        Path(out, f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
