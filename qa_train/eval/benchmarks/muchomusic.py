"""MuChoMusic (arXiv 2408.01337, mulab-mir/muchomusic): questions about music with four options, and its own scoring.

The list has the right option first and its script draws another order for every run; here the order of an item is drawn
from a seed, so that every model is asked the same.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qa_train.eval.benchmarks.benchmark import Benchmark
from qa_train.eval.benchmarks.published import clip_named, in_order
from qa_train.eval.scores.normalise import without_tags
from qa_train.eval.scores.prediction import answer_in

Row = dict[str, Any]

# prepare_prompts.py with configs/default.yaml.
EXAMPLE = (
    "Question: What rhythm pattern do the digital drums primarily follow in this pop music piece? \n Options: (A) Four "
    "on the floor. (B) Off-beat syncopation. (C) Scat singing. (D) E-guitar playing a simple melody. \n The correct "
    "answer is: A"
)
LEAD = "The correct answer is:"
_COLUMNS = ("correct_answer", "distractor_1_answer", "distractor_2_answer", "distractor_3_answer")
# Clips of MusicCaps.
_MUSICCAPS_S = 10


def muchomusic_rows(root: Path, benchmark: Benchmark) -> Iterator[Row]:
    """Rows of muchomusic.csv; the clips are in sdd/audio (Song Describer) and musiccaps/audio beside it."""
    with root.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            row_id = row.get("question_id") or str(number)
            answers = [row[name] for name in _COLUMNS]
            # The right one is first in the list.
            seeded = replace(benchmark, shuffle_options=benchmark.shuffle_options or 0)
            choices = in_order(seeded, row_id, answers)
            options = " ".join(f"({letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True))
            yield {
                "id": row_id,
                "audio": _clip(root.parent, row),
                "prompt": f"{EXAMPLE}\n Question: {row['question']}\n Options: {options} \n {LEAD} ",
                "gt": answers[0],
                "choices": choices,
                "group": _asks(row),
            }


def _asks(row: Mapping[str, str]) -> str | None:
    """The paper's two kinds of questions; many are of both."""
    kinds = ("knowledge", "reasoning")
    return " and ".join(kind for kind in kinds if ast.literal_eval(row.get(f"music_{kind}") or "[]")) or None


def _clip(folder: Path, row: Mapping[str, str]) -> str:
    """Where the script looks; a clip of MusicCaps may also have the name of the list, VIDEO_START."""
    name = row["dataset_identifier"].removesuffix(".json")
    if row["dataset"] == "sdd":
        return clip_named(folder / "sdd" / "audio" / f"{int(name) % 100:02d}", f"{name}.2min")
    if row["dataset"] != "musiccaps":
        raise ValueError(f"dataset {row['dataset']!r} of {name}: expected sdd or musiccaps")
    video, _, start = name.rpartition("_")
    places = [clip_named(folder / "musiccaps" / "audio", stem) for stem in (_cut(video, start), name)]
    return next((place for place in places if Path(place).is_file()), places[0])


def _cut(video: str, start: str) -> str:
    return f"[{video}]-[{start}-{int(start) + _MUSICCAPS_S}]"


def official_option(text: str, choices: Sequence[str]) -> int | None:
    """The option that its scoring.py reads, oddities included; None: unanswered.

    The only one of the capitals A to D anywhere in the text ("Drums" is D), else the first option that the text holds.
    """
    text = text.split(LEAD)[-1].strip()
    letters = sorted(set("ABCD") & set(text))
    if len(letters) == 1:
        return "ABCD".index(letters[0])
    said = text.lower().strip()
    return next((i for i, choice in enumerate(choices) if choice.lower().strip() in said), None)


def official(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The script's accuracy in percent, and the share that it can read (IFR)."""
    texts = [without_tags(answer_in(row)) for row in rows]
    read = [official_option(text, row["choices"]) for text, row in zip(texts, rows, strict=True)]
    right = sum(i is not None and row["choices"][i] == row["gt"] for i, row in zip(read, rows, strict=True))
    followed = 100 * sum(i is not None for i in read) / len(rows)
    what = (
        "MuChoMusic's scoring.py: a capital A to D anywhere, else an option's text; it reads "
        f"{followed:.1f} % of the answers (IFR)"
    )
    return {"value": round(100 * right / len(rows), 2), "what": what}
