"""Readers of the benchmarks that bring their own questions: AIR-Bench, MMAU, MMAR, MMSU, VoiceBench, SAKURA, Big Bench
Audio.

Rows as in ``qa_train.eval.benchmarks.layouts``. Prompts are those of the named source, letter for letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qa_train.eval.benchmarks.airbench import CATEGORIES
from qa_train.eval.benchmarks.benchmark import Benchmark
from qa_train.eval.benchmarks.published import clip_beside, in_order, read_list
from qa_train.eval.scores.ifeval import read_instruction
from qa_train.eval.scores.labels import LETTERS

Row = dict[str, Any]

# AIR-Bench, Inference_Foundation.py: a missing option is written as "None".
AIRBENCH_LEAD = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, "
    "you may only choose A or B or C or D."
)
# lmms-eval 0.7.3, tasks mmau and mmar (the benchmarks prescribe no prompt).
MMAU_TAIL = "Answer with the option's letter from the given choices directly."
MMAR_LEAD = (
    "Listen to the audio and answer the following multiple-choice question. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
# dingdongwang/MMSU_Bench, mmsu_inference.py; a missing option is written as "None".
MMSU_LEAD = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, **you should "
    "only choose A or B or C or D.** Do not provide any additional explanations or content."
)
# "(a) dog" in a question and as its answer.
_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)(?=\s*\([a-z]\)\s|\s*$)", re.S)


def _airbench_clip(root: Path, row: Row) -> str:
    """{task}_{dataset}/{path}; the clips of Audio_Grounding are .flac although the list has .wav."""
    path = root / f"{row['task_name']}_{row['dataset_name']}" / str(row["path"])
    if row["task_name"] == "Audio_Grounding" and not path.is_file():
        path = path.with_suffix(".flac")
    return str(path)


def airbench_foundation(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """``root`` holds Foundation_meta.json and a folder of clips for each task and data set."""
    for row in read_list(root / "Foundation_meta.json"):
        options = [row.get(f"choice_{letter}") for letter in "abcd"]
        lines = [AIRBENCH_LEAD, row["question"]]
        lines += [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
        group = f"{row['task_name']}_{row['dataset_name']}"
        # Letters keep their places: an option that is missing before another one stays "None", as it is asked.
        while options and options[-1] is None:
            options.pop()
        yield {
            "id": f"{group}/{row['uniq_id']}",
            "audio": _airbench_clip(root, row),
            "prompt": "\n".join(lines),
            "gt": row["answer_gt"],
            "choices": [str(option) for option in options],
            "group": group,
            "task_name": row["task_name"],
            "dataset_name": row["dataset_name"],
        }


def airbench_chat(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """``root`` holds Chat_meta.json and folders of clips as above; open questions, with what a judge is shown."""
    for row in read_list(root / "Chat_meta.json"):
        group = f"{row['task_name']}_{row['dataset_name']}"
        if row["task_name"] not in CATEGORIES:
            raise ValueError(f"AIR-Bench Chat item {row['uniq_id']}: task {row['task_name']!r} is in no category")
        yield {
            "id": f"{group}/{row['uniq_id']}",
            "audio": _airbench_clip(root, row),
            "prompt": row["question"],
            "question": row["question"],
            "gt": row["answer_gt"],
            "meta_info": row["meta_info"],
            "task_name": row["task_name"],
            "dataset_name": row["dataset_name"],
            "group": group,
        }


def _options(
    root: Path, benchmark: Benchmark, row: Row, choices: list[str] | str, audio: tuple[str, ...], lines: tuple[str, ...]
) -> Row:
    """A question with lettered options, which stand where ``lines`` has "" (the clip's path is in a field ``audio``).

    ``choices``: the options, or a JSON list of them.
    """
    choices = json.loads(choices) if isinstance(choices, str) else choices
    choices = in_order(benchmark, row["id"], choices)
    shown = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    prompt = "\n".join(line or shown for line in lines)
    return {"id": row["id"], "audio": clip_beside(root, row, audio), "prompt": prompt, "choices": choices}


def mmau(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """``root`` is the .json list of the version; its clips are next to it. The test split has no answers.

    ``official``: the unchanged row, for the file that MMAU's own script reads.
    """
    for row in read_list(root):
        if benchmark.metric != "none" and not row.get("answer"):
            raise ValueError(f"{root}, item {row['id']}: no answer; the test split is answered as mmau_test")
        lines = (row["question"], "", MMAU_TAIL)
        yield _options(root, benchmark, row, row["choices"], ("audio_id", "audio_path"), lines) | {
            "gt": row.get("answer") or "",
            "group": row.get("task") or row.get("category"),
            "difficulty": row.get("difficulty"),
            "official": row,
        }


def mmar(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """``root`` is the list; its clips are next to it."""
    for row in read_list(root):
        lines = (MMAR_LEAD, row["question"], "")
        asked = _options(root, benchmark, row, row["choices"], ("audio_path", "audio"), lines)
        yield asked | {"gt": row["answer"], "group": row.get("modality")}


def mmsu(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """``root`` is the list; the right answer is a text or a letter, and some items have fewer than four options."""
    for row in read_list(root):
        options = {letter.upper(): row.get(f"choice_{letter}") for letter in "abcd"}
        choices = [option for option in options.values() if option]
        answer = row["answer_gt"]
        if answer not in choices:
            answer = options.get(answer) or answer
        missing = (f"{letter}. None" for letter in "ABCD"[len(choices) :])
        lines = (f"{MMSU_LEAD}\n\nQuestion: {row['question']}\n", "", *missing)
        asked = _options(root, benchmark, row, choices, ("audio_path", "audio"), lines)
        yield asked | {"gt": answer, "group": row.get("category")}


def voicebench(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """A subset as JSONL or Parquet: prompt (the clip's words), audio, and output or reference where there is one.

    The clip is the question: there is no text question. Multiple-choice answers are letters.
    """
    for number, row in enumerate(read_list(root)):
        row_id = str(next((row[name] for name in ("id", "key") if row.get(name) is not None), number))
        audio = clip_beside(root, row, ("audio",))
        found: Row = {"id": row_id, "audio": audio, "prompt": "", "question": row["prompt"]}
        found["gt"] = next((row[name] for name in ("reference", "output") if row.get(name) is not None), "")
        # The published tables of MMSU and SD-QA have a split for each subject and accent.
        group = row.get("domain") or row.get("category") or (row.get("table") if row.get("table") != "test" else None)
        if benchmark.metric == "choice":
            # Only letters: the options themselves are spoken.
            found["choices"] = list("ABCD")
        elif benchmark.metric == "bbh":
            group = re.sub(r"[_-]?\d+$", "", row_id) or None
            if str(found["gt"]).lower() not in ("yes", "no", "(a)", "(b)"):
                raise ValueError(
                    f"{root}, item {row_id}: the reference is {found['gt']!r}: expected yes, no, (A) or (B)"
                )
        elif benchmark.metric == "ifeval":
            found["gt"] = _instructions(row, f"{root}, item {row_id}")
        yield found | {"group": group}


def _instructions(row: Row, where: str) -> list[str]:
    """IFEval's instructions of a row as references (``eval.scores.ifeval``). ValueError: none, or unknown ones."""
    names, arguments = row.get("instruction_id_list") or [], row.get("kwargs") or []
    if not names or len(names) != len(arguments):
        raise ValueError(f"{where}: expected instruction_id_list and kwargs, one for each of its instructions")
    found = []
    for name, values in zip(names, arguments, strict=True):
        given = {k: v for k, v in (values or {}).items() if v is not None}
        found.append(json.dumps({"id": name, "kwargs": given}, ensure_ascii=False))
        try:
            read_instruction(found[-1])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return found


def sakura(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """``root`` holds a folder for each track: audio/ and metadata.json, ``{clip: {single_instruction, ...}}``.

    Every clip is asked about twice: what is heard (hop "single") and what follows from it ("multi").
    """
    listings = sorted(root.glob("*/metadata.json"))
    if not listings:
        raise ValueError(f"no file {root}/TRACK/metadata.json: expected the folders Animal, Emotion, Gender, Language")
    for path in listings:
        for clip, row in json.loads(path.read_text(encoding="utf-8")).items():
            name, track = Path(clip).name, path.parent.name
            for hop in ("single", "multi"):
                question, answer = row[f"{hop}_instruction"], row[f"{hop}_answer"]
                options = dict(_OPTION.findall(question))
                right = _OPTION.match(answer.strip())
                if right is None or options.get(right[1]) is None:
                    raise ValueError(f"{path}, {name}: the answer {answer!r} is none of the options of {question!r}")
                yield {
                    "id": f"{track}/{name}",
                    "audio": str(path.parent / "audio" / name),
                    "prompt": question,
                    "gt": options[right[1]],
                    "choices": list(options.values()),
                    "group": track,
                    "hop": hop,
                }


def big_bench_audio(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """metadata.jsonl beside data/*.mp3: the clip is the question. ``question`` is its text, where the list has it."""
    for row in read_list(root):
        answer = str(row["official_answer"])
        if answer.lower() not in ("yes", "no", "valid", "invalid") and not answer.isdecimal():
            raise ValueError(
                f"{root}, item {row['id']}: the answer is {answer!r}: expected yes, no, valid, invalid or a number"
            )
        yield {
            "id": str(row["id"]),
            # Some copies of the list are written with the separators of Windows.
            "audio": clip_beside(root, row | {"file_name": str(row["file_name"]).replace("\\", "/")}, ("file_name",)),
            "prompt": "",
            "question": row.get("transcript"),
            "gt": answer,
            "group": row["category"],
        }
