"""Makes fixtures/airbench_*.json: odd answers and judge lines, and what AIR-Bench's own scripts print.

    python tests/eval/make_airbench_fixtures.py FOLDER_WITH_score_foundation.py_AND_cal_score.py tests/eval/fixtures

The scripts (OFA-Sys/AIR-Bench, score_foundation.py @d5c1bdf, cal_score.py @2c35f44) run unchanged as
processes, except that cal_score.py takes the name of its input file as an argument. Seed 17.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COUNT = 600
LABELS = ["happy", "sad", "angry", "neutral", "A dog", "Bell", "Cat", "Drum", "C", "yes"]
ANSWERS = (
    "A|B.|C. happy|D) sad|The answer is A.|the answer is B|Because I hear a bell|Can't say|A dog barks|Answer: C.|"
    "Dogs|(B)|**C**|a|b.|None|none||\n|  B  |\nC\n|I think it is D!|option C)|happy|The answer is C|D|E.|1|xA|Ax|xAx|"
    "It is B.\n|B\nC|无|Ａ|None of them|No idea.|sound of a C\n.|A B C D|BB|Unknown"
).split("|")
CHAT_TASKS = (
    "speech_QA speech_dialogue_QA sound_QA sound_generation_QA music_QA music_generation_analysis_QA "
    "speech_and_sound_QA speech_and_music_QA"
).split()
JUDGE_LINES = (
    "8 7|9 9|10 1|1 10|7 8\n|\n6 5|  5 5  |8  7|8,7|8 7 6|8|11 5|5 11|8.5 7|eight seven|-1 5|+5 6|0 0|8\n7|9\t8|"
    "Assistant 1: 8|1_0 2|８ 7|I cannot help with that.||8/10 7/10|10 10|3 9|100 1|8 7."
).split("|")


def printed(script: Path, folder: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, str(script), *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def foundation(script: Path, draw: random.Random, folder: str) -> dict[str, Any]:
    rows = []
    for i in range(COUNT):
        labels = draw.sample(LABELS, 4)
        width = draw.choice([2, 3, 4, 4, 4])
        row: dict[str, Any] = {f"choice_{'abcd'[j]}": labels[j] for j in range(width)}
        if draw.random() < 0.3:
            row |= {f"choice_{'abcd'[j]}": None for j in range(width, 4)}
        if width == 4 and draw.random() < 0.1:
            row["choice_d"] = row["choice_a"]
        task = draw.choice(
            ["Music_AQA/music_avqa", "Sound_AQA/avqa", "Sound_AQA/clothoaqa", "Speaker_Emotion_Recontion/meld"]
        )
        row["task_name"], row["dataset_name"] = task.split("/")
        row["answer_gt"] = row[f"choice_{'abcd'[draw.randrange(width)]}"]
        response = draw.choice(ANSWERS) if draw.random() < 0.7 else draw.choice(["A", "B", "C", "D"])
        rows.append(row | {"uniq_id": i, "response": response})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(folder, "Foundation_result_modelx.jsonl").write_text(lines, encoding="utf-8")
    out = printed(script, folder)
    found = re.findall(r"^(\S+): Sum=(\d+), correct=(\d+)", out, re.M)
    tasks = {name: [int(n), int(right)] for name, n, right in found}
    return {"tasks": tasks, "fail_num": int(re.findall(r"^fail_num: (\d+)", out, re.M)[0]), "rows": rows}


def chat(script: Path, draw: random.Random, folder: str, name: str) -> dict[str, Any]:
    rows = [{"task_name": draw.choice(CHAT_TASKS), "gpt-score": draw.choice(JUDGE_LINES)} for _ in range(COUNT)]
    Path(folder, name).write_text(json.dumps(rows), encoding="utf-8")
    out = printed(script, folder, name)
    found = re.findall(r"^(\w+): Sum=(\d+), Win_Rate=(\S+), gpt4_avg_score=(\S+), llm_avg_score=(\S+)$", out, re.M)
    groups = {g[0]: [int(g[1]), *map(float, g[2:])] for g in found}
    fails, successes = re.findall(r"^fail_num: (\d+), success_num: (\d+)", out, re.M)[0]
    return {"groups": groups, "fail_num": int(fails), "success_num": int(successes), "rows": rows}


def main(scripts: str, out: str) -> None:
    draw = random.Random(17)
    with tempfile.TemporaryDirectory() as folder:
        made = {
            "foundation": foundation(Path(scripts, "score_foundation.py"), draw, folder),
            "chat": chat(Path(scripts, "cal_score.py"), draw, folder, "chat_score.json"),
            "chat_swapped": chat(Path(scripts, "cal_score.py"), draw, folder, "chat_score_cir.json"),
        }
    for name, result in made.items():
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in result.pop("rows"))
        text = json.dumps(result)[:-1] + ', "rows": [\n' + rows + "\n]}\n"
        Path(out, f"airbench_{name}.json").write_text(text, encoding="utf-8")
        print(name, len(text), result)


if __name__ == "__main__":
    main(*sys.argv[1:])
