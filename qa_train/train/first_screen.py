"""What a run prints before its first step, in a dozen lines: model, data, steps, time, and where it writes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from accelerate import PartialState

from qa_train.config import ModelConfig
from qa_train.data.mixture_report import effective_mixture
from qa_train.model.layers.parts import part_of
from qa_train.planner.work import LOOK
from qa_train.train.forecast import Rehearsal, expected_time
from qa_train.train.stage import Stage
from qa_train.utils.progress import amount, counted, duration, rough
from qa_train.utils.terminal import PLAIN, Layout

# Sources that the line of the mixture names, the largest ones.
_SHOWN = 6


def first_screen(stage: Stage, model: Any, rehearsal: Rehearsal | None = None, page: Layout = PLAIN) -> str:
    """The lines, laid out for ``page``.

    Args:
        stage: the opened stage.
        model: the model being trained: ``stage.model``, with its adapters if any.
        rehearsal: the measured step, if there is one.
    """
    cfg, plan = stage.cfg, stage.batches.plan
    steps = cfg.trainer.max_steps
    # After a data change, the plan does not cover the steps before the resume.
    first = stage.first_step
    look = max(min(steps - first, LOOK), 1)
    lengths: list[Any] = []
    ahead = effective_mixture(plan, stage.batches.sources, look, first=first, lengths=lengths)
    world = PartialState().num_processes
    table = stage.batches.table()
    times = steps / look
    hours = sum(row["hours"] for row in ahead["sources"]) * times
    skipped = sum((Counter(row["left_out"] | row["problems"]) for row in table), Counter[str]())
    tracker = " and ".join(["metrics.jsonl", *filter(None, [stage.writer.tracked])])
    precision = "bfloat16" if cfg.trainer.bf16 or cfg.model.dtype == "bfloat16" else "float32"
    lines = {
        cfg.stage: f"{cfg.model.name}: {parameters(model)}{_adapted(stage)}",
        "weights": weights(cfg.model),
        "data": f"{counted(len(table), 'source')} with {counted(sum(row['samples'] for row in table), 'sample')}, "
        f"{duration(sum(row['hours'] for row in table) * 3600)} of audio (shared records count in each)",
        "skipped": f"{_counts(skipped)}; by source in {stage.run.dir / 'data.txt'}",
        "mixture": _mixture(ahead["sources"], times),
        "steps": f"{counted(steps, 'step')} of {cfg.trainer.batches_per_step} x {cfg.data.tokens_per_batch:,} tokens "
        f"({ahead['fill']:.0%} full): {amount(ahead['tokens'] * times)} tokens, {duration(hours * 3600)} of audio",
        "planning": _planning(plan.rate, ahead["samples"] / look),
        "machine": f"{world} process{'es' * (world > 1)} on {_device()}, {precision}, deepspeed {cfg.deepspeed.name}",
        "time": expected_time(stage, rehearsal, ahead, lengths, world),
        "saves": f"every {cfg.trainer.save_steps:,} steps and at the end; metrics in {tracker}",
        "writes to": f"{stage.run.dir} ({f'resuming from {stage.resume.name}' if stage.resume else 'a fresh start'})",
    }
    return page.entries(lines.items(), 10, indent=0)


def _planning(rate: float | None, samples: float) -> str:
    """How fast a step of so many samples may be before its data are not planned in time."""
    if rate is None:
        return f"{samples:,.0f} samples per step, planned by another process of this machine"
    return (
        f"{samples:,.0f} samples per step; each machine plans {rate:,.0f} per second, enough for steps of "
        f"{rough(samples / rate)} s or more"
    )


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
            trained[part_of(name)] += size
    shown = ", ".join(f"{part} {amount(size)}" for part, size in trained.items())
    return f"{amount(total)} parameters, {amount(trained.total())} of them train ({shown or 'nothing'})"


def _adapted(stage: Stage) -> str:
    cfg = stage.cfg.model
    words = [f"frozen: {', '.join(cfg.freeze)}"] if cfg.freeze else []
    words += [f"LoRA r={cfg.lora.r} on {', '.join(cfg.lora.parts)}"] if cfg.lora.parts else []
    return "; " + "; ".join(words) if words else ""


def _mixture(rows: list[dict[str, Any]], times: float) -> str:
    """The sources by share, with how often the run goes through each."""
    ordered = sorted(rows, key=lambda row: -row["share"])
    shown = [f"{row['source']} {row['share']:.0%} ({rough(row['epochs'] * times)} epochs)" for row in ordered[:_SHOWN]]
    if rest := ordered[_SHOWN:]:
        shown.append(f"{len(rest)} more {sum(row['share'] for row in rest):.0%}")
    return ", ".join(shown)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common(3)) or "nothing"


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)} each)"
