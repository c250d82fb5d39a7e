"""How long a step takes on this machine, from runs that took some: instead of a card's peak and a share of it.

Operations are the useful ones that metrics.jsonl counts, without recomputation and DPO's reference: the pace holds
their time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from qa_train.config import StageConfig, read_stored

# The first steps fill caches; fewer than this after them are not enough.
_WARM_UP, _ENOUGH = 5, 10
# Two runs with batches closer in size than this cannot show the fixed cost of a batch.
_APART = 1.5


@dataclass(frozen=True)
class Pace:
    """Seconds of a batch of one process: a fixed ``batch_s``, and its operations at ``rate`` per second."""

    rate: float
    batch_s: float
    source: str

    def batch(self, flops: float) -> float:
        """Seconds of a batch of ``flops`` useful operations."""
        return self.batch_s + flops / self.rate


@dataclass(frozen=True)
class _Run:
    """What a run took: useful operations and seconds of a batch of one process, in the median of its steps."""

    path: str
    flops: float
    seconds: float


def pace_of(folders: Sequence[str], cfg: StageConfig, processes: int) -> Pace:
    """The pace of one or two runs of the same kind on this machine, for a plan of ``cfg`` on ``processes``.

    One run gives a rate, which holds for batches about as large. Two of different ``data.tokens_per_batch`` also give
    what a batch costs whatever its size.

    Raises:
        ValueError: a folder that holds no such run or too few steps, runs of another kind than ``cfg`` or on another
            number of processes, or two with batches of about the same size.
    """
    if not 1 <= len(folders) <= 2:
        raise ValueError(f"plan: measured= names {len(folders)} runs: give one, or two of different batch sizes")
    runs = sorted((_read(Path(folder), cfg, processes) for folder in folders), key=lambda run: run.flops)
    source = " and ".join(run.path for run in runs)
    small, large = runs[0], runs[-1]
    if len(runs) == 1:
        return Pace(large.flops / large.seconds, 0.0, source)
    if large.flops < _APART * small.flops:
        raise ValueError(
            f"plan: batches of {source} take nearly the same operations ({small.flops:.3g} and {large.flops:.3g}): "
            f"measure with data.tokens_per_batch at least {_APART:g} times as large in one of them"
        )
    batch_s = small.seconds - small.flops * (large.seconds - small.seconds) / (large.flops - small.flops)
    # Noise can make it negative.
    batch_s = min(max(batch_s, 0.0), small.seconds / 2)
    return Pace(large.flops / (large.seconds - batch_s), batch_s, source)


def steps_of(folder: Path) -> list[tuple[float, float]]:
    """(useful operations of all processes, seconds without waiting for data or saving) of the steps after the first.

    Raises:
        ValueError: no metrics that can be read, or too few steps.
    """
    try:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"plan: measured={folder} is not a readable run folder: {error}") from error
    rows = [row for row in rows if row.get("useful_tflops_per_s") and "skipped_because" not in row][_WARM_UP:]
    if len(rows) < _ENOUGH:
        raise ValueError(f"plan: {folder} has {len(rows)} steps after its first {_WARM_UP}: {_ENOUGH} are needed")
    return [
        (
            row["useful_tflops_per_s"] * row["seconds"] * 1e12,
            row["seconds"] - row["data_wait_s"] - row.get("checkpoint_s", 0.0),
        )
        for row in rows
    ]


def _read(folder: Path, cfg: StageConfig, processes: int) -> _Run:
    steps = steps_of(folder)
    try:
        then = read_stored(folder)
        ran_on = int(json.loads((folder / "environment.json").read_text())[-1]["world_size"])
    except (OSError, ValueError, TypeError, LookupError, YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"plan: measured={folder} is not a readable run folder: {error}") from error
    _check_kind(folder, then, cfg)
    if ran_on != processes:
        raise ValueError(
            f"plan: {folder} ran on {ran_on} processes and the plan is for gpus={processes}: what processes cost one "
            "another is not known; measure on as many"
        )
    batches = then.trainer.batches_per_step
    flops, seconds = (median(column) for column in zip(*steps, strict=True))
    # A process has its share of the step's batches, and works on them one after another.
    return _Run(str(folder), flops / batches, seconds * processes / batches)


def _check_kind(folder: Path, then: StageConfig, cfg: StageConfig) -> None:
    """ValueError: something differs that decides how fast operations go."""
    for name, now in _kind(cfg).items():
        # trainer.bf16=auto is whatever the measured run found to be fast.
        if (before := _kind(then)[name]) != now and now != "auto":
            raise ValueError(
                f"plan: measured={folder} has {name}={before} and the plan {now}: measure the same; some twenty steps "
                "are enough"
            )


def _kind(cfg: StageConfig) -> dict[str, Any]:
    # Where the weights come from makes no step slower.
    found: dict[str, Any] = {f"model.{k}": v for k, v in asdict(cfg.model).items() if k != "checkpoint"}
    names = ("bf16", "gradient_checkpointing", "compile_layers", "use_liger_kernel", "optim")
    found |= {f"trainer.{name}": asdict(cfg.trainer)[name] for name in names}
    found |= {"stage": cfg.stage, "deepspeed": cfg.deepspeed.name, "data.encoder_cache": bool(cfg.data.encoder_cache)}
    return found | cfg.kind.reference_of(cfg)
