"""Write tests/train/golden.json: losses, gradient norms and the order of samples of every stage on the tiny model.

    python -m tests.train.make_golden

`test_stages.py` compares every later state of the code with the file: make it anew only when a change is meant to move
the numbers, and say so in the changelog. One process, one thread, float32.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qa_train.config.compose import compose_stage
from qa_train.planner.balance import open_planned
from tests.train.conftest import metrics, run, stage_words, write_shards

GOLDEN = Path(__file__).with_name("golden.json")
BATCHES = 24
NUMBERS = ("loss", "grad_norm", "learning_rate", "supervised_tokens", "audio_s")


def golden_of(stage: str, words: list[str], folder: Path) -> dict[str, Any]:
    """What a finished run of a stage is held to: numbers of its steps, and [source, row, epoch] of its samples."""
    plan = open_planned(compose_stage(stage, words)).plan
    order = [[[ref.source, ref.row, ref.epoch] for ref in plan.batch(k)] for k in range(BATCHES)]
    return {"steps": [{name: step[name] for name in NUMBERS} for step in metrics(folder)], "order": order}


def main() -> None:
    """Make the shards, run the three stages, write the file."""
    made = {}
    with tempfile.TemporaryDirectory() as temporary:
        shards = write_shards(Path(temporary) / "shards")
        for stage in ("pretrain", "sft", "dpo"):
            folder = Path(temporary) / stage
            words = stage_words(shards, stage, folder)
            run(stage, *words)
            made[stage] = golden_of(stage, words, folder)
    GOLDEN.write_text(as_text(made))


def as_text(made: dict[str, Any]) -> str:
    """JSON with one step, and one batch, a line."""
    line: Callable[[Any], str] = json.dumps
    stages = []
    for stage, parts in made.items():
        lists = [f'"{name}": [\n' + ",\n".join(map(line, rows)) + "\n]" for name, rows in parts.items()]
        stages.append(f'"{stage}": {{\n' + ",\n".join(lists) + "\n}")
    return "{\n" + ",\n".join(stages) + "\n}\n"


if __name__ == "__main__":
    main()
