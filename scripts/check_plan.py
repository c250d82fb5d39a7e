"""Compare the planner's time of a step with runs on this machine.

    python scripts/check_plan.py --make FOLDER          the table of docs/lab/planning.md: makes its runs, then compares
    python scripts/check_plan.py FIRST SECOND RUN...    runs of your own

FIRST and SECOND are run folders that differ in ``data.tokens_per_batch``: they give the pace. Every other RUN, of the
same kind and number of processes, is planned from its configuration as ``qa-train plan`` does, and compared with the
median of its own steps. Make them with twenty-five steps each, one at a time, on a quiet machine. ``--make`` does this
and continues after an interruption: finished runs are not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from qa_train.config import PlanConfig, read_stored
from qa_train.planner.estimate import estimate
from qa_train.planner.measured import steps_of

STEPS = 25


@dataclass(frozen=True)
class Comparison:
    """Runs of one kind: two batch sizes (tokens) that give the pace, and those that are planned from it."""

    name: str
    words: tuple[str, ...]
    processes: int
    pace: tuple[int, int]
    planned: tuple[int, ...]


_NANO = ("model=nano", "model.freeze=[encoder]", "trainer.batches_per_step=2")
TABLE = (
    Comparison("tiny-1", ("model=tiny", "trainer.batches_per_step=2"), 1, (1000, 4000), (1500, 2500)),
    Comparison("tiny-2", ("model=tiny", "trainer.batches_per_step=4"), 2, (1000, 6000), (1500, 3000)),
    Comparison("nano-2", _NANO, 2, (1250, 5000), (2500,)),
    Comparison("nano-2", _NANO, 2, (1250, 2500), (5000,)),
)


def command(folder: Path, kind: Comparison, tokens: int, steps: int) -> list[str]:
    """The command line of one run, in ``folder/NAME-TOKENS``."""
    words = ["pretrain", *kind.words, "tracking=none", f"trainer.max_steps={steps}", f"data.tokens_per_batch={tokens}"]
    if "model.freeze=[encoder]" in kind.words:
        words.append(f"data.encoder_cache={folder / 'encoder-cache'}")
    words.append(f"run.dir={folder / f'{kind.name}-{tokens}'}")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(kind.processes)]
    return [sys.executable, *(launcher if kind.processes > 1 else []), "-m", "qa_train", *words]


def make(folder: Path, table: tuple[Comparison, ...] = TABLE, steps: int = STEPS) -> list[list[Path]]:
    """Make the runs of the table, one at a time; for each comparison the folders: pace first, then the planned ones.

    Raises CalledProcessError when a run does not end well.
    """
    found = []
    for kind in table:
        sizes = (*kind.pace, *kind.planned)
        for tokens in sizes:
            subprocess.run(command(folder, kind, tokens, steps), check=True)
        found.append([folder / f"{kind.name}-{tokens}" for tokens in sizes])
    return found


def compare(runs: list[Path]) -> float:
    """Print the rows of the runs after the first two; returns the worst error, as a share."""
    pace, worst = [str(run) for run in runs[:2]], 0.0
    for run in runs[2:]:
        cfg = read_stored(run)
        processes = json.loads((run / "environment.json").read_text())[-1]["world_size"]
        made = estimate(cfg, PlanConfig(gpus=processes, measured=pace), suggest=False)
        flops, seconds = (median(column) for column in zip(*steps_of(run), strict=True))
        error = made.step_s / seconds - 1
        worst = max(worst, abs(error))
        print(
            f"| {cfg.model.name} | {cfg.data.tokens_per_batch:,} | {processes} | {made.useful.total / flops:.2f} | "
            f"{seconds:.3f} | {made.step_s:.3f} | {error:+.1%} |"
        )
    return worst


def main() -> int:
    """Print a Markdown table; 1 when a plan is more than 10 % off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="two that give the pace, then those to plan")
    parser.add_argument(
        "--make", type=Path, metavar="FOLDER", help="make the runs of docs/lab/planning.md there, and compare"
    )
    args = parser.parse_args()
    if (len(args.runs) < 3) if args.make is None else args.runs:
        parser.error("name at least three runs, or --make FOLDER")
    groups = [args.runs] if args.make is None else make(args.make)
    print("| model | batch tokens | processes | operations, planned / counted | s a step, measured | planned | error |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    return int(max(compare(runs) for runs in groups) > 0.1)


if __name__ == "__main__":
    raise SystemExit(main())
