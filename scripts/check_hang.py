"""Stop a rank of a torchrun job (SIGSTOP), and time how it is found, told and restarted.

    python scripts/check_hang.py --timeout 60

The other ranks wait for the stopped one in a collective. Their clocks (trainer.hang_timeout_s) must write their stacks
and end them, and torchrun must start all ranks again from the newest checkpoint. The restart's time holds the imports
of the new processes, and torchrun's 30 s of patience with a process that does not answer SIGTERM. Exit code 1 when the
run does not come to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
STEPS, SAVE_STEPS = 4000, 5
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


def children(pid: int) -> list[int]:
    """The ranks that a launcher started, in their order."""
    return sorted(int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def wait_for(condition: Callable[[], object], limit_s: float, job: subprocess.Popen[bytes]) -> float:
    """Seconds until ``condition()`` holds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit_s or job.poll() is not None:
            raise SystemExit(f"it did not happen within {limit_s:.0f} s (the job's exit code is {job.poll()})")
        time.sleep(0.05)
    return time.monotonic() - began


def main() -> int:
    """Parse, start, stop a rank, wait, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=float, default=60.0, help="trainer.hang_timeout_s")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--deepspeed", default="none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hang-") as name:
        run = Path(name) / "run"
        words = ["pretrain", "experiment=smoke", f"run.dir={run}", f"deepspeed={options.deepspeed}"]
        words += [f"trainer.max_steps={STEPS}", f"trainer.save_steps={SAVE_STEPS}", "data.tokens_per_batch=600"]
        words += ["data.max_duration_s=10", f"trainer.hang_timeout_s={options.timeout}"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "1"]
        launcher += ["--nproc-per-node", str(options.ranks), "-m", "qa_train"]
        env = os.environ | QUIET | {"PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (Path(name) / "log.txt").open("wb") as log:
            job = subprocess.Popen([*launcher, *words], env=env, stdout=log, stderr=log)
        metrics, stacks = run / "metrics.jsonl", run / "logs" / "stacks-rank-0.txt"
        wait_for(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") > SAVE_STEPS, 600, job)
        before, began = metrics.stat().st_ino, time.monotonic()
        os.kill(children(job.pid)[-1], signal.SIGSTOP)
        found_s = wait_for(lambda: stacks.is_file() and stacks.stat().st_size, options.timeout + 60, job)
        told = stacks.read_text()
        # A resume replaces the file, then adds to it.
        wait_for(lambda: metrics.stat().st_ino != before, 600, job)
        kept = metrics.read_bytes().count(b"\n")
        wait_for(lambda: metrics.read_bytes().count(b"\n") > kept, 600, job)
        resumed_s = time.monotonic() - began
        (run / "STOP").touch()
        code = job.wait(timeout=600)
    figures = {"ranks": options.ranks, "deepspeed": options.deepspeed, "hang_timeout_s": options.timeout}
    figures |= {"found_s": round(found_s, 1), "first_new_step_s": round(resumed_s, 1), "exit_code": code}
    print("results: " + json.dumps(figures | {"in_a_collective": "distributed" in told}))
    return int(code != 0 or "distributed" not in told)


if __name__ == "__main__":
    sys.exit(main())
