"""Remote shards against the local disk, in one run: requests, connections, time a clip, batches a second.

    python scripts/benchmark_remote.py [LATENCY_MS] [ROUNDS]

240 clips of recorded speech (the starter data, 10 s of FLAC each) in four shards are served over loopback by
tests/data/http_server.py, in a process of its own, every answer LATENCY_MS late. Read are

- one at a time, each over a connection of its own, as before connections were kept (urllib);
- one at a time, over kept connections (RangeReader.read);
- 16 at a time (RangeReader.fetch);
- 60 neighbours of a shard at a time, joined;

and, through a DataLoader with two workers, all batches of an epoch, from the disk and from the server, in turn; the
best of ROUNDS rounds counts, and of CPU seconds (all threads of the trainer and its workers) the least.

The server has a core of its own, and everything else, from the disk or from the server, the others: a server far away
takes nothing from a node either. Latency alone is not CPU time, so both figures are given.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent.parent))
from qa_train.config import DataConfig, SourceConfig
from qa_train.data.batches import Batches, open_data
from qa_train.data.loader import Collator
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores.neighbours import Range
from qa_train.data.stores.storage import RangeReader
from qa_train.model import load_tokenizer
from scripts.benchmark_loader import speech
from tests.data.serving import Server, http_server

CLIPS, PER_SHARD, SECONDS, WORKERS, BATCHES = 240, 60, 10.0, 2, 60
NAMES = "clips-{000..003}.tar"


def make_shards(folder: Path) -> None:
    with ShardWriter(folder / "clips-%03d.tar", max_samples=PER_SHARD) as writer:
        for number, wave in enumerate(islice(speech(SECONDS), CLIPS)):
            writer.write(f"clip{number:04d}", {"text": "a sentence", "language": "en"}, wave)


def ranges_of(folder: Path, url: str) -> list[Range]:
    """Every clip, shard by shard."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        table = load_index(str(path)).table
        places = zip(table["offsets"].to_pylist(), table["sizes"].to_pylist(), strict=True)
        found += [Range(f"{url}/{path.name}", offset, size) for (offset,), (size,) in places]
    return found


def one_connection_each(ranges: Sequence[Range]) -> int:
    read = 0
    for each in ranges:
        span = {"Range": f"bytes={each.offset}-{each.end - 1}"}
        with urllib.request.urlopen(urllib.request.Request(each.path, headers=span)) as answer:
            read += len(answer.read())
    return read


def together(ranges: Sequence[Range], at_once: int) -> int:
    reader, read = RangeReader(), 0
    for first in range(0, len(ranges), at_once):
        group = ranges[first : first + at_once]
        if at_once > 1:
            reader.fetch(group)
        read += sum(len(reader.read(*each)) for each in group)
    return read


def measure_reading(server: Server, folder: Path) -> None:
    in_order = ranges_of(folder, server.url)
    shuffled = [in_order[i] for i in np.random.default_rng(0).permutation(len(in_order))]
    size = sum(each.size for each in in_order)
    ways: dict[str, Callable[[], int]] = {
        "one at a time, a connection each": lambda: one_connection_each(shuffled),
        "one at a time, kept connections": lambda: together(shuffled, 1),
        "16 at a time": lambda: together(shuffled, 16),
        "60 neighbours at a time": lambda: together(in_order, 60),
    }
    print(f"{'':<36} {'requests':>9} {'new connections':>16} {'ms a clip':>10}")
    known = -1
    for name, work in ways.items():
        server.fail()
        started = time.perf_counter()
        if work() != size:
            raise ValueError(f"{name}: not all bytes were read")
        spent = (time.perf_counter() - started) / CLIPS
        lines = {line.split()[2] for line in server.requests}
        new = len([number for number in lines if int(number) > known])
        known = max(known, *map(int, lines))
        print(f"{name:<36} {len(server.requests):>9} {new:>16} {1000 * spent:>10.1f}")


def opened(shards: str, tokenizer: Any) -> Batches:
    data = DataConfig({"s": SourceConfig(shards=[shards], task="asr")}, tokens_per_batch=1200, shuffle_window=CLIPS)
    return open_data(data, tokenizer, 128, seed=0, batches_per_step=1)


def cpu_seconds() -> float:
    """Of this process and of its children that have ended; the server has not."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def batches_a_second(batches: Batches) -> tuple[float, float, float]:
    """Batches a second after the first of each worker, the clips in all, and CPU seconds a batch."""
    used = cpu_seconds()
    numbers: Any = list(range(BATCHES))
    loader: Iterable[dict[str, torch.Tensor]] = DataLoader(
        numbers, batch_size=1, num_workers=WORKERS, collate_fn=Collator(batches)
    )
    clips, started = 0, 0.0
    for number, batch in enumerate(loader):
        if number == WORKERS:
            started = time.perf_counter()
        clips += len(batch["feature_lengths"])
    rate = (BATCHES - WORKERS) / (time.perf_counter() - started)
    return rate, clips, (cpu_seconds() - used) / BATCHES


def measure_batches(server: Server, folder: Path, rounds: int) -> None:
    tokenizer = load_tokenizer("builtin:nano")
    sources = {
        "local disk": opened(f"{folder}/{NAMES}", tokenizer),
        "remote": opened(f"{server.url}/{NAMES}", tokenizer),
    }
    best, clips, cpu = (dict.fromkeys(sources, start) for start in (0.0, 0.0, float("inf")))
    for _ in range(rounds):
        for name, batches in sources.items():
            server.fail()
            found, clips[name], spent = batches_a_second(batches)
            best[name], cpu[name] = max(best[name], found), min(cpu[name], spent)
    if clips["local disk"] != clips["remote"] or sum(sum(each.skipped.values()) for each in sources.values()):
        raise ValueError(f"not the same clips: {clips}")
    for name, found in best.items():
        about = f"{clips[name] / BATCHES:.1f} clips each, {WORKERS} workers, {1000 * cpu[name]:.1f} ms of CPU a batch"
        print(f"{name:<36} {found:6.2f} batches/s, {about}")
    asked = len([line for line in server.requests if line.split()[3].endswith(".tar")])
    cheaper = cpu["local disk"] / cpu["remote"]
    print(f"remote / local                       {best['remote'] / best['local disk']:6.2f}, by CPU time {cheaper:.2f}")
    print(f"requests of shards; connections      {asked} for {clips['remote']:.0f} clips; {server.connections}")


def main() -> None:
    latency_ms, rounds = (*map(float, sys.argv[1:]), *(20.0, 3.0)[len(sys.argv) - 1 :])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "served"
        folder.mkdir()
        make_shards(folder)
        print(f"{CLIPS} clips of {SECONDS:g} s, answers {latency_ms:g} ms late")
        cores = sorted(os.sched_getaffinity(0))
        # Children inherit it: the server is started on its core, and this process leaves it.
        os.sched_setaffinity(0, cores[:1])
        with http_server(folder, latency_ms / 1000) as server:
            os.sched_setaffinity(0, cores[1:] or cores)
            print(f"the server on core {cores[0]}, all else on {cores[1:] or cores}")
            measure_reading(server, folder)
            measure_batches(server, folder, int(rounds))


if __name__ == "__main__":
    main()
