"""How long a run will take, by a rehearsal before its first step.

On a CPU a fresh start rehearses: one micro-batch of the plan forward and backward and one update, with the run's own
model, optimizer and arithmetic. Weights, gradients, random states and counts are then restored, so the run is
bit-identical to one without rehearsal. A resumed run knows its own steps. There is no forecast without a measurement.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from qa_train.model.flops import Regime, Shapes, training_flops
from qa_train.planner.work import from_effective_mixture
from qa_train.train.numbers.metrics import FIRST_STEPS
from qa_train.train.safety.guards import read_tail
from qa_train.train.stage import Stage
from qa_train.utils.progress import counted, duration, rough

# The first call also prepares, and is timed alone if it takes longer than this.
_LONG_S = 1.0
_CALLS = 4
# A resumed run takes the median of so many steps before the restart.
_BEFORE = 20
# Trainer state that a loss reads or changes, besides gradients.
_CHANGED = ("tally", "_metrics", "_step_numbers")


@dataclass(frozen=True)
class Rehearsal:
    """Seconds of a micro-batch that holds so many useful operations, and of the update that ends a step."""

    batch_s: float
    operations: float
    update_s: float


def rehearse(trainer: Any, stage: Stage) -> Rehearsal | None:
    """Time the run's first micro-batch and an update; every rank must call it.

    None where that would have side effects or be inaccurate: on GPUs, under DeepSpeed (which shards weights and steps
    by itself), and with layers that are compiled on their first call. None on a resume, where it would only cost time.
    """
    options = stage.cfg.trainer
    if stage.resume or torch.cuda.is_available() or trainer.args.deepspeed is not None or options.compile_layers:
        return None
    number = trainer.args.process_index
    model = trainer.model
    collator = stage.collator
    with stage.batches.rehearsal(), _untouched(trainer, model):
        batch = collator([number])
        numbers = dict(zip(trainer.throughput.NAMES, trainer.throughput.count(batch).tolist(), strict=True))
        operations = numbers["useful_flops"]
        # A step of such batches.
        trainer._step_numbers = {name: value * trainer.batches_per_step for name, value in numbers.items()}

        def learn() -> None:
            # Workers build batches in parallel to training.
            inputs = dict(batch) if stage.cfg.data.num_workers else collator([number])
            trainer.tally.begin([inputs])
            inputs = trainer._prepare_inputs(inputs)
            with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
                loss = trainer.compute_loss(model, inputs, num_items_in_batch=_supervised(inputs))
            loss.backward()

        batch_s = _timed(learn)
        optimizer = trainer.create_optimizer()
        # A batch without audio gives some weights none; under data parallelism the ranks must have the same ones.
        gradients = []
        for p in (p for p in model.parameters() if p.requires_grad):
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            gradients.append(p.grad)

        def update() -> None:
            if trainer.args.world_size > 1:
                dist.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
            torch.nn.utils.get_total_norm(gradients)
            optimizer.step()

        # Twice on every rank: under data parallelism an update is a collective call.
        update()
        started = time.perf_counter()
        update()
        return Rehearsal(batch_s, operations, time.perf_counter() - started)


def expected_time(stage: Stage, found: Rehearsal | None, ahead: dict[str, Any], lengths: list[Any], world: int) -> str:
    """The first screen's line of time. ahead, lengths: of the plan (`effective_mixture`)."""
    left = stage.cfg.trainer.max_steps - stage.first_step
    if stage.resume:
        seconds = [row["seconds"] for row in read_tail(stage.run.metrics, _BEFORE) if "seconds" in row]
        step_s, source = (median(seconds) if seconds else None), "as before the restart"
    elif found is not None:
        usual = _operations(stage, ahead, lengths)
        batch_s = found.batch_s * (usual / found.operations if found.operations else 1.0)
        step_s = batch_s * stage.cfg.trainer.batches_per_step / world + found.update_s
        source = "from a rehearsal step"
    else:
        step_s, source = None, ""
    if step_s is None:
        return f"to be measured: shown after {FIRST_STEPS} steps"
    return (
        f"about {duration(left * step_s)} for {counted(left, 'step')} of {rough(step_s)} s, {source}; shown again "
        f"after {FIRST_STEPS} steps"
    )


def _operations(stage: Stage, ahead: dict[str, Any], lengths: list[Any]) -> float:
    """Useful operations of a typical micro-batch, counted as those of the rehearsed one."""
    regime = Regime.of(stage.cfg.model)
    return training_flops(
        Shapes.of(stage.model.config), from_effective_mixture(stage.cfg, ahead, lengths).work, regime
    ).total


def _supervised(inputs: dict[str, Any]) -> Any:
    """Supervised tokens of a micro-batch; None for pairs, as their loss does not use it."""
    return inputs["labels"][:, 1:].ne(-100).sum() if "labels" in inputs else None


def _timed(work: Callable[[], None]) -> float:
    """Seconds of one call: the median of a few, without the first, which also prepares."""
    seconds: list[float] = []
    while len(seconds) < _CALLS and (not seconds or seconds[0] < _LONG_S):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:] or seconds)


@contextmanager
def _untouched(trainer: Any, model: Any) -> Iterator[None]:
    """Training inside works on a copy of the weights; the original state is restored at the end."""
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = [p.data for p in trained]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    kept = {name: copy.deepcopy(vars(trainer)[name]) for name in _CHANGED if name in vars(trainer)}
    training = model.training
    # A loss of silence that is not finite must not end a run.
    trainer.check_finite = lambda loss: None
    model.train()
    try:
        for p in trained:
            p.data = p.data.clone()
        yield
    finally:
        for p, data in zip(trained, weights, strict=True):
            p.data, p.grad = data, None
        del trainer.check_finite
        for name in _CHANGED:
            vars(trainer).pop(name, None)
        vars(trainer).update(kept)
        trainer.optimizer = None
        model.train(training)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
