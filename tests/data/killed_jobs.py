"""A job that reads batches, killed at random points: no sample is repeated or lost (test_kills.py).

A job of W rank processes reads batches through DataLoaders, as a run does, and commits its state (integers, as
JSON) every few steps. It is killed (SIGKILL) at random, once in a life: a loader worker, a rank, or the whole job.
The next life resumes from the last commit with another world size and number of workers. At the end the committed
order is compared with that of one undisturbed process. No audio is read.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.config import DataConfig, SourceConfig
from qa_train.data.batches import Batches, open_data
from qa_train.data.loader import delivered
from qa_train.data.shards.writer import ShardWriter
from qa_train.model.tokenizers import load_tokenizer

PER_STEP = 4
COMMIT_STEPS = 3


def make_shards(folder: Path) -> DataConfig:
    """240 short clips in 6 shards as two tasks, with a filter and a source that runs dry."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "s-%02d.tar", max_samples=40) as writer:
        for i in range(240):
            record = {"text": " ".join(["green", "bird", "river"][: 1 + i % 3]), "language": ("en", "fr")[i % 2]}
            writer.write(f"k{i:03d}", record, rng.normal(0, 0.1, 8000 + 80 * i).astype(np.float32))
    shards = [str(folder / "s-*.tar")]
    sources = {
        "asr": SourceConfig(name="asr", shards=shards, task="asr", weight=3),
        "lid": SourceConfig(name="lid", shards=shards, task="lid", where={"language": "fr"}, weight=1, max_epochs=2),
    }
    return DataConfig(sources=sources, tokens_per_batch=250, shuffle_window=100)


def opened(cfg: DataConfig) -> Batches:
    """The data as a run opens them."""
    return open_data(cfg, load_tokenizer("builtin:nano"), 80, seed=5, batches_per_step=PER_STEP)


def rank_main(batches: Batches, first: int, steps: int, rank: int, world: int, workers: int, out: Connection) -> None:
    """One rank: send the sample names of its batches, one step at a time."""
    os.setpgrp()
    mine = PER_STEP // world
    numbers = [k for k in range(first, first + steps * PER_STEP) if (k - first) % world == rank]
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    try:
        stream = delivered_numbers(batches, numbers, workers)
        for _ in range(steps):
            time.sleep(0.001)
            out.send([next(stream) for _ in range(mine)])
        out.send(None)
    except (RuntimeError, BrokenPipeError) as error:
        # A killed worker ends its rank, as in a run.
        raise SystemExit(1) from error


def delivered_numbers(batches: Batches, numbers: list[int], workers: int) -> Any:
    """Sample names of the given batches through a DataLoader with that many worker processes."""
    from torch.utils.data import DataLoader

    from qa_train.data.loader import Keys

    return iter(DataLoader(numbers, batch_size=1, num_workers=workers, collate_fn=Keys(batches)))  # type: ignore[arg-type]


def life(cfg: DataConfig, folder: Path, steps: int, world: int, workers: int, killer: Killer) -> bool:
    """One life of the job: True when it reached the last step, False when it was killed."""
    state = json.loads((folder / "state.json").read_text()) if (folder / "state.json").exists() else None
    done = state["step"] if state else 0
    batches = opened(cfg)
    if state:
        batches.plan.seek(*state["plan"])
    fork = multiprocessing.get_context("fork")
    ranks = []
    for rank in range(world):
        ours, theirs = fork.Pipe(duplex=False)
        options = (batches, done * PER_STEP, steps - done, rank, world, workers, theirs)
        process = fork.Process(target=rank_main, args=options)
        process.start()
        theirs.close()
        ranks.append((process, ours))
    log: list[str] = list(state["log"]) if state else []
    try:
        while done < steps:
            parts = [killer.receive(pipe, [p.pid for p, _ in ranks]) for _, pipe in ranks]
            # Batch first + i is the (i // W)-th of rank i % W.
            names = [parts[i % world][i // world] for i in range(PER_STEP)]
            log += [",".join(batch) for batch in names]
            done += 1
            if done % COMMIT_STEPS == 0 or done == steps:
                saved = {"step": done, "plan": list(batches.plan.seek_hint(done * PER_STEP)), "log": log}
                (folder / "state.part").write_text(json.dumps(saved))
                (folder / "state.part").replace(folder / "state.json")
        return True
    except (EOFError, ConnectionResetError):
        return False
    finally:
        for process, pipe in ranks:
            pipe.close()
            for stop in (lambda p=process: os.killpg(p.pid, signal.SIGKILL), process.kill):
                try:
                    stop()
                except (ProcessLookupError, PermissionError):
                    continue
            process.join()


class Killer:
    """Strikes once in a life, when its time has come: at a loader worker, a rank or the whole job, equally often."""

    def __init__(self, after_s: float | None) -> None:
        self.deadline = None if after_s is None else time.monotonic() + after_s
        self.struck: str | None = None

    def receive(self, pipe: Connection, pids: list[int | None]) -> Any:
        """The next step of a rank, unless it is time to strike. A death ends the life as an end of file."""
        while not pipe.poll(0.005):
            self._strike(pids)
        self._strike(pids)
        return pipe.recv()

    def _strike(self, pids: list[int | None]) -> None:
        if self.struck or self.deadline is None or time.monotonic() < self.deadline:
            return
        victim = random.choice([pid for pid in pids if pid])
        children = Path(f"/proc/{victim}/task/{victim}/children")
        workers = children.read_text().split() if children.exists() else []
        self.struck = random.choice(["worker", "rank", "job"] if workers else ["rank", "job"])
        if self.struck == "job":
            raise EOFError
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(random.choice(workers)) if self.struck == "worker" else victim, signal.SIGKILL)


def check(kills: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """Run a job to its end through ``kills`` deaths; raises ValueError when its order is not the undisturbed one."""
    random.seed(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cfg = make_shards(folder)
        whole = [",".join(batch) for batch in delivered(opened(cfg), 0, steps * PER_STEP, 1, 0)]
        died, lives, reached = 0, 0, 0
        shapes: set[tuple[int, int]] = set()
        killed: Counter[str] = Counter()
        while True:
            world, workers = random.choice([1, 2, 4]), random.choice([0, 1, 3])
            killer = Killer(random.uniform(0.0, 0.5) if died < kills else None)
            lives += 1
            shapes.add((world, workers))
            ended = life(cfg, folder, steps, world, workers, killer)
            state = folder / "state.json"
            saved: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {"step": 0, "log": []}
            reached = saved["step"]
            if saved["log"] != whole[: reached * PER_STEP]:
                raise ValueError(
                    f"life {lives} ({world} ranks, {workers} workers): the order differs before step {reached}"
                )
            died += not ended
            if not ended:
                killed[killer.struck or "by itself"] += 1
            if ended and died >= kills:
                break
            if ended:
                # Not killed enough yet: train on from the start.
                state.unlink()
        return {
            "kills": died,
            "killed": dict(killed),
            "lives": lives,
            "shapes": len(shapes),
            "steps": reached,
            "batches": len(whole),
        }
