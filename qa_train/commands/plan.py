"""`qa-train plan ...`: what a run needs, and what it will train on, without a GPU and without reading audio."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qa_train.config import parse_options
from qa_train.config.stages import STAGES


@dataclass
class PlanDataConfig:
    """`qa-train plan data [key=value ...]`: what a run would train on: mixture, epochs, what is left out.

    Besides what follows, any key of the stage may be given, e.g. data=mine (`qa-train pretrain --help`).
    """

    # pretrain, sft or dpo.
    stage: str = "pretrain"
    # Steps to plan; null: trainer.max_steps.
    steps: int | None = None
    # Also write the result to this file.
    json: str | None = None


def plan(words: list[str]) -> int:
    """`plan data ...` or `plan STAGE ...`."""
    if not words or words[0] not in ("data", *STAGES):
        raise ValueError(
            f"plan: say what to plan: qa-train plan {'|'.join(STAGES)} [experiment=...] [gpu=h100 gpus=8 zero=2 ...], "
            "or qa-train plan data [stage=S steps=N json=FILE] [experiment=...]"
        )
    return plan_data(words[1:]) if words[0] == "data" else plan_stage(words[0], words[1:])


def plan_stage(stage: str, words: list[str]) -> int:
    """Print parameters, memory, time and cost of a stage; exit code 1 when it does not fit the GPUs."""
    from qa_train.config.compose import compose_stage
    from qa_train.config.planning import PlanConfig
    from qa_train.planner.estimate import estimate
    from qa_train.planner.output import as_dict, as_text

    names = set(PlanConfig.__dataclass_fields__)
    own = [word for word in words if word.split("=", 1)[0].split(".", 1)[0] in names]
    options: PlanConfig = parse_options(PlanConfig, own, f"plan {stage}")
    rest = [word for word in words if word not in own]
    if options.zero is not None:
        if options.zero not in range(4):
            raise ValueError(f"plan: zero={options.zero}: use 0 (plain), 1, 2 or 3")
        rest.append("deepspeed=" + (f"zero{options.zero}" if options.zero else "none"))
    made = estimate(compose_stage(stage, rest), options)
    print(as_text(made))
    if options.json:
        Path(options.json).write_text(json.dumps(as_dict(made), indent=2, ensure_ascii=False) + "\n")
        print(f"  written to {options.json}")
    return 0 if made.fits else 1


def plan_data(words: list[str]) -> int:
    """Print samples, hours, tokens and epochs of every source over the steps, how full the batches are, how evenly
    they load the ranks, and what is left out and why."""
    from qa_train.config.compose import compose_stage
    from qa_train.data.mixture_report import as_text, realised
    from qa_train.planner.balance import open_planned

    names = set(PlanDataConfig.__dataclass_fields__)
    own = [word for word in words if word.split("=", 1)[0] in names]
    options: PlanDataConfig = parse_options(PlanDataConfig, own, "plan data")
    cfg: Any = compose_stage(options.stage, [word for word in words if word not in own])
    steps = cfg.trainer.max_steps if options.steps is None else options.steps
    if steps < 1:
        raise ValueError(f"plan data: steps={steps}: use 1 or more")
    data = open_planned(cfg)
    result = {**realised(data.plan, data.sources, steps), "available": data.table()}
    print(f"available (~ extrapolated)\n{data.describe()}\n\nplanned\n{as_text(result)}")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        print(f"  written to {options.json}")
    return 0


def print_resolved(stage: str, words: list[str]) -> int:
    """`STAGE ... --cfg job --resolve`: the configuration as a run writes it down.

    Hydra would print the values of environment variables, and slurm/submit.sh keeps what is printed.
    """
    import yaml

    from qa_train.config import compose_stage, written

    words = [word for word in words if word not in ("--cfg", "-c", "job", "--cfg=job", "--resolve")]
    print(yaml.safe_dump(written(compose_stage(stage, words)), sort_keys=False), end="")
    return 0
