"""What a preference pair costs: ours against the concatenated, padded path with the reference in the loop.

    python scripts/benchmark_dpo.py --size tiny --out dpo.json        # one CPU core

Stock runs chosen and rejected as two rows, each with its own copy of the clip padded to 30 s, through the model and
again, without gradients, through the reference, and scores every position. Ours encodes each clip once for both rows,
runs real frames and tokens only, and scores the answers' tokens only; the reference's log-probabilities are known
(precomputed) or computed in the step (live). Compared first: the answers' log-probabilities, and a loss of ln 2 for
a policy that equals its reference. FLOPs are torch's count; times are the process's CPU time, interleaved.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmark.clips import CORPORA, MIXED, Example, make_examples, our_batch, stock_batch
from benchmark.measure import CPU_ATTENTION, timed
from benchmark.twins import SIZES, make_config, make_sides
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qa_train.data.text.template import IGNORE, Encoded
from qa_train.model.build import make_processor
from qa_train.model.tokenizers import AUDIO, load_tokenizer, token_id

ANSWER_TOKENS = 30
_BETA = 0.1
LogProbs = Callable[[], Tensor]


def make_pairs(corpus: str, count: int, tokenizer: Any, *, seed: int = 0) -> list[Example]:
    """Rows [all chosen, all rejected] over ``count`` clips of a corpus; answers of 30 tokens."""
    draw = random.Random(seed)
    rows = []
    for example in make_examples(corpus, count, tokenizer, seed=seed) * 2:
        prompt = [i for i, label in zip(example.row.input_ids, example.row.labels, strict=True) if label == IGNORE]
        target = [i for i in example.row.labels if i != IGNORE][:-1]
        answer = [*draw.choices(target, k=ANSWER_TOKENS - 1), tokenizer.eos_token_id]
        row = Encoded(prompt + answer, [IGNORE] * len(prompt) + answer)
        text = example.text.removesuffix(tokenizer.decode([*target, tokenizer.eos_token_id]))
        rows.append(replace(example, text=text + tokenizer.decode(answer), row=row))
    return rows


def our_pair_batch(rows: list[Example], processor: Any) -> dict[str, Tensor]:
    """All rows, with each clip once and the places of its tokens in both rows."""
    once = our_batch(rows[: len(rows) // 2], processor)
    tokens = int((once["input_ids"] == token_id(processor.tokenizer, AUDIO)).sum())
    audio = {name: once[name] for name in ("input_features", "feature_lengths")}
    return {**our_batch(rows, processor), **audio, "audio_gather": torch.arange(tokens).repeat(2)}


def our_log_probs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Summed log-probability of each row's answer [2 pairs]; only the answers' rows meet the head."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    targets = batch["labels"][:, 1:]
    asked = targets != IGNORE
    logits = model.lm_head(hidden[:, :-1][asked]).float()
    losses = nn.functional.cross_entropy(logits, targets[asked], reduction="none")
    return -losses.new_zeros(len(targets)).index_add(0, asked.nonzero()[:, 0], losses)


def stock_log_probs(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The same through the stock model: every row brings its clip, every position is scored."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    targets = batch["labels"][:, 1:]
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    scores = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return (scores * (targets != IGNORE)).sum(1)


def step(log_probs: LogProbs, reference: Tensor | None) -> Tensor:
    """Forward and backward of DPO's sigmoid loss; the reference runs in the step if it is None. Returns the loss."""
    if reference is None:
        with torch.no_grad():
            reference = log_probs()
    chosen, rejected = (log_probs() - reference).chunk(2)
    loss = -nn.functional.logsigmoid(_BETA * (chosen - rejected)).mean()
    loss.backward()
    return loss.detach()


def cell(corpus: str, options: argparse.Namespace) -> dict[str, Any]:
    """All three ways on one length distribution."""
    tokenizer = load_tokenizer("builtin:nano")
    processor = make_processor(tokenizer, make_config(options.size, tokenizer))
    ours, stock = make_sides(options.size, "full", processor, "cpu", torch.float32, seed=options.seed)
    rows = make_pairs(corpus, options.pairs, tokenizer, seed=options.seed)
    log_probs: dict[str, LogProbs] = {
        "ours": partial(our_log_probs, ours.model, our_pair_batch(rows, processor)),
        "stock": partial(stock_log_probs, stock.model, stock_batch(rows, processor)),
    }
    with torch.no_grad():
        known = {name: compute() for name, compute in log_probs.items()}
    torch.testing.assert_close(known["ours"], known["stock"], atol=1e-3, rtol=1e-5)
    ways = {
        "ours, precomputed": partial(step, log_probs["ours"], known["ours"]),
        "ours, live": partial(step, log_probs["ours"], None),
        "stock": partial(step, log_probs["stock"], None),
    }
    flops: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name, way in ways.items():
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            loss = float(way())
        if abs(loss - math.log(2)) > 1e-3:
            raise RuntimeError(f"{name}: a policy that equals its reference has loss {loss}, not ln 2")
        flops[name] = counter.get_total_flops()
    for number in range(options.rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            with timed("cpu") as taken:
                ways[name]()
            seconds[name].append(taken().cpu / options.pairs)
            ours.model.zero_grad()
    return {
        "corpus": corpus,
        "pairs": options.pairs,
        "flops_per_pair": {name: value / options.pairs for name, value in flops.items()},
        "cpu_s_per_pair": {name: median(values) for name, values in seconds.items()},
    }


def line(result: dict[str, Any]) -> str:
    """One line of the table: the ratios of stock to ours."""
    flops, seconds = result["flops_per_pair"], result["cpu_s_per_pair"]
    ratios = [
        f"{figures['stock'] / figures[name]:.2f}"
        for name in ("ours, precomputed", "ours, live")
        for figures in (flops, seconds)
    ]
    return f"| {result['corpus']} | {seconds['stock']:.2f} | {' | '.join(ratios)} |"


def main(arguments: list[str]) -> None:
    """Run every length distribution, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--data", nargs="+", choices=[*CORPORA, MIXED], default=[*CORPORA, MIXED])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write all results as JSON")
    options = parser.parse_args(arguments)
    print("| data | CPU s per pair, stock | FLOPs, precomputed | CPU, precomputed | FLOPs, live | CPU, live |")
    print("|---|---:|---:|---:|---:|---:|")
    results = []
    for corpus in options.data:
        results.append(cell(corpus, options))
        print(line(results[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"size": options.size, "cells": results}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
