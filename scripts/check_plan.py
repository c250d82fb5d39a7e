"""How long the planner says that a step takes, against runs that took it on this machine.

    python scripts/check_plan.py FIRST SECOND RUN...

FIRST and SECOND are run folders that differ in ``data.tokens_per_batch``: they give the pace. Every other RUN, of the
same kind and number of processes, is planned from its configuration as ``qa-train plan`` does, and compared with the
median of its own steps. Make them with twenty-five steps each, one at a time, on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

from omegaconf import OmegaConf

from qa_train.config import StageConfig, to_stage_config
from qa_train.planner import PlanConfig, estimate
from qa_train.planner.measured import steps_of


def main() -> int:
    """Print a Markdown table; 1 when a plan is more than 10 % off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="two that give the pace, then those to plan")
    runs = parser.parse_args().runs
    if len(runs) < 3:
        parser.error("name at least three runs")
    pace, worst = [str(run) for run in runs[:2]], 0.0
    print("| model | batch tokens | processes | operations, planned / counted | s a step, measured | planned | error |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for run in runs[2:]:
        raw = OmegaConf.merge(OmegaConf.structured(StageConfig), OmegaConf.load(run / "config.yaml"))
        cfg = to_stage_config(raw)
        processes = json.loads((run / "environment.json").read_text())[-1]["world_size"]
        made = estimate(cfg, PlanConfig(gpus=processes, measured=pace), suggest=False)
        flops, seconds = (median(column) for column in zip(*steps_of(run), strict=True))
        error = made.step_s / seconds - 1
        worst = max(worst, abs(error))
        print(
            f"| {cfg.model.name} | {cfg.data.tokens_per_batch:,} | {processes} | {made.useful.total / flops:.2f} | "
            f"{seconds:.3f} | {made.step_s:.3f} | {error:+.1%} |"
        )
    return int(worst > 0.1)


if __name__ == "__main__":
    raise SystemExit(main())
