"""How long a device waits for data in steps of many micro-batches, with shards behind a network.

    python scripts/benchmark_wait.py [MICRO_BATCHES] [WORKERS] [LATENCY_MS] [STEPS]

Real batches of recorded speech (the starter data) come from the loader's workers; every clip costs one more wait of
LATENCY_MS. The device is a pause of as long as the workers need for a batch, and a tenth more: they just keep up. As in
training all micro-batches of a step are taken before the first is computed. Compared are loaders whose workers build
torch's two batches ahead each, and as many as the trainer asks for (`qa_train.train.arguments.prefetch_factor`). The
first step, for which nothing can be ahead, is reported apart.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from qa_train.config import StageConfig, starter_dir
from qa_train.config.compose import compose_stage
from qa_train.data.batches import Batches, open_data
from qa_train.data.clips import Clip, ClipReader
from qa_train.data.loader import Collator
from qa_train.model.tokenizers import load_tokenizer
from qa_train.train.arguments import prefetch_factor

# The device's time for a micro-batch, in units of the workers' time for one.
_DEVICE = 1.1


class FarReader(ClipReader):
    """Reads a clip after a pause, as over a network."""

    latency_s = 0.0

    def wave(self, clip: Clip) -> np.ndarray:
        """As `ClipReader.wave`."""
        time.sleep(self.latency_s)
        return super().wave(clip)


def open_batches(cfg: StageConfig, latency_s: float) -> Batches:
    """Batches of 2,000 tokens of the starter's speech, read with that latency."""
    batches = open_data(cfg.data, load_tokenizer("builtin:nano"), 128, seed=0, batches_per_step=16)
    batches.reader = FarReader(128)
    batches.reader.latency_s = latency_s
    return batches


def loader(batches: Batches, workers: int, ahead: int) -> Any:
    """An endless loader of these batches, in order."""
    numbers: Any = range(1 << 20)
    return iter(
        DataLoader(numbers, batch_size=1, num_workers=workers, prefetch_factor=ahead, collate_fn=Collator(batches))
    )


def batch_seconds(batches: Batches, workers: int, count: int) -> float:
    """Seconds between two batches of a loader that is never kept waiting."""
    source = loader(batches, workers, 2)
    for _ in range(2 * workers):
        next(source)
    started = time.perf_counter()
    for _ in range(count):
        next(source)
    return (time.perf_counter() - started) / count


def waits(batches: Batches, workers: int, ahead: int, micro_batches: int, steps: int, device_s: float) -> list[float]:
    """Seconds that each step waits for its batches."""
    source = loader(batches, workers, ahead)
    found = []
    for _ in range(steps):
        started = time.perf_counter()
        for _ in range(micro_batches):
            next(source)
        found.append(time.perf_counter() - started)
        time.sleep(micro_batches * device_s)
    return found


def main() -> None:
    words = [int(word) for word in sys.argv[1:]]
    micro_batches, workers, latency_ms, steps = (*words, *(16, 4, 20, 6)[len(words) :])[:4]
    torch.set_num_threads(1)
    shards = f"{starter_dir()}/speech-train.tar"
    cfg = compose_stage(
        "pretrain",
        [
            "experiment=smoke", "run.dir=unused", "data=empty", "data.tokens_per_batch=2000",
            f"+data.sources={{speech:{{shards:['{shards}'],task:asr}}}}",
            f"data.num_workers={workers}", f"trainer.batches_per_step={micro_batches}",
        ],
    )  # fmt: skip
    batches = open_batches(cfg, latency_ms / 1000)
    device_s = _DEVICE * batch_seconds(batches, workers, 4 * workers)
    clips = sum(len(batches.plan.batch(k)) for k in range(micro_batches)) / micro_batches
    print(
        f"{micro_batches} micro-batches of {clips:.1f} clips a step, {workers} workers, {latency_ms} ms a clip: "
        f"{device_s:.3f} s of device time a micro-batch, {steps} steps"
    )
    means = []
    for name, ahead in (("two ahead", 2), ("a step ahead", prefetch_factor(cfg) or 2)):
        first, *later = waits(batches, workers, ahead, micro_batches, steps, device_s)
        means.append(sum(later) / len(later))
        share = means[-1] / (means[-1] + micro_batches * device_s)
        print(
            f"{name:<14} {ahead:3d} a worker   first step {first:6.2f} s   later steps wait {means[-1]:6.3f} s each, "
            f"{share:6.1%} of their time"
        )
    print(f"wait, before / after: {means[0] / max(means[1], 1e-6):.1f}")


if __name__ == "__main__":
    main()
