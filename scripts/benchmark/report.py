"""The figures of one cell, as a record for JSON and as a line of a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmark.clips import PROMPT_TOKENS, Example, durations
from benchmark.measure import Batch, FirstStep, Seconds
from benchmark.twins import REGIMES, make_config

from qa_train.data.audio.front_end import FRONT_END
from qa_train.model.encoders.whisper_costs import WhisperCosts
from qa_train.model.flops import Regime, Shapes, Work, forward_flops, training_flops
from qa_train.model.layers.lengths import audio_tokens

_MANY = 4096


def describe(
    *,
    corpus: str,
    regime: str,
    examples: list[Example],
    shapes: Shapes,
    tokenizer: Any,
    batches: dict[str, list[Batch]],
    times: dict[str, list[Seconds]],
    first: dict[str, FirstStep],
    build_s: dict[str, float],
    choices: dict[str, dict[str, Any]],
    on_gpu: bool,
    peaks: dict[str, float | None],
) -> dict[str, Any]:
    """The record of a cell; seconds are the process's on a CPU and the wall clock's on a GPU."""
    work = [Work.of(batch) for batch in batches["ours"]]
    kind = REGIMES[regime]
    useful = sum(training_flops(shapes, part, kind).total for part in work)
    dense = sum(six_n_flops(shapes, part, kind) for part in work)
    tokens, frames = (
        sum(sum(part.documents) for part in work),
        sum(shapes.encoder.frames(part.segments) for part in work),
    )
    audio_s = sum(len(example.wave) for example in examples) / FRONT_END.sample_rate
    record: dict[str, Any] = {"corpus": corpus, "regime": regime, "clips": len(examples), "audio_s": round(audio_s, 2)}
    record |= {"tokens": tokens, "supervised": sum(part.supervised for part in work), "frames": frames}
    record |= {"useful_flops": useful, "six_n_flops": dense}
    for name, taken in times.items():
        seconds = median(one.wall if on_gpu else one.cpu for one in taken)
        executed, source = first[name].flops, "torch's FLOP counter"
        if not executed:
            executed, source = executed_flops(name, shapes, batches[name], kind, **choices[name]), "formula"
        record[name] = {
            "settings": choices[name],
            "loss": first[name].loss,
            "gradient_norm": first[name].gradient_norm,
            "clips_per_s": len(examples) / seconds,
            "tokens_per_s": tokens / seconds,
            "audio_s_per_s": audio_s / seconds,
            "cpu_s_per_clip": median(one.cpu for one in taken) / len(examples),
            "wall_s_per_clip": median(one.wall for one in taken) / len(examples),
            "build_cpu_s_per_clip": build_s[name] / len(examples),
            "executed_flops": executed,
            "executed_flops_by": source,
            "executed_over_useful": executed / useful,
            "llm_padding_share": 1 - tokens / first[name].positions["llm"],
            "encoder_padding_frames": first[name].positions["encoder"] - frames,
            "useful_mfu": {peak: useful / seconds / rate for peak, rate in peaks.items() if rate},
            "six_n_mfu": {peak: dense / seconds / rate for peak, rate in peaks.items() if rate},
            "rounds": [asdict(one) for one in taken],
        }
    ours, stock = record["ours"], record["stock"]
    unit = "wall" if on_gpu else "cpu"
    pairs = [getattr(b, unit) / getattr(a, unit) for a, b in zip(times["ours"], times["stock"], strict=True)]
    large = Shapes.of(make_config("8b", tokenizer))
    record["speedup"] = ours["clips_per_s"] / stock["clips_per_s"]
    record["speedup_by_round"] = pairs
    record["flop_ratio"] = stock["executed_flops"] / ours["executed_flops"]
    record["flop_ratio_8b"] = flop_ratio(large, batches, kind)
    return record


def six_n_flops(shapes: Shapes, work: Work, regime: Regime) -> float:
    """The usual estimate "6 N per token", for comparison with published figures.

    N are the weights of linear layers and head; every token meets the head, supervised or not; without attention and
    convolutions. 6 becomes 4 for a frozen LLM and 2 for a frozen encoder.
    """
    tokens = sum(work.documents)
    llm = shapes.llm_weights + shapes.width * shapes.vocab
    return 2.0 * (
        shapes.encoder.weights * shapes.encoder.frames(work.segments) * (3 if regime.encoder else 1)
        + llm * tokens * (3 if regime.llm else 2)
        + 3 * shapes.adapter_weights(regime.lora_rank) * tokens
    )


def flop_ratio(shapes: Shapes, batches: dict[str, list[Batch]], regime: Regime) -> float:
    """What stock executes over what is useful, by formula, for these batches in a model of other sizes."""
    useful = sum(training_flops(shapes, Work.of(batch), regime).total for batch in batches["ours"])
    return executed_flops("stock", shapes, batches["stock"], regime) / useful


def executed_flops(
    name: str, shapes: Shapes, batches: Sequence[Batch], regime: Regime, *, size: int = 0, checkpointing: bool = False
) -> float:
    """By formula: stock computes full windows, whole rows, and all pairs of tokens once a row is padded.

    Gradient checkpointing adds a second forward of the layers that gradients pass through, up to each one's last
    linear layer, whose input is all that its backward needs. ``size`` is not used.
    """
    total = 0.0
    for batch in batches:
        work, causal = Work.of(batch), True
        if name == "stock":
            rows, length = batch["input_ids"].shape
            causal = min(work.documents) == length
            windows = [FRONT_END.segment_frames] * len(batch["feature_attention_mask"])
            work = Work(windows, [length] * rows, rows * length)
        total += training_flops(shapes, work, regime, causal=causal).total
        if checkpointing:
            again = forward_flops(shapes, work, lora_rank=regime.lora_rank, causal=causal)
            total += again.llm + again.llm_attention + again.adapters
            if not regime.lora_rank:  # with LoRA an adapter comes after a layer's last weight
                total -= 2 * shapes.layers * shapes.width * shapes.ffn * sum(work.documents)
            encoder = shapes.encoder
            if regime.encoder and isinstance(encoder, WhisperCosts):
                total += again.encoder + again.encoder_attention
                total -= 2 * encoder.layers * encoder.width * encoder.ffn * encoder.frames(work.segments)
    return total


def formula_table(shapes: Shapes, corpora: Sequence[str], regimes: Sequence[str], sizes: Sequence[int]) -> str:
    """Markdown: FLOPs that stock executes over useful ones, for thousands of clips, by stock's micro-batch size."""
    heads = [f"{regime}, {size}" for regime in regimes for size in sizes]
    lines = [f"| data | {' | '.join(heads)} |", "|---" + "|---:" * len(heads) + "|"]
    for corpus in corpora:
        drawn = [(int(100 * seconds), target) for seconds, target in durations(corpus, _MANY, seed=0)]
        rows = [audio_tokens(frames) + PROMPT_TOKENS + target for frames, target in drawn]
        ratios = []
        for regime in regimes:
            work = Work([frames for frames, _ in drawn], rows, sum(target for _, target in drawn))
            useful = training_flops(shapes, work, REGIMES[regime]).total
            for size in sizes:
                groups = [rows[start : start + size] for start in range(0, len(rows), size)]
                executed = sum(_padded_flops(shapes, group, REGIMES[regime]) for group in groups)
                ratios.append(f"{executed / useful:.2f}")
        lines.append(f"| {corpus} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def _padded_flops(shapes: Shapes, rows: list[int], regime: Regime) -> float:
    """Stock's, for rows with one clip each."""
    length = max(rows)
    work = Work([FRONT_END.segment_frames] * len(rows), [length] * len(rows), length * len(rows))
    return training_flops(shapes, work, regime, causal=min(rows) == length).total


def table(cells: list[dict[str, Any]], *, heading: bool = True) -> str:
    """Markdown lines of some cells."""
    head = [
        "| data | regime | CPU s per clip, stock → ours | speed-up | FLOP ratio here / at 8.4 B | executed / useful "
        "| LLM padding, stock | encoder padding, stock | useful MFU, stock → ours | 6N-MFU, stock → ours |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*(head if heading else []), *(_line(cell) for cell in cells)])


def _line(cell: dict[str, Any]) -> str:
    ours, stock = cell["ours"], cell["stock"]
    low, high = min(cell["speedup_by_round"]), max(cell["speedup_by_round"])
    padding = stock["encoder_padding_frames"] / (stock["encoder_padding_frames"] + cell["frames"])
    cells = [
        cell["corpus"],
        cell["regime"],
        f"{stock['cpu_s_per_clip']:.3f} → {ours['cpu_s_per_clip']:.3f}",
        f"{cell['speedup']:.2f} ({low:.2f}–{high:.2f})",
        f"{cell['flop_ratio']:.2f} / {cell['flop_ratio_8b']:.2f}",
        f"{ours['executed_over_useful']:.3f}",
        f"{stock['llm_padding_share']:.0%}",
        f"{padding:.0%}",
        f"{stock['useful_mfu']['measured']:.0%} → {ours['useful_mfu']['measured']:.0%}",
        f"{stock['six_n_mfu']['measured']:.0%} → {ours['six_n_mfu']['measured']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"
