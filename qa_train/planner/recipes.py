"""Which of the ready recipes fits a card and a budget of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qa_train.config import PlanConfig
from qa_train.config.compose import compose_stage
from qa_train.config.guide import experiments
from qa_train.planner.estimate import Estimate, estimate
from qa_train.planner.memory import GIB
from qa_train.utils.terminal import Layout


@dataclass(frozen=True)
class Offer:
    """A recipe on the asked cards. steps: those that the budget pays for, at most all; samples: seen in them."""

    name: str
    made: Estimate
    budget_hours: float

    @property
    def steps(self) -> int:
        """Whole steps."""
        return min(self.made.cfg.trainer.max_steps, int(self.budget_hours * 3600 / self.made.step_s))

    @property
    def samples(self) -> float:
        """Of the steps."""
        return self.made.load.samples * self.made.cfg.trainer.batches_per_step * self.steps

    @property
    def gpu_hours(self) -> float:
        """Of the steps, all cards together."""
        return self.steps * self.made.step_s / 3600 * self.made.options.gpus


def offers(stage: str, words: Sequence[str], options: PlanConfig) -> list[Offer]:
    """The recipes of a stage for GPUs, or the one that ``words`` name, those that fit first, the cheapest sample first.

    Recipes whose batches cannot be shared by the asked number of GPUs are not among them.

    Raises:
        ValueError: a budget that is none, or settings that no recipe takes.
    """
    budget = options.budget_hours
    if budget is None or budget <= 0:
        raise ValueError(f"plan: budget_hours={budget}: use hours above 0")
    named = [word for word in words if word.startswith("experiment=")]
    names = [name for name, hardware in experiments(stage) if "GPU" in hardware]
    found: list[Offer] = []
    for name in [named[-1].partition("=")[2]] if named else names:
        cfg = compose_stage(stage, [f"experiment={name}", *(word for word in words if word not in named)])
        if named or cfg.trainer.batches_per_step % options.gpus == 0:
            found.append(Offer(name, estimate(cfg, options, suggest=False), budget))
    if not found:
        raise ValueError(
            f"plan: no recipe of {stage} is for {options.gpus} GPUs: name one, experiment=NAME, with "
            f"trainer.batches_per_step= a multiple of {options.gpus}"
        )
    return sorted(found, key=lambda offer: (not offer.made.fits, offer.gpu_hours / max(offer.samples, 1.0)))


def as_dicts(found: list[Offer]) -> list[dict[str, Any]]:
    """The same, machine-readable."""
    return [
        {"experiment": each.name, "fits": each.made.fits, "memory_bytes": each.made.memory.total, "steps": each.steps,
         "of_steps": each.made.cfg.trainer.max_steps, "samples": each.samples, "gpu_hours": each.gpu_hours}
        for each in found
    ]  # fmt: skip


def as_text(stage: str, found: list[Offer], page: Layout) -> str:
    """A table of the recipes, and the command of the first that fits."""
    first, options = found[0], found[0].made.options
    card = f"{options.gpus} x {first.made.gpu.name}, {first.budget_hours:g} hours"
    lines = [page.paint(f"{stage} on {card}: recipes, the cheapest sample first", "bold")]
    lines.append(f"  {'experiment':<16} {'trains':>10} {'GiB':>7} {'steps':>14} {'samples':>11} {'GPU hours':>10}")
    for each in found:
        made = each.made
        verdict = "" if made.fits else "  " + page.paint("does not fit", "red")
        steps = f"{each.steps:,} of {made.cfg.trainer.max_steps:,}"
        lines.append(
            f"  {each.name:<16} {made.sizes.trained_parameters / 1e6:>8,.0f} M {made.memory.total / GIB:>7.1f} "
            f"{steps:>14} {each.samples:>11,.0f} {each.gpu_hours:>10.1f}{verdict}"
        )
    if not first.made.fits:
        plan = f"qa-train plan {stage} experiment={found[-1].name} gpu={options.gpu} gpus={options.gpus}"
        return page.fold("\n".join([*lines, "", f"none fits: {plan} shows what would help"]))
    if not first.steps:
        return page.fold("\n".join([*lines, "", "the budget is shorter than one step"]))
    price = "" if options.price is None else f", {first.gpu_hours * options.price:,.2f} in all"
    gpus, per_node = options.gpus, min(options.gpus, 8)
    program = "qa-train" if gpus == 1 else f"torchrun --nproc-per-node {per_node} -m qa_train"
    run = f"{program} {stage} experiment={first.name} trainer.max_steps={first.steps} run.dir=runs/{first.name}"
    nodes = f" on each of {gpus // per_node} machines (docs/cluster.md)" if gpus > per_node else ""
    lines += ["", f"{run}{nodes}   # {first.gpu_hours:.1f} GPU hours{price}"]
    lines += [f"in detail: qa-train plan {stage} experiment={first.name} gpu={options.gpu} gpus={options.gpus}"]
    return page.fold("\n".join(lines))
