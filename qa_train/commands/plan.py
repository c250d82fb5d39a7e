"""`qa-train plan ...`: what a run needs, and what it will train on, without a GPU and without reading audio."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qa_train.config import STAGES, PlanConfig
from qa_train.utils.atomic import local
from qa_train.utils.terminal import layout


@dataclass
class PlanDataConfig:
    """Options of `qa-train plan data`."""

    # pretrain, sft or dpo.
    stage: str = "pretrain"
    # Steps to plan; null: trainer.max_steps.
    steps: int | None = None
    # Also write the result to this file.
    json: str | None = None


def plan(settings: list[str], options: PlanConfig) -> int:
    """Parameters, memory, time and cost of a run, without a GPU and without reading audio.

      qa-train plan sft experiment=sft_7b gpu=h100 gpus=8 zero=2

      qa-train plan sft gpu=4090 gpus=1 budget_hours=24

    The second compares the experiments of a stage: which fit, and how many steps that time allows.
    The exit code is 1 if the run, or every experiment, does not fit the GPUs.

    Raises:
        ValueError: no stage, or wrong options.
    """
    from qa_train.config.compose import compose_stage
    from qa_train.planner.estimate import estimate
    from qa_train.planner.output import as_dict, as_text

    if not settings or settings[0] not in STAGES:
        raise ValueError(
            f"plan: name what to plan: qa-train plan {'|'.join(STAGES)} [experiment=...] [gpu=h100 gpus=8 zero=2 ...], "
            "or qa-train plan data [stage=S steps=N json=FILE] [experiment=...]"
        )
    stage, *rest = settings
    if options.zero is not None:
        if options.zero not in range(4):
            raise ValueError(f"plan: zero={options.zero}: use 0 (plain), 1, 2 or 3")
        rest.append("deepspeed=" + (f"zero{options.zero}" if options.zero else "none"))
    if options.budget_hours is not None:
        return _plan_recipes(stage, rest, options)
    made = estimate(compose_stage(stage, rest), options)
    print(as_text(made, layout()))
    _write(options.json, as_dict(made))
    return 0 if made.fits else 1


def _plan_recipes(stage: str, words: list[str], options: PlanConfig) -> int:
    from qa_train.planner.recipes import as_dicts, as_text, offers

    found = offers(stage, words, options)
    print(as_text(stage, found, layout()))
    _write(options.json, as_dicts(found))
    return 0 if found[0].made.fits else 1


def _write(path: str | None, result: Any) -> None:
    if path:
        # Not by a file that is renamed: it may be /dev/stdout.
        local(path, "json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        print(f"  written to {path}")


def plan_data(settings: list[str], options: PlanDataConfig) -> int:
    """Show the data that a run would train on.

    Samples, hours, tokens and epochs of every source, batch fill, load balance of the ranks, and what is skipped and
    why.

    Raises:
        ValueError: invalid settings.
    """
    from qa_train.config.compose import compose_stage
    from qa_train.data.mixture_report import as_text, effective_mixture, steps_of_epochs
    from qa_train.planner.balance import open_planned

    cfg: Any = compose_stage(options.stage, settings)
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"plan data: steps={options.steps}: use 1 or more")
    data = open_planned(cfg)
    steps = options.steps or cfg.trainer.max_steps
    if options.steps is None and cfg.trainer.epochs is not None:
        steps = steps_of_epochs(data.plan, data.sources, cfg.trainer.epochs)
    result = {**effective_mixture(data.plan, data.sources, steps), "available": data.table()}
    page = layout()
    available, planned = page.paint("available (~ extrapolated)", "bold"), page.paint("planned", "bold")
    print(f"{available}\n{data.describe(page)}\n\n{planned}\n{as_text(result, page)}")
    _write(options.json, result)
    return 0


def print_resolved(stage: str, words: list[str]) -> int:
    """`STAGE ... --cfg job --resolve`: the configuration as a run stores it.

    Hydra would print the values of environment variables, and slurm/submit.sh stores the output.
    """
    import yaml

    from qa_train.config import compose_stage, written
    from qa_train.config.places import without_config_dirs

    words, _ = without_config_dirs(words)
    words = [word for word in words if word not in ("--cfg", "-c", "job", "--cfg=job", "--resolve")]
    print(yaml.safe_dump(written(compose_stage(stage, words)), sort_keys=False), end="")
    return 0
