"""An estimate as a person reads it, and as JSON."""

from __future__ import annotations

from typing import Any

from qa_train.planner.estimate import MFU_SOURCE, Estimate
from qa_train.planner.memory import GIB, OVERHEAD, USABLE
from qa_train.utils.terminal import PLAIN, Layout


def as_text(made: Estimate, page: Layout = PLAIN) -> str:
    """Parameters, memory, operations, time, money and tasks, on about thirty lines, laid out for ``page``."""
    parts = [*_head(made, page), *_parameters(made, page), *_memory(made, page), *_time(made), *_tasks(made, page)]
    return page.fold("\n".join(parts))


def as_dict(made: Estimate) -> dict[str, Any]:
    """The same, machine-readable: bytes, operations, seconds."""
    kept = made.memory.activations
    return {
        "stage": made.cfg.stage,
        "gpu": made.options.gpu,
        "gpus": made.options.gpus,
        "zero": made.cfg.deepspeed.zero_stage,
        "parameters": made.sizes.total,
        "trained": made.sizes.trained,
        "memory_bytes": {
            **made.memory.kinds,
            "activations": kept.total - kept.logits,
            "logits": kept.logits,
            "optimizer step": made.memory.step,
            "fragmentation": made.memory.fragmentation,
            "context": OVERHEAD,
            "total": made.memory.total,
            "host": made.memory.host,
        },
        "gpu_bytes": made.gpu.memory_gib * GIB,
        "fits": made.fits,
        "suggestions": made.suggestions,
        "flops_per_step": {
            "useful": made.useful.total,
            "reference": made.reference_flops,
            "recomputed": made.recomputed_flops,
        },
        "mfu": made.mfu if made.pace is None else None,
        "measured": None if made.pace is None else vars(made.pace),
        "step_s": made.step_s,
        "wall_hours": made.wall_hours,
        "gpu_hours": made.gpu_hours,
        "cost": None if made.options.price is None else made.gpu_hours * made.options.price,
        "tasks": [vars(task) for task in made.load.tasks],
        "lengths": made.load.origin,
    }


def _head(made: Estimate, page: Layout) -> list[str]:
    cfg, count = made.cfg, made.options.gpus
    kind = f"ZeRO-{cfg.deepspeed.zero_stage}" if cfg.deepspeed.config else "plain training"
    lines = [page.paint(f"{cfg.stage} of {cfg.model.name} on {count} x {made.gpu.name}, {kind}", "bold")]
    return [*lines, f"  note: {made.sizes.note}"] if made.sizes.note else lines


def _parameters(made: Estimate, page: Layout) -> list[str]:
    sizes = made.sizes
    lines = ["", page.paint(f"{'parameters':<28} {'total':>12} {'trained':>12}", "bold")]
    for part, count in sizes.total.items():
        lines.append(f"  {part:<26} {_millions(count):>12} {_millions(sizes.trained.get(part, 0)):>12}")
    return [*lines, f"  {'all':<26} {_millions(sizes.parameters):>12} {_millions(sizes.trained_parameters):>12}"]


def _memory(made: Estimate, page: Layout) -> list[str]:
    memory, kept, modes = made.memory, made.memory.activations, made.cfg.trainer.gradient_checkpointing
    rows = [
        *memory.kinds.items(),
        (f"activations, encoder ({modes.encoder})", kept.encoder),
        (f"activations, LLM ({modes.llm})", kept.llm),
        ("activations, recomputed layer", kept.recomputed),
        ("logits and their gradient", kept.logits),
        ("optimizer step instead of these", memory.step if memory.step > kept.total else 0.0),
        ("fragmentation", memory.fragmentation),
        ("CUDA and NCCL", OVERHEAD),
    ]
    lines = ["", page.paint("memory of one GPU, GiB", "bold")]
    lines += [f"  {name:<34} {size / GIB:>8.2f}" for name, size in rows if size]
    verdict = page.paint("fits", "green") if made.fits else page.paint("DOES NOT FIT", "red")
    usable = f"{USABLE * made.gpu.memory_gib:.1f} ({USABLE:.0%} of {made.gpu.memory_gib:.1f})"
    lines.append(f"  {'about':<34} {memory.total / GIB:>8.2f}  of {usable}: {verdict}")
    if memory.host:
        lines.append(f"  host memory for what is offloaded, per machine: {memory.host / GIB:.0f} GiB")
    return lines + [f"  -> {suggestion}" for suggestion in made.suggestions]


def _time(made: Estimate) -> list[str]:
    cfg, load, options = made.cfg, made.load, made.options
    per_gpu = cfg.trainer.batches_per_step // options.gpus
    source = MFU_SOURCE if options.mfu is None else "as given"
    audio_h = load.audio_s * cfg.trainer.batches_per_step / 3600
    needed = load.samples * cfg.trainer.batches_per_step / made.step_s
    lines = [
        "",
        f"one step: {cfg.trainer.batches_per_step} batches of {cfg.data.tokens_per_batch} tokens ({per_gpu} per GPU)",
        f"  lengths from {load.origin}",
        f"  {load.samples * cfg.trainer.batches_per_step:,.0f} samples, {audio_h:.2f} hours of audio, "
        f"{made.useful.total / 1e15:,.2f} PFLOP useful"
        + (f", {made.reference_flops / 1e15:,.2f} for the reference" if made.reference_flops else "")
        + (f", {made.recomputed_flops / 1e15:,.2f} recomputed" if made.recomputed_flops else ""),
        f"  {made.step_s:.3g} s "
        + (
            f"at {made.mfu:.0%} of {made.gpu.bf16_tflops:g} TFLOP/s (efficiency: {source})"
            if made.pace is None
            else f"as measured in {made.pace.source}: {made.pace.rate / 1e12:.3g} TFLOP/s of one process, and "
            f"{made.pace.batch_s:.2g} s of fixed cost per batch"
        ),
        f"the run: {cfg.trainer.max_steps:,} steps, {made.wall_hours:,.1f} hours, {made.gpu_hours:,.0f} GPU-hours",
    ]
    if load.planned_per_s is not None:
        rate = f"each machine plans {load.planned_per_s:,.0f}"
        lines.insert(-1, f"  its data: {needed:,.0f} samples/s; {rate}")
        if needed > load.planned_per_s / 2:
            lines.insert(-1, "  -> planning would delay the GPUs: write token counts with qa-train data tokens")
    if options.price is not None:
        lines[-1] += f", costs {made.gpu_hours * options.price:,.0f} at {options.price:g} per GPU-hour"
    return lines


def _tasks(made: Estimate, page: Layout) -> list[str]:
    head = ["source", "task", "share", "samples", "tokens", "hours", "epochs"]
    rows = []
    for row in made.load.tasks:
        numbers = [f"{row.share:.1%}", f"{row.samples:,.0f}", f"{row.tokens:,.0f}", f"{row.hours:,.0f}"]
        rows.append([row.source, row.task, *numbers, "?" if row.epochs is None else f"{row.epochs:.2f}"])
    return ["", page.table(head, rows, left=2), *(f"  {problem}" for problem in made.load.problems)]


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M" if count else "-"
