"""`qa-train plan data ...`: what a run will train on, without reading audio or building a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qa_train.config import parse_options


@dataclass
class PlanDataConfig:
    """`qa-train plan data`: the realised mixture of a run."""

    stage: str = "pretrain"
    # Steps to plan; null: trainer.max_steps.
    steps: int | None = None
    # Also write the result to this file.
    json: str | None = None


def plan(words: list[str]) -> int:
    """`plan data [stage=S steps=N json=FILE] [experiment=...]`."""
    if not words or words[0] != "data":
        raise ValueError("plan: say what to plan: qa-train plan data [stage=S steps=N json=FILE] [experiment=...]")
    return plan_data(words[1:])


def plan_data(words: list[str]) -> int:
    """Print samples, hours, tokens and epochs of every source over the steps, how full the batches are, how evenly
    they load the ranks, and what is left out and why."""
    from qa_train.data.batches import open_data
    from qa_train.data.realised import as_text, realised
    from qa_train.data_cli import _compose
    from qa_train.model import load_model_tokenizer

    names = set(PlanDataConfig.__dataclass_fields__)
    own = [word for word in words if word.split("=", 1)[0] in names]
    options: PlanDataConfig = parse_options(PlanDataConfig, own, "plan data")
    cfg: Any = _compose(options.stage, [word for word in words if word not in own])
    steps = cfg.trainer.max_steps if options.steps is None else options.steps
    if steps < 1:
        raise ValueError(f"plan data: steps={steps}: use 1 or more")
    # No audio is read, so the number of mel bins does not matter.
    data = open_data(
        cfg.data,
        load_model_tokenizer(cfg.model),
        80,
        seed=cfg.data.seed,
        batches_per_step=cfg.trainer.batches_per_step,
        preference=cfg.stage == "dpo",
    )
    result = {**realised(data.plan, data.sources, steps), "available": data.table()}
    print(f"available (~ extrapolated)\n{data.describe()}\n\nplanned\n{as_text(result)}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        print(f"  written to {options.json}")
    return 0
