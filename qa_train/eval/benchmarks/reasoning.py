"""Readers of the benchmarks of reasoning: SAKURA, Big Bench Audio. Rows as in ``qa_train.eval.benchmarks.layouts``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qa_train.eval.benchmarks.benchmark import Benchmark
from qa_train.eval.benchmarks.published import clip_beside, read_list

Row = dict[str, Any]

# "(a) dog" in a question and as its answer.
_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)(?=\s*\([a-z]\)\s|\s*$)", re.S)


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
