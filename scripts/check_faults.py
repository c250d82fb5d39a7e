"""Kill a training run at random moments, start it again each time, and compare its end with an undisturbed run.

    python scripts/check_faults.py --kills 100                  one process
    python scripts/check_faults.py --kills 20 --ranks 2 --deepspeed zero2

Of the kills (SIGKILL, or another --signal) four in ten come while a checkpoint is being written, four in ten at a
random moment of a random later step, and two in ten during the start. After the last one the run goes on to its end.
Weights, optimizer state, learning rate schedule and metrics.jsonl (less its timings) must then equal those of the
undisturbed run bit by bit. The imports are made once and every attempt is forked from there, so the times to recover
are without them. Exit code 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
TIMINGS = {
    "seconds", "data_wait_s", "tokens_per_s", "samples_per_s", "audio_s_per_s", "checkpoint_s", "eval_s",
    "peak_memory_gb", "peak_reserved_gb", "useful_tflops_per_s", "useful_mfu",
}  # fmt: skip
# How long a kill waits for its moment before it strikes all the same.
PATIENCE_S = 120.0
STUCK_S = 300.0


@dataclass
class Tally:
    """What happened so far."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    lost_steps: list[int] = field(default_factory=list)
    recovery_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


@dataclass
class Pace:
    """How an undisturbed run went: until its first step, and from step to step."""

    steps: int
    start_s: float
    step_s: float


class Attempt:
    """One start of the training command: forked ranks with the imports already made."""

    def __init__(self, words: list[str], ranks: int, log: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.started = time.monotonic()
        self.pids = [_fork(words, rank, ranks, port, log) for rank in range(ranks)]
        self.codes: dict[int, int] = {}

    def over(self) -> bool:
        """Whether every rank has ended."""
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def kill(self, first: int, number: int = signal.SIGKILL) -> None:
        """A signal to one rank and SIGKILL to the others, as a launcher would."""
        order = [self.pids[first], *(pid for pid in self.pids if pid != self.pids[first])]
        for pid in order:
            if pid not in self.codes:
                os.kill(pid, number if pid == order[0] else signal.SIGKILL)
                self.codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def finish(self) -> bool:
        """Wait for the end; whether every rank ended with 0."""
        while not self.over():
            if time.monotonic() - self.started > STUCK_S:
                self.kill(0)
            time.sleep(0.01)
        return set(self.codes.values()) == {0}


def _fork(words: list[str], rank: int, ranks: int, port: int, log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        from qa_train.cli import main

        main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def steps_in(run: Path) -> int:
    """Steps that metrics.jsonl holds."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def save_begun(run: Path) -> bool:
    """Whether a checkpoint is being written: the newest folder has no manifest yet."""
    folders = [p for p in (run / "checkpoints").glob("checkpoint-*") if p.name[11:].isdigit()]
    newest = max(folders, key=lambda p: int(p.name[11:]), default=None)
    return newest is not None and not (newest / "manifest.json").exists()


def saved_step(run: Path) -> int:
    """The newest committed checkpoint's step."""
    return max((int(p.parent.name[11:]) for p in run.glob("checkpoints/*/manifest.json")), default=0)


class Progress:
    """What the run folder shows of an attempt: whether it takes steps again, and whether it is saving."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._file = self._inode()
        self.base = saved_step(run)
        self._began = save_begun(run)

    def _inode(self) -> int:
        path = self._run / "metrics.jsonl"
        return path.stat().st_ino if path.is_file() else 0

    def step(self) -> int:
        """The newest step of this attempt; 0 before its first."""
        # A resume replaces the file by one that ends at the checkpoint: what it held before says nothing.
        rewound = self._inode() != self._file
        return steps if rewound and (steps := steps_in(self._run)) > self.base else 0

    def saving(self) -> bool:
        """Whether a save is under way that an earlier kill did not leave behind."""
        return save_begun(self._run) and (not self._began or self.step() > 0)


def strike(attempt: Attempt, run: Path, pace: Pace, dice: random.Random, tally: Tally, number: int) -> bool:
    """Kill the attempt at a random moment, or see it end before; whether it was killed."""
    aim = dice.choices(("save", "step", "start"), (4, 4, 2))[0]
    seen = Progress(run)
    target = dice.randint(min(seen.base + 1, pace.steps - 1), pace.steps - 1)
    start_s, delay_s = dice.uniform(0, pace.start_s), dice.uniform(0, 0.08 if aim == "save" else pace.step_s)
    recovered = None
    while not attempt.over():
        passed = time.monotonic() - attempt.started
        step, saving = seen.step(), seen.saving()
        if recovered is None and step:
            recovered = passed
        due = {"save": saving, "step": step >= target, "start": passed > start_s}[aim]
        if due or passed > PATIENCE_S:
            time.sleep(delay_s if aim != "start" else 0)
            attempt.kill(dice.randrange(len(attempt.pids)), number)
            step, saving = seen.step(), seen.saving()
            tally.kills["in a save" if saving else "in steps" if step else "before the first step"] += 1
            if recovered is not None:
                tally.lost_steps.append(max(step - saved_step(run), 0))
                if seen.base:
                    tally.recovery_s.append(recovered)
            return True
        time.sleep(0.001)
    return False


def differences(run: Path, reference: Path, step: int) -> list[str]:
    """What differs between two finished runs, in words."""
    import torch

    found = []
    pair = [folder / "checkpoints" / f"checkpoint-{step}" for folder in (run, reference)]
    if (pair[0] / "model.safetensors").read_bytes() != (pair[1] / "model.safetensors").read_bytes():
        found.append("weights")
    for name in ("optimizer.pt", "scheduler.pt"):
        if (pair[1] / name).is_file():
            states = [torch.load(folder / name, weights_only=True) for folder in pair]
            if not same(*states):
                found.append(name)
    for path in sorted(pair[1].glob("global_step*/*optim_states.pt")):
        if tensors(pair[0] / path.relative_to(pair[1])) != tensors(path):
            found.append(path.name)
    records = [[comparable(line) for line in (folder / "metrics.jsonl").open()] for folder in (run, reference)]
    if records[0] != records[1]:
        pairs = zip(*([json.loads(line) for line in each] for each in records), strict=False)
        names = {name for a, b in pairs for name in {*a, *b} if a.get(name) != b.get(name)}
        found.append(f"metrics.jsonl ({len(records[0])} and {len(records[1])} records; {', '.join(sorted(names))})")
    return found


def same(a: Any, b: Any) -> bool:
    """Equality of nested states, tensors bit by bit."""
    import torch

    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(*each) for each in zip(a, b, strict=True))
    return bool(a == b)


def tensors(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and checksum of every tensor's bytes in a torch archive, without unpickling it."""
    with zipfile.ZipFile(path) as archive:
        return sorted((i.filename, i.file_size, i.CRC) for i in archive.infolist() if "/data/" in i.filename)


def comparable(line: str) -> str:
    """A record of metrics.jsonl less what a clock put into it."""
    return json.dumps({k: v for k, v in json.loads(line).items() if k not in TIMINGS}, sort_keys=True)


def torture(options: argparse.Namespace, words: list[str], folder: Path) -> Tally:
    """An undisturbed run, then killed ones until there were enough kills; what happened."""
    dice, tally = random.Random(options.seed), Tally()
    number = signal.Signals[f"SIG{options.signal}"]
    reference, log = folder / "undisturbed", folder / "log.txt"
    attempt = Attempt([*words, f"run.dir={reference}"], options.ranks, log)
    while not attempt.over() and not steps_in(reference):
        time.sleep(0.01)
    start_s = time.monotonic() - attempt.started
    if not attempt.finish():
        raise SystemExit(f"the undisturbed run failed:\n{log.read_text()[-4000:]}")
    whole_s = time.monotonic() - attempt.started
    pace = Pace(options.steps, start_s, (whole_s - start_s) / options.steps)
    deadline = time.monotonic() + options.minutes * 60
    print(f"undisturbed: {options.steps} steps in {whole_s:.1f} s, the first after {start_s:.1f} s", flush=True)
    while sum(tally.kills.values()) < options.kills and time.monotonic() < deadline:
        run = folder / f"killed-{tally.runs:03d}"
        finished = False
        while not finished:
            attempt = Attempt([*words, f"run.dir={run}"], options.ranks, log)
            enough = sum(tally.kills.values()) >= options.kills or time.monotonic() > deadline
            if enough or not strike(attempt, run, pace, dice, tally, number):
                finished = True
                if not attempt.finish():
                    tally.faults.append(f"{run.name} could not resume (exit codes {sorted(attempt.codes.values())})")
                    return tally
        tally.runs += 1
        wrong = differences(run, reference, options.steps)
        if wrong:
            tally.faults.append(f"{run.name} differs from the undisturbed run in {', '.join(wrong)}")
        print(f"{run.name}: {sum(tally.kills.values())} kills so far, {tally.faults or 'all equal'}", flush=True)
    return tally


def report(tally: Tally, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a torture."""
    return {
        "ranks": options.ranks,
        "deepspeed": options.deepspeed,
        "steps": options.steps,
        "save_steps": options.save_steps,
        "signal": options.signal,
        "seed": options.seed,
        "kills": sum(tally.kills.values()),
        "kills_by_phase": dict(tally.kills),
        "runs": tally.runs,
        "faults": tally.faults,
        "most_lost_steps": max(tally.lost_steps, default=0),
        "median_recovery_s": round(statistics.median(tally.recovery_s), 2) if tally.recovery_s else None,
        "longest_recovery_s": round(max(tally.recovery_s), 2) if tally.recovery_s else None,
    }


def main() -> int:
    """Parse, torture, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--deepspeed", default="none")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--save-steps", type=int, default=2)
    parser.add_argument("--signal", default="KILL", choices=("KILL", "SEGV", "ABRT"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="no new kills after so long")
    parser.add_argument("--stage", default="pretrain", choices=("pretrain", "sft", "dpo"))
    parser.add_argument("words", nargs="*", help="further overrides, key=value")
    options = parser.parse_args()
    os.environ |= QUIET
    # The imports, once.
    import qa_train.train.dpo
    import qa_train.train.pretrain
    import qa_train.train.sft  # noqa: F401

    if options.deepspeed != "none":
        import deepspeed  # noqa: F401

    words = [
        options.stage,
        "experiment=smoke",
        "data.tokens_per_batch=600",
        "data.max_duration_s=10",
        f"trainer.max_steps={options.steps}",
    ]
    words += [f"trainer.save_steps={options.save_steps}", f"deepspeed={options.deepspeed}", *options.words]
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        tally = torture(options, words, Path(folder))
        if tally.faults:
            print((Path(folder) / "log.txt").read_text()[-4000:], file=sys.stderr)
    print("results: " + json.dumps(report(tally, options)))
    return 1 if tally.faults or not tally.kills else 0


if __name__ == "__main__":
    sys.exit(main())
