"""Sweeps with Hydra's multirun: a folder for every job, and one number for a sweeper that searches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def is_sweep(words: Sequence[str]) -> bool:
    """Whether Hydra is asked for several jobs."""
    return bool({"-m", "--multirun"} & set(words))


def check_sweep(words: Sequence[str]) -> None:
    """ValueError for a sweep in which all jobs share one folder: each would resume the previous one."""
    folders = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("run.dir=")]
    if is_sweep(words) and folders and not any(mark in folders[-1] for mark in ("${", ",", "(")):
        raise ValueError(
            f"run.dir={folders[-1]} is the same for every job of this sweep; give each its own: "
            f"'run.dir={folders[-1].rstrip('/')}/${{hydra:job.num}}'"
        )


def objective(folder: str | Path, name: str) -> float:
    """The mean of a value of metrics.jsonl over the last tenth of the steps; the last one if it is logged more rarely.

    Raises:
        ValueError: no step has the value.
    """
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    # The loss of a skipped step is ignored; an evaluation after it counts.
    told = [row for row in rows if "skipped_because" not in row or name.startswith("eval/")]
    points = [(row["step"], float(row[name])) for row in told if isinstance(row.get(name), int | float)]
    if not points:
        known = sorted({key for row in rows for key, value in row.items() if isinstance(value, int | float)})
        raise ValueError(f"run.objective={name}: no step of {folder} has it; there are {', '.join(known)}")
    late = [value for step, value in points if step > 0.9 * rows[-1]["step"]] or [points[-1][1]]
    return sum(late) / len(late)
