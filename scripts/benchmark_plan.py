"""Start-up, seek, memory, fill and balance of the plan, on synthetic indexes.

    python scripts/benchmark_plan.py                # 1 M samples on disk, 190 M samples (520,000 hours) without rows
    python scripts/benchmark_plan.py --seek         # only the first
    python scripts/benchmark_plan.py --scale        # only the second
    python scripts/benchmark_plan.py --balance      # work of the ranks by model, in exact operations; no files
    python scripts/benchmark_plan.py --ranks 512 1024 --sources 3 64   # one node of a large job: its planner, a worker

Every figure is of one process; times are wall seconds. The index of 1 M samples is real (100 sidecars of 10,000
rows, all of which name the same clip); of the 190 M only the catalog is, and rows are made up when they are read.

``--ranks``: samples of 200,000 records whose tokens are counted. Given are the CPU time of the node's one planner for a
sample, that of a loader worker for each batch it delivers, which has to pass over those of all other ranks, and the
memory that a worker has more than a process that has loaded the libraries and the tokenizer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from qa_train.config import DataConfig, SourceConfig
from qa_train.config.compose import compose_stage
from qa_train.data.batches import Batches, open_data
from qa_train.data.mixture_report import imbalance
from qa_train.data.order.batch_plan import Plan
from qa_train.data.order.packing import Cost, pack
from qa_train.data.order.shuffle_window import Lengths
from qa_train.data.shards.catalog import CATALOG_SUFFIX, open_shards, write_lines
from qa_train.data.shards.sidecar import SCHEMA, ShardIndex, Summary, load_index, write_index
from qa_train.data.shards.token_counts import count_shard
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.source import Source
from qa_train.data.text.prompts import PromptBank
from qa_train.model import load_model_config
from qa_train.model.flops import Regime, Shapes, Work, training_flops
from qa_train.model.tokenizers import load_tokenizer
from qa_train.planner.balance import cost_of

ROWS = 10_000
MEAN_S = 9.85
WORDS = "the quick brown fox jumps over a lazy dog while seven green birds sing by the quiet river".split()


def made_rows(shard: int, columns: Sequence[str], clip: dict[str, Any] | None = None) -> pyarrow.Table:
    """Rows of a shard that exists nowhere: gamma-distributed lengths, a transcript, one of three languages."""
    rng = random.Random(shard)
    out: dict[str, list[Any]] = {name: [] for name in columns}
    for row in range(ROWS):
        samples = clip["num_samples"] if clip else [round(16_000 * min(30.0, 0.5 + rng.gammavariate(4, MEAN_S / 4)))]
        text = " ".join(rng.choice(WORDS) for _ in range(3 + samples[0] // 8000))
        meta = json.dumps({"language": ("en", "zh", "de")[rng.randrange(3)], "text": text})
        known: dict[str, Any] = {
            "names": ["flac"],
            "offsets": [1024],
            "sizes": [9],
            "crc32c": [1],
            "sample_rates": [16_000],
        }
        known |= clip or {}
        known |= {"key": f"s{shard:06d}-{row:05d}", "num_samples": samples}
        known |= {"duration_s": samples[0] / 16_000, "meta": meta}
        for name in columns:
            out[name].append(known[name])
    return pyarrow.Table.from_pydict(out, schema=pyarrow.schema([SCHEMA.field(name) for name in columns]))


def config(shards: list[str], **options: Any) -> DataConfig:
    """Recognition of all and of the English part, and language identification, 3 : 2 : 1."""
    sources = {
        "asr": SourceConfig(name="asr", shards=shards, task="asr", weight=3),
        "asr_en": SourceConfig(name="asr_en", shards=shards, task="asr", where={"language": "en"}, weight=2),
        "lid": SourceConfig(name="lid", shards=shards, task="lid", weight=1),
    }
    return DataConfig(sources=sources, tokens_per_batch=8192, **options)


def rss_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_shards(folder: Path, samples: int) -> None:
    """Shards with real sidecars, all of whose rows name the same clip."""
    with ShardWriter(folder / "00000.tar") as writer:
        writer.write("clip", {"text": "x"}, np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32))
    index = load_index(str(folder / "00000.tar"))
    clip = {name: index.table[name][0].as_py() for name in SCHEMA.names[1:7]}
    for shard in range(samples // ROWS):
        path = folder / f"{shard:05d}.tar"
        if shard:
            shutil.copy(folder / "00000.tar", path)
        rows = made_rows(shard, SCHEMA.names, clip)
        write_index(ShardIndex(str(path), rows, index.shard_size, f"{shard}"))


def seek(folder: Path, samples: int) -> dict[str, Any]:
    """Open an index on disk, and go to ten random steps by their saved state; the first batch reads its audio."""
    write_shards(folder, samples)
    tokenizer = load_tokenizer("builtin:nano")

    def opened() -> Batches:
        return open_data(config([str(folder)]), tokenizer, 128, seed=0, batches_per_step=8)

    started, worked = time.perf_counter(), time.process_time()
    opened().build(0)
    first_s, first_cpu_s = time.perf_counter() - started, time.process_time() - worked
    walked = opened()
    for number in range(12):
        walked.plan.window(number)
    last = walked.plan._starts[-1].first_batch
    seeks, opens, cpu = [], [], []
    for k in random.Random(0).sample(range(last), 10):
        state = walked.plan.seek_hint(k)
        started = time.perf_counter()
        fresh = opened()
        opens.append(time.perf_counter() - started)
        started, worked = time.perf_counter(), time.process_time()
        fresh.plan.seek(*state)
        keys = fresh.keys(k)
        seeks.append(time.perf_counter() - started)
        cpu.append(time.process_time() - worked)
        assert keys == walked.keys(k)
    return {
        "samples": samples,
        "open_and_first_batch_s": first_s,
        "open_and_first_batch_cpu_s": first_cpu_s,
        "open_s_max": max(opens),
        "seek_s_max": max(seeks),
        "seek_cpu_s_max": max(cpu),
        "seek_cpu_s_mean": float(np.mean(cpu)),
    }


def scale(folder: Path, samples: int, windows: int) -> dict[str, Any]:
    """A corpus of which only the catalog exists: start-up, seek far in, planning, memory, fill and balance."""
    catalog = folder / f"all{CATALOG_SUFFIX}"
    thirds = dict.fromkeys(("en", "zh", "de"), (ROWS // 3, ROWS * MEAN_S / 3))
    summaries = (
        (f"{n:06d}.tar", Summary(ROWS, ROWS * MEAN_S, f"{n}", {"language": thirds})) for n in range(samples // ROWS)
    )
    write_lines(summaries, catalog)
    tokenizer = load_tokenizer("builtin:nano")
    before = rss_mib()
    started, worked = time.perf_counter(), time.process_time()
    # The time to make up the rows is not the plan's.
    made = [0.0]

    def load(path: str, fingerprint: str, columns: Sequence[str]) -> pyarrow.Table:
        began = time.process_time()
        rows = made_rows(int(fingerprint), columns)
        made[0] += time.process_time() - began
        return rows

    cfg = config([str(catalog)])
    bank = PromptBank.load()
    sources = []
    for name, line in cfg.sources.items():
        table = open_shards(line.shards, line.where)
        table.load = load
        sources.append(Source(name, line, cfg, bank, tokenizer, seed=0, pairs=False, table=table))
    plan = Plan(sources, seed=0, tokens_per_batch=8192, batches_per_step=8, shuffle_window=cfg.shuffle_window)
    open_s, open_cpu_s = time.perf_counter() - started, time.process_time() - worked
    opened_mib = rss_mib()
    state = list(plan.seek_hint(0))
    # The state in the middle of the first epoch of every source.
    state[0], state[1], state[2] = 10_000, 1_000_000, 1_000_000
    for i in range(len(sources)):
        state[9 + 4 * i] = samples // 2
    fresh = Plan(sources, seed=0, tokens_per_batch=8192, batches_per_step=8, shuffle_window=cfg.shuffle_window)
    fresh.seek(*state)
    tokens, costs, times = [], [], []
    for number in range(10_000, 10_000 + windows):
        began = time.process_time() - made[0]
        window = fresh.window(number)
        times.append(time.process_time() - made[0] - began)
        tokens += window.batch_tokens.tolist()
        costs += window.batch_costs.tolist()
    return {
        "samples": samples,
        "open_s": open_s,
        "open_cpu_s": open_cpu_s,
        "rss_before_mib": before,
        "rss_opened_mib": opened_mib,
        "rss_after_mib": rss_mib(),
        "windows": windows,
        "window_cpu_s_mean": float(np.mean(times)),
        "fill": float(np.mean(tokens)) / 8192,
        "imbalance": imbalance(np.asarray(costs), 8),
    }


# Of one rank; a worker has every eighth batch of its rank.
WORKERS = 8


def node(folder: Path, ranks: int, sources: int, steps: int) -> dict[str, Any]:
    """The planner and one loader worker of a node in a job of ``ranks``, in turns, and their CPU time."""
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    lines = {
        f"s{i}": SourceConfig(name=f"s{i}", shards=shards[i % len(shards) :: sources] or shards[:1], task="asr")
        for i in range(sources)
    }
    cfg = DataConfig(sources=lines, tokens_per_batch=8192)
    tokenizer = load_tokenizer("builtin:nano")
    before = rss_mib()
    planner, worker = (open_data(cfg, tokenizer, 128, seed=ranks, batches_per_step=ranks) for _ in range(2))
    for source in planner.sources:
        for shard in source.shards:
            count_shard(shard, source.use)
    read, passed = [], 0
    for step in range(0, steps, WORKERS):
        for k in range(step * ranks, (step + WORKERS) * ranks, max(1, ranks // 64)):
            planner.ahead(k)
        began = time.process_time()
        passed += len(worker.plan.batch(step * ranks))
        read.append(time.process_time() - began)
    rate = planner.plan.rate
    assert rate is not None
    assert worker.plan.rate is None, "the worker planned a window itself"
    per_step = passed / len(read) * ranks
    return {
        "ranks": ranks,
        "sources": sources,
        "planner_us_a_sample": 1e6 / rate,
        "samples_a_step": per_step,
        "planner_cpu_s_a_step": per_step / rate,
        # The first one opens the sources.
        "worker_cpu_s_a_batch": float(np.mean(read[1:])),
        "both_mib_above_tokenizer": rss_mib() - before,
    }


SMALL_LLM = (
    "model_type: qwen2, vocab_size: 151936, hidden_size: 896, num_hidden_layers: 24, num_attention_heads: 14, "
    "num_key_value_heads: 2, intermediate_size: 4864"
)
FROZEN = "model.freeze=[encoder]"
MODELS = {
    "8.4B": ["model=qwen2_audio_7b"],
    "0.5B LLM, large-v3": ["model=qwen2_audio_7b", f"model.llm.config={{{SMALL_LLM}}}"],
    "0.5B LLM, large-v3 frozen": ["model=qwen2_audio_7b", f"model.llm.config={{{SMALL_LLM}}}", FROZEN],
    "0.5B LLM, large-v3 cached": [
        "model=qwen2_audio_7b", f"model.llm.config={{{SMALL_LLM}}}", FROZEN, "data.encoder_cache=c"
    ],
    "nano, cached (quickstart)": ["model=nano", FROZEN, "data.encoder_cache=c"],
    "tiny": ["model=tiny"],
}  # fmt: skip


def made_lengths(count: int) -> Lengths:
    """A mixture of short and long clips up to 30 s, some with long answers, and a fifth of text without audio."""
    rng = np.random.default_rng(0)
    seconds = np.clip(np.where(rng.random(count) < 0.5, rng.gamma(6, 5 / 6, count), rng.gamma(8, 2, count)), 1, 30)
    audio = np.where(rng.random(count) < 0.2, 0, np.round(seconds * 25)).astype(np.int64)
    prompt = 15 + rng.poisson(10, count)
    scored = np.where(audio > 0, rng.poisson(2.7 * seconds), rng.integers(50, 500, count))
    scored = scored + np.where(rng.random(count) < 0.2, rng.integers(50, 300, count), 0)
    tokens = audio + prompt + scored
    return Lengths(tokens, tokens**2, audio, audio**2, scored, np.full(count, "", dtype=object))


def balance(budget: int) -> None:
    """Print, by model, what the costliest of 8 ranks does above the mean: packed by the 8.4B model's cost, and by its
    own."""
    lengths = made_lengths(8192)
    for name, words in MODELS.items():
        cfg = compose_stage("pretrain", ["experiment=smoke", "model.dtype=float32", *words])
        shapes, regime = Shapes.of(load_model_config(cfg.model)), Regime.of(cfg.model)
        found = {}
        for kind, cost in {"8.4B": Cost(), "own": cost_of(cfg, shapes)}.items():
            batches = pack(lengths.tokens, cost.of(lengths), budget)
            done = []
            for batch in batches:
                segments = [4 * n for n in lengths.audio[batch].tolist() if n]
                scored = int(lengths.scored[batch].sum())
                flops = training_flops(shapes, Work(segments, lengths.tokens[batch].tolist(), scored), regime)
                encoder = flops.stem + flops.encoder + flops.encoder_attention
                done.append(flops.total - (encoder if cfg.data.encoder_cache else 0))
            over = imbalance(np.asarray(done), 8)[8]
            fill = float(np.mean([lengths.tokens[batch].sum() for batch in batches])) / budget
            found[kind] = {key: round(value, 4) for key, value in {**over, "fill": fill}.items()}
        print(json.dumps({"model": name, "tokens_per_batch": budget, **found}), flush=True)


def apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of ``work`` in a new process, whose peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    """Run what was asked for and print one JSON object each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seek", action="store_true")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--balance", action="store_true")
    parser.add_argument("--ranks", type=int, nargs="+", default=[])
    parser.add_argument("--sources", type=int, nargs="+", default=[3])
    parser.add_argument("--steps", type=int, default=64, help="of --ranks")
    parser.add_argument("--samples", type=int, default=0, help="instead of 1 M (--seek) or 190 M (--scale)")
    parser.add_argument("--windows", type=int, default=8)
    options = parser.parse_args()
    if options.balance:
        for budget in (2500, 8192):
            balance(budget)
        return
    if options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder), options.samples or 200_000)
            for ranks, sources in itertools.product(options.ranks, options.sources):
                print(json.dumps(apart(node, Path(folder), ranks, sources, options.steps)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        both = options.seek == options.scale
        if options.scale or both:
            print(
                json.dumps({"scale": scale(Path(folder), options.samples or 190_000_000, options.windows)}), flush=True
            )
        if options.seek or both:
            print(json.dumps({"seek": seek(Path(folder), options.samples or 1_000_000)}), flush=True)


if __name__ == "__main__":
    main()
