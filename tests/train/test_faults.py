"""A run that is killed at random moments, and started again each time, ends as one that was not.

Of the kills four in ten come while a checkpoint is being written, four in ten at a random moment of a random later
step, and two in ten during the start. Weights, optimizer state, learning rate schedule and metrics.jsonl (less its
timings) must equal those of the undisturbed run bit by bit. More of it, with figures (times to recover are without
imports), is asked for by FAULTS_KILLS, FAULTS_SEED, FAULTS_STAGE and FAULTS_SIGNAL:

    FAULTS_KILLS=60 FAULTS_SEED=11 pytest -s tests/train/test_faults.py -k "one process"
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import metrics, tensors
from tests.train.forks import Start, forks

STEPS, SAVE_STEPS = 8, 2
KILLS, SEED = int(os.environ.get("FAULTS_KILLS", "3")), int(os.environ.get("FAULTS_SEED", "1"))
STAGE, SIGNAL = os.environ.get("FAULTS_STAGE", "pretrain"), os.environ.get("FAULTS_SIGNAL", "KILL")
TIMINGS = {
    "seconds", "data_wait_s", "tokens_per_s", "samples_per_s", "audio_s_per_s", "checkpoint_s", "eval_s",
    "peak_memory_gb", "peak_reserved_gb", "useful_tflops_per_s", "useful_mfu",
}  # fmt: skip
# How long a kill waits for its moment before it strikes all the same.
PATIENCE_S = 120.0


def save_begun(run: Path) -> bool:
    """Whether a checkpoint is being written: the newest folder has no manifest yet."""
    folders = [p for p in (run / "checkpoints").glob("checkpoint-*") if p.name[11:].isdigit()]
    newest = max(folders, key=lambda p: int(p.name[11:]), default=None)
    return newest is not None and not (newest / "manifest.json").exists()


def saved_step(run: Path) -> int:
    """The newest committed checkpoint's step."""
    return max((int(p.parent.name[11:]) for p in run.glob("checkpoints/*/manifest.json")), default=0)


class Progress:
    """What the run folder shows of a start: whether it takes steps again, and whether it is saving."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._file = self._inode()
        self.base = saved_step(start.folder)
        self._began = save_begun(start.folder)

    def _inode(self) -> int:
        path = self._start.folder / "metrics.jsonl"
        return path.stat().st_ino if path.is_file() else 0

    def step(self) -> int:
        """The newest step of this start; 0 before its first."""
        # A resume replaces the file by one that ends at the checkpoint: what it held before tells nothing.
        rewound = self._inode() != self._file
        return steps if rewound and (steps := self._start.steps) > self.base else 0

    def saving(self) -> bool:
        """Whether a save is under way that an earlier kill did not leave behind."""
        return save_begun(self._start.folder) and (not self._began or self.step() > 0)


class Torture:
    """Kills starts of a run at random moments, and counts."""

    def __init__(self, start_s: float, step_s: float) -> None:
        self._dice = random.Random(SEED)
        self._start_s, self._step_s = start_s, step_s
        self.kills: Counter[str] = Counter()
        self.lost_steps: list[int] = []
        self.recovery_s: list[float] = []

    def strike(self, start: Start) -> bool:
        """Kill a start at a random moment, or see it end before; whether it was killed."""
        dice, began = self._dice, time.monotonic()
        aim = dice.choices(("save", "step", "start"), (4, 4, 2))[0]
        seen = Progress(start)
        target = dice.randint(min(seen.base + 1, STEPS - 1), STEPS - 1)
        start_s, delay_s = dice.uniform(0, self._start_s), dice.uniform(0, 0.08 if aim == "save" else self._step_s)
        recovered = None
        while not start.over():
            passed = time.monotonic() - began
            step, saving = seen.step(), seen.saving()
            if recovered is None and step:
                recovered = passed
            due = {"save": saving, "step": step >= target, "start": passed > start_s}[aim]
            if due or passed > PATIENCE_S:
                time.sleep(delay_s if aim != "start" else 0)
                # A signal to one rank and SIGKILL to the others, as a launcher would.
                start.kill(dice.randrange(len(start.pids)), signal.Signals[f"SIG{SIGNAL}"])
                start.end()
                start.codes()
                step, saving = seen.step(), seen.saving()
                self.kills["in a save" if saving else "in steps" if step else "before the first step"] += 1
                if recovered is not None:
                    self.lost_steps.append(max(step - saved_step(start.folder), 0))
                    self.recovery_s += [recovered] if seen.base else []
                return True
            time.sleep(0.001)
        return False


def differences(run: Path, reference: Path) -> list[str]:
    """What differs between two finished runs, in words."""
    found = []
    ours, theirs = (folder / "checkpoints" / f"checkpoint-{STEPS}" for folder in (run, reference))
    if (ours / "model.safetensors").read_bytes() != (theirs / "model.safetensors").read_bytes():
        found.append("weights")
    for name in ("optimizer.pt", "scheduler.pt"):
        if (theirs / name).is_file():
            states = [torch.load(folder / name, weights_only=True) for folder in (ours, theirs)]
            found += [] if same(*states) else [name]
    for path in sorted(theirs.glob("global_step*/*optim_states.pt")):
        found += [] if tensors(ours / path.relative_to(theirs)) == tensors(path) else [path.name]
    records = [
        [{k: v for k, v in record.items() if k not in TIMINGS} for record in metrics(each)] for each in (run, reference)
    ]
    if records[0] != records[1]:
        pairs = zip(*records, strict=False)
        names = {name for a, b in pairs for name in {*a, *b} if a.get(name) != b.get(name)}
        found.append(f"metrics.jsonl ({len(records[0])} and {len(records[1])} records; {', '.join(sorted(names))})")
    return found


def same(a: Any, b: Any) -> bool:
    """Equality of nested states, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(*each) for each in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "deepspeed"), [(1, "none"), (2, "zero2"), (2, "zero3")], ids=["one process", "ZeRO-2", "ZeRO-3"]
)
def test_kills_change_nothing(ranks: int, deepspeed: str, tmp_path: Path) -> None:
    def started(run: Path) -> Start:
        words = ["experiment=smoke", "data.tokens_per_batch=600", "data.max_duration_s=10", f"deepspeed={deepspeed}"]
        words += [f"trainer.max_steps={STEPS}", f"trainer.save_steps={SAVE_STEPS}", f"run.dir={run}"]
        return forks().start([STAGE, *words], ranks=ranks)

    began = time.monotonic()
    whole = started(tmp_path / "undisturbed")
    whole.until(lambda: whole.steps or whole.over(), "the first step")
    start_s = time.monotonic() - began
    assert set(whole.codes()) == {0}, whole.said()
    torture = Torture(start_s, (time.monotonic() - began - start_s) / STEPS)
    number = 0
    while torture.kills.total() < KILLS:
        run = tmp_path / f"killed-{number}"
        start = started(run)
        while torture.strike(start):
            start = started(run)
            if torture.kills.total() >= KILLS:
                break
        assert set(start.codes()) == {0}, start.said()
        assert differences(run, whole.folder) == []
        number += 1
    assert max(torture.lost_steps, default=0) <= SAVE_STEPS
    recovery = torture.recovery_s or [0.0]
    print(json.dumps({
        "kills": torture.kills, "runs": number, "most_lost_steps": max(torture.lost_steps, default=0),
        "median_recovery_s": round(statistics.median(recovery), 2), "longest_recovery_s": round(max(recovery), 2),
    }))  # fmt: skip
