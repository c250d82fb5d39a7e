"""What a run says before its first step, in ten lines: model, data, steps, time, and where it writes."""

from __future__ import annotations

import time
from collections import Counter
from statistics import median
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from qa_train.config import ModelConfig
from qa_train.data.mixture_report import realised
from qa_train.model.flops import Shapes, forward_flops, training_flops
from qa_train.planner.estimate import MFU, regime_of
from qa_train.planner.work import LOOK, from_realised
from qa_train.train import checkpoints
from qa_train.train.groups import part_of
from qa_train.train.guards import read_tail

if TYPE_CHECKING:
    from qa_train.train.common import Stage

# A CPU's training step runs at about this share of its matrix products' rate at useful sizes (docs/benchmarks.md: 75 to
# 90 %; the quickstart's pretraining step: 0.84 s by this, 0.8 s measured alone on the machine). Less in tiny models.
_CPU_EFFICIENCY = 0.75
_WIDTH = 118


def first_screen(stage: Stage, model: Any) -> str:
    """Ten lines for the person who started it.

    Args:
        stage: the opened stage.
        model: what trains: ``stage.model``, with its adapters if there are some.
    """
    cfg, plan = stage.cfg, stage.batches.plan
    steps = cfg.trainer.max_steps
    # On data that changed, the plan knows nothing of what came before the resume.
    first = checkpoints.step_of(stage.resume) if stage.resume else 0
    look = max(min(steps - first, LOOK), 1)
    lengths: list[Any] = []
    ahead = realised(plan, stage.batches.sources, look, first=first, lengths=lengths)
    world = PartialState().num_processes
    table = stage.batches.table()
    times = steps / look
    hours = sum(row["hours"] for row in ahead["sources"]) * times
    left_out = sum((Counter(row["left_out"] | row["problems"]) for row in table), Counter[str]())
    tracker = "metrics.jsonl" if stage.writer.tracked is None else f"metrics.jsonl and W&B ({stage.writer.tracked})"
    precision = "bfloat16" if cfg.trainer.bf16 or cfg.model.dtype == "bfloat16" else "float32"
    lines = {
        cfg.stage: f"{cfg.model.name}: {parameters(model)}{_adapted(stage)}",
        "weights": weights(cfg.model),
        "data": f"{len(table)} sources with {sum(row['samples'] for row in table):,} samples, "
        f"{sum(row['hours'] for row in table):,.2f} hours (what several share counts in each)",
        "left out": f"{_counts(left_out)}; by source in {stage.run.dir / 'data.txt'}",
        "mixture": _mixture(ahead["sources"], times),
        "steps": f"{steps:,} steps of {cfg.trainer.batches_per_step} x {cfg.data.tokens_per_batch:,} tokens "
        f"({ahead['fill']:.0%} full): {ahead['tokens'] * times / 1e6:,.2f} M tokens, {hours:,.2f} hours of audio heard",
        "machine": f"{world} process{'es' * (world > 1)} on {_device()}, {precision}, deepspeed {cfg.deepspeed.name}",
        "time": expected_time(stage, ahead, lengths, world),
        "saves": f"every {cfg.trainer.save_steps:,} steps and at the end; metrics in {tracker}",
        "writes to": f"{stage.run.dir} ({f'resuming from {stage.resume.name}' if stage.resume else 'a fresh start'})",
    }
    return "\n".join(f"{name:<10}{shorten(text, _WIDTH, placeholder=' ...')}" for name, text in lines.items())


def weights(cfg: ModelConfig) -> str:
    """Where each part's weights come from; a checkpoint brings all of them, and other sources are not read."""
    if cfg.checkpoint is None:
        return f"encoder {cfg.encoder.source or 'random'}, projector random, llm {cfg.llm.source or 'random'}"
    sources = {"encoder.source": cfg.encoder.source, "llm.source": cfg.llm.source, "tokenizer": cfg.tokenizer}
    unread = [f"model.{name}" for name, source in sources.items() if source]
    return f"{cfg.checkpoint}, all parts" + (f" (not read: {', '.join(unread)})" if unread else "")


def parameters(model: Any) -> str:
    """ "0.3 M parameters, 0.2 M of them train (encoder 0.1 M, llm 0.1 M)"."""
    total, trained = 0, Counter[str]()
    for name, parameter in model.named_parameters():
        # ZeRO-3 leaves an empty tensor and the true size.
        size = getattr(parameter, "ds_numel", parameter.numel())
        total += size
        if parameter.requires_grad:
            trained[part_of(name.removeprefix("base_model.model."))] += size
    shown = ", ".join(f"{part} {_millions(size)}" for part, size in trained.items())
    return f"{_millions(total)} parameters, {_millions(trained.total())} of them train ({shown or 'nothing'})"


def expected_time(stage: Stage, ahead: dict[str, Any], lengths: list[Any], world: int) -> str:
    """How long the steps that are left will take: from the steps done before, else from a count of operations."""
    left = stage.cfg.trainer.max_steps - (checkpoints.step_of(stage.resume) if stage.resume else 0)
    done = [row["seconds"] for row in read_tail(stage.run.metrics, 50) if row.get("seconds")]
    if stage.resume and done:
        step_s = median(done)
        return f"{_duration(left * step_s)} for {left:,} steps ({step_s:.2g} s each, as before the restart)"
    load = from_realised(stage.cfg, ahead, lengths)
    shapes = Shapes.of(stage.model.config)
    regime, _, _ = regime_of(stage.cfg)
    operations = training_flops(shapes, load.work, regime).total
    if stage.cfg.stage == "dpo" and stage.cfg.dpo.reference == "live":
        operations += forward_flops(shapes, load.work).total
    rate, share = product_rate(), MFU if torch.cuda.is_available() else _CPU_EFFICIENCY
    step_s = operations * stage.cfg.trainer.batches_per_step / (rate * share * world)
    # Measured on two cores: a mini model takes half of it, a tiny one several times as long (docs/planning.md).
    doubt = "" if torch.cuda.is_available() else ", half to several times that for small models"
    return (
        f"about {_duration(left * step_s)} ({step_s:.2g} s a step): a guess from operations, at {share:.0%} of "
        f"{rate / 1e12:.3g} TFLOP/s measured here{doubt}; step lines time it"
    )


def product_rate() -> float:
    """Operations per second of a square matrix product on this process's device: bfloat16 on a GPU, float32 on CPU."""
    cuda = torch.cuda.is_available()
    size, device = (8192, "cuda") if cuda else (768, "cpu")
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the GPU
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _adapted(stage: Stage) -> str:
    cfg = stage.cfg.model
    words = [f"frozen: {', '.join(cfg.freeze)}"] if cfg.freeze else []
    words += [f"LoRA r={cfg.lora.r} on {', '.join(cfg.lora.parts)}"] if cfg.lora.parts else []
    return "; " + "; ".join(words) if words else ""


def _mixture(rows: list[dict[str, Any]], times: float) -> str:
    """The sources by share, with how often the run goes through each."""
    ordered = sorted(rows, key=lambda row: -row["share"])
    return ", ".join(f"{row['source']} {row['share']:.0%} ({row['epochs'] * times:.2g} epochs)" for row in ordered)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common(3)) or "nothing"


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)} each)"


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} M"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} hours"
