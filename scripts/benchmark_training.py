"""Training speed of this project against the stock path, interleaved in one run, after proof of an equal first step.

    python scripts/benchmark_training.py --size tiny --out tiny.json                  # one CPU core
    python scripts/benchmark_training.py --size 8b --out 8b.json --trace trace.txt    # one H200, under 9 minutes

Stock is ``Qwen2AudioForConditionalGeneration`` with ``Qwen2AudioProcessor`` (clips padded to 30 s, rows padded to the
longest on the right), stepped as HF's Trainer does, with a loss function that works around its accumulation bug. Both
paths share weights, clips, their order, supervised tokens, optimizer and clips per step; each takes the micro-batch
size (and, on a GPU, the gradient checkpointing) at which it was fastest. Timed is an optimizer step on batches that are
already there: forward, backward, clipping, AdamW. Building batches is timed apart.

On a GPU: bf16 weights, gradients and optimizer states (8 bytes per parameter), as the stock Trainer has with a bf16
model; ``--compile`` fuses the layers of ours (qa_train's ``compile_layers``). Wheels it needs besides torch >= 2.10 for
CUDA, numpy and PyYAML, as pinned in constraints.txt: transformers, tokenizers, safetensors, huggingface_hub (with
httpx2, httpcore2, truststore, anyio, h11, sniffio, idna), accelerate, psutil, peft, hydra-core, omegaconf,
antlr4-python3-runtime, soundfile, soxr. No flash-attn, no deepspeed, no trl. cuDNN's attention is off on both sides.

A cell that fails is in the results with its error, the others are still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import platform
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

# On a bare machine nothing is installed: the checkout itself is the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmark.clips import CORPORA, MIXED, Example, make_examples
from benchmark.measure import (
    Seconds,
    first_step,
    forward_backward,
    measured_peak,
    micro_batches,
    optimizer_step,
    timed,
    write_trace,
)
from benchmark.report import describe, formula_table, table
from benchmark.twins import REGIMES, SIZES, Side, make_config, make_sides
from torch import nn

from qa_train.model.build import make_processor
from qa_train.model.flops import Shapes
from qa_train.model.layers.recompute import compile_layers
from qa_train.model.tokenizers import load_tokenizer
from qa_train.planner.gpus import GPUS
from qa_train.utils.process import expand_segments

H200_PEAK = GPUS["h200"].bf16_tflops * 1e12
# Largest relative difference of the first step's loss, and of its gradient norm.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (5e-3, 5e-2)}


@dataclass(frozen=True)
class Choice:
    """The micro-batch size and gradient checkpointing that a side is run with."""

    size: int
    checkpointing: bool


class Benchmark:
    """All cells (length distribution x regime) of one run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dtype = getattr(torch, options.dtype)
        self.deadline = time.monotonic() + 60 * options.minutes
        tokenizer = load_tokenizer("builtin:nano")
        self.processor = make_processor(tokenizer, make_config(options.size, tokenizer))
        self.shapes = Shapes.of(make_config(options.size, tokenizer))
        self.chosen: dict[tuple[str, str], Choice] = {}
        self.sweeps: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Every cell that fits into the time; skipped ones are listed."""
        options = self.options
        peak = measured_peak(options.device, self.dtype)
        results = self.results(peak)
        cells, skipped = results["cells"], results["left_out_for_time"]
        for regime in options.regimes:
            sides = make_sides(options.size, regime, self.processor, options.device, self.dtype, seed=options.seed)
            if options.compile:
                ours: Any = sides[0].model
                compile_layers(ours.get_base_model() if REGIMES[regime].lora_rank else ours)
                del ours
            optimizer = make_optimizer(sides[0].model)
            for corpus in options.data:
                if time.monotonic() > self.deadline:
                    skipped.append([regime, corpus])
                    continue
                try:
                    cells.append(self.cell(sides, optimizer, regime, corpus, peak["flops_per_s"]))
                    print(table(cells[-1:], heading=len(cells) == 1), flush=True)
                except torch.OutOfMemoryError as error:
                    results["out_of_memory"].append([regime, corpus, str(error).splitlines()[0]])
                except (RuntimeError, ValueError) as error:
                    # What one cell does wrong must not cost the minutes of the others.
                    results["failed"].append([regime, corpus, f"{type(error).__name__}: {error}"])
                optimizer.zero_grad()
                # What a limit of time cuts off must not take the finished cells with it.
                self.write(results)
            del sides, optimizer
            gc.collect()
            torch.cuda.empty_cache()
        self.write(results)
        return results

    def write(self, results: dict[str, Any]) -> None:
        """All results so far as JSON, if a file was asked for."""
        if self.options.out:
            self.options.out.write_text(json.dumps(results, indent=1) + "\n")

    def results(self, peak: dict[str, Any]) -> dict[str, Any]:
        """What describes the run, without cells yet."""
        options = self.options
        return {
            "size": options.size,
            "dtype": options.dtype,
            "compiled": options.compile,
            "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine(),
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "measured_peak": peak,
            "given_peak_flops_per_s": options.peak_tflops and 1e12 * options.peak_tflops,
            "cells": [],
            "sweeps": self.sweeps,
            "left_out_for_time": [],
            "out_of_memory": [],
            "failed": [],
        }

    def cell(
        self, sides: list[Side], optimizer: torch.optim.Optimizer, regime: str, corpus: str, peak: float
    ) -> dict[str, Any]:
        """One length distribution in one regime."""
        options = self.options
        examples = make_examples(corpus, options.clips, self.processor.tokenizer, seed=options.seed)
        num_items = sum(example.supervised for example in examples)
        batches, build_s, first = {}, {}, {}
        for side in sides:
            choice = self.choose(side, examples, corpus, num_items)
            with timed(options.device) as seconds:
                batches[side.name] = micro_batches(side, examples, choice.size, options.device)
            build_s[side.name] = seconds().cpu
            set_checkpointing(side, choice.checkpointing)
            # The counter does not see into compiled code.
            counted = not options.device.startswith("cuda") and not options.compile
            first[side.name] = first_step(side, batches[side.name], num_items, count=counted)
        check_first_step(first, TOLERANCE[self.dtype])
        times = self.interleaved(sides, optimizer, batches, num_items)
        if options.trace and corpus == options.data[0] and regime == options.regimes[0]:
            steps = {side.name: partial(forward_backward, side, batches[side.name][:1], num_items) for side in sides}
            with Path(options.trace).open("w") as file:
                write_trace(sides, steps, options.device, file)
        return describe(
            corpus=corpus, regime=regime, examples=examples, shapes=self.shapes,
            tokenizer=self.processor.tokenizer, batches=batches, times=times,
            first=first, build_s=build_s, choices={p.name: vars(self.choice(p, corpus)) for p in sides},
            on_gpu=options.device.startswith("cuda"),
            peaks={"measured": peak, "given": options.peak_tflops and 1e12 * options.peak_tflops},
        )  # fmt: skip

    def interleaved(
        self, sides: list[Side], optimizer: torch.optim.Optimizer, batches: dict[str, Any], num_items: int
    ) -> dict[str, list[Seconds]]:
        """Whole steps in turn (A B, B A, ...), after a step of each that is not counted on a GPU."""
        on_gpu = self.options.device.startswith("cuda")
        times: dict[str, list[Seconds]] = {side.name: [] for side in sides}
        for number in range(self.options.rounds + on_gpu):
            for side in sides if number % 2 == 0 else reversed(sides):
                with timed(self.options.device) as seconds:
                    optimizer_step(side, batches[side.name], num_items, optimizer)
                if number or not on_gpu:
                    times[side.name].append(seconds())
        return times

    def choice(self, side: Side, corpus: str) -> Choice:
        return self.chosen[side.name, corpus]

    def choose(self, side: Side, examples: list[Example], corpus: str, num_items: int) -> Choice:
        """The fastest setting for this side and corpus, found in the first regime that is run."""
        if (side.name, corpus) in self.chosen:
            return self.chosen[side.name, corpus]
        options = self.options
        examples = examples[: options.batch_sizes[-1]]
        settings = [Choice(*pair) for pair in itertools.product(options.batch_sizes, options.checkpointing)]
        if len(settings) == 1:
            self.chosen[side.name, corpus] = settings[0]
            return settings[0]
        found: dict[Choice, float] = {}
        for number, setting in enumerate(settings):
            try:
                found[setting] = self.trial(side, examples, setting, num_items, warm=number == 0)
            except torch.OutOfMemoryError:
                side.model.zero_grad()
                torch.cuda.empty_cache()
        if not found:
            raise ValueError(f"{side.name} does not fit at any of {settings}: give smaller --batch-sizes")
        self.chosen[side.name, corpus] = min(found, key=found.__getitem__)
        tried = [{**vars(setting), "s": found.get(setting)} for setting in settings]
        self.sweeps.append({"side": side.name, "corpus": corpus, "clips": len(examples), "seconds": tried})
        return self.chosen[side.name, corpus]

    def trial(self, side: Side, examples: list[Example], setting: Choice, num_items: int, *, warm: bool) -> float:
        """Seconds (of the CPU on a CPU) of one forward and backward in this setting."""
        set_checkpointing(side, setting.checkpointing)
        batches = micro_batches(side, examples, setting.size, self.options.device)
        on_gpu = self.options.device.startswith("cuda")
        if warm or on_gpu:
            forward_backward(side, batches[:1], num_items)
        with timed(self.options.device) as seconds:
            forward_backward(side, batches, num_items)
        side.model.zero_grad()
        return seconds().wall if on_gpu else seconds().cpu


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW of the shared weights, its states in memory from the start, so that what fits now fits later."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-6, weight_decay=0, fused=True
    )
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def set_checkpointing(side: Side, on: bool) -> None:
    """Gradient checkpointing of every layer of encoder and LLM, on or off."""
    model: Any = side.model
    if on and not model.is_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # transformers then lets the inputs of encoder and LLM require gradients, as reentrant checkpointing needs it.
        # A frozen encoder would pay for that with a whole backward pass, on both sides.
        model.disable_input_require_grads()
    elif not on and model.is_gradient_checkpointing:
        model.gradient_checkpointing_disable()


def check_first_step(first: dict[str, Any], tolerance: tuple[float, float]) -> None:
    """RuntimeError unless both sides have the same loss and gradient norm before any update."""
    for what, limit in zip(("loss", "gradient_norm"), tolerance, strict=True):
        ours, stock = (getattr(first[name], what) for name in ("ours", "stock"))
        if not abs(ours - stock) <= limit * abs(stock):
            raise RuntimeError(
                f"the first step's {what} is {ours} with ours and {stock} with stock, more than {limit:g} apart: "
                "the two sides do not do the same work, and their times cannot be compared"
            )


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options, with the defaults that the size and the device imply."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", help="cpu or cuda; default: cuda for 8b")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU")
    parser.add_argument("--data", nargs="+", choices=[*CORPORA, MIXED], default=[MIXED, *CORPORA])
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--clips", type=int, help="clips of one optimizer step")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="clips of a micro-batch, the fastest is taken")
    parser.add_argument(
        "--checkpointing", nargs="+", choices=("off", "on"), help="settings to try; default: both on GPU"
    )
    parser.add_argument("--formula", action="store_true", help="print FLOP ratios by formula and stop; runs no model")
    parser.add_argument("--compile", action="store_true", help="compile the layers of our model")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each side")
    parser.add_argument(
        "--peak-tflops", type=float, help="data-sheet peak for utilisation; default on cuda: 989 (H200)"
    )
    parser.add_argument("--minutes", type=float, default=7.5, help="start no new cell after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write all results as JSON")
    parser.add_argument("--trace", type=Path, help="write a profiler table of one micro-batch of each side")
    options = parser.parse_args(arguments)
    options.device = options.device or ("cuda" if options.size == "8b" else "cpu")
    on_gpu = options.device.startswith("cuda")
    options.dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    options.clips = options.clips or (128 if on_gpu else 8)
    options.batch_sizes = options.batch_sizes or ([4, 8, 16, 32] if on_gpu else [1, 2, 4, 8])
    options.batch_sizes = sorted({min(size, options.clips) for size in options.batch_sizes})
    # Checkpointed layers cannot be compiled.
    settings = ["off", "on"] if on_gpu and not options.compile else ["off"]
    options.checkpointing = [word == "on" for word in options.checkpointing or settings]
    options.peak_tflops = options.peak_tflops or (H200_PEAK / 1e12 if on_gpu else None)
    return options


def main(arguments: list[str]) -> int:
    """Run all cells, print a table, write JSON; 1 if a cell failed."""
    # Early enough: torch reads it when CUDA starts.
    expand_segments()
    options = parse(arguments)
    if options.formula:
        shapes = Shapes.of(make_config(options.size, load_tokenizer("builtin:nano")))
        print(formula_table(shapes, options.data, options.regimes, options.batch_sizes))
        return 0
    results = Benchmark(options).run()
    if results["left_out_for_time"]:
        print(f"not run, the {options.minutes:g} minutes were over: {results['left_out_for_time']}")
    if results["out_of_memory"]:
        print(f"out of memory: {results['out_of_memory']}")
    for regime, corpus, why in results["failed"]:
        print(f"FAILED: {regime}, {corpus}: {why}")
    if options.out:
        print(f"written: {options.out}")
    return int(bool(results["failed"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
