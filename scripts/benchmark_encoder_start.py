"""How long a start takes to find out that its encoder cache is complete.

    python scripts/benchmark_encoder_start.py [SHARDS] [RANKS]

SHARDS indexes of 10,000 rows (`benchmark_plan.write_shards`; all rows name the same clip) are on disk, seen by three
sources. Compared are a look at every clip, which a shard without a manifest needs; the manifests of all shards; and
those of the share that one of RANKS processes reads. CPU and wall seconds, files in the page cache.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmark_plan import ROWS, config, write_shards

from qa_train.data.audio.encoder_cache import EncoderCache, share_of
from qa_train.data.cached_clips import wanted_shards
from qa_train.data.open_sources import open_sources
from qa_train.model.tokenizers import load_tokenizer


def timed(name: str, clips: int, work: Callable[[], int]) -> None:
    """Print the seconds of ``work`` and what it found."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{name:<34} {cpu:9.4f} s CPU  {wall:9.4f} s  {1e6 * cpu / clips:9.4f} us a clip; found {found:,}", flush=True
    )


def main() -> None:
    shards, ranks = (*map(int, sys.argv[1:]), *(20, 8)[len(sys.argv) - 1 :])[:2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, shards * ROWS)
        data = config([str(folder)], error_budget=1.0)
        sources = open_sources(data, load_tokenizer("builtin:nano"), seed=0, preference=False)
        clips = shards * ROWS
        cache = EncoderCache(folder / "cache", "key", 1280)

        def everything() -> int:
            return sum(len(each.clips(0, 1)) for each in wanted_shards(sources, lambda digest: True).values())

        def manifests(of: int) -> int:
            part = wanted_shards(sources, lambda digest: share_of(digest, of) == 0)
            return sum(each.taken <= cache.complete(digest) for digest, each in part.items())

        timed("every clip", clips, everything)
        for digest, each in wanted_shards(sources, lambda digest: True).items():
            for taken in each.taken:
                cache.mark(digest, taken, 0, 1, {})
        timed("manifests of all shards", clips, lambda: manifests(1))
        timed(f"manifests of one of {ranks} processes", clips, lambda: manifests(ranks))


if __name__ == "__main__":
    main()
