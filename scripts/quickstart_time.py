"""How long the quickstart takes here: measured by a probe before it starts, and again by every part that is done.

    python scripts/quickstart_time.py --calibrate runs/quickstart     # prints COSTS, from a finished run

The probe times three things in the arithmetic that the run will take, in as many processes at once as it will use:
encoding a second of audio, a training step of the quickstart's model, and answering a small batch. ``COSTS`` holds how
much of each a part is.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from quickstart_recipes import PARTS, STAGES, Recipe, experiment

from qa_train.utils.progress import duration

# How many of the probe's units each part of the full recipe takes: from the run without bfloat16 in docs/benchmarks.md
# ("Quickstart"), by --calibrate. Parts that are mostly Python (data, export ...) are measured in answers.
COSTS: dict[str, dict[str, float]] = {
    "data": {"answer": 275.3},
    "untrained model": {"answer": 22.2},
    "evaluate before": {"answer": 359.1},
    "pretrain": {"step": 711.7, "encoder": 23174.2},
    "evaluate pretrain": {"answer": 333.6},
    "sft": {"step": 566.3, "answer": 167.3},
    "evaluate sft": {"answer": 192.9},
    "preference pairs": {"answer": 421.3},
    "dpo": {"step": 223.3, "answer": 129.3},
    "evaluate dpo": {"answer": 821.5},
    "export": {"answer": 57.5},
}
# The processes of that run.
FULL_PROCESSES = 2
# A machine that takes longer is offered the short recipe; one that takes much longer must be told to go on.
OFFER_S, ASK_S = 40 * 60, 60 * 60
_PROBE_AUDIO_S = 16
_PROBE_TOKENS, _STEP_TOKENS = 1250, 2500
# Made-up text: ids of ordinary tokens in the model's small vocabulary, whose first ones are special.
_WORDS = (200, 400)
# The longest that one of the three measurements goes on; a single round may take longer on a slow machine.
_BUDGET_S = 0.4


@dataclass(frozen=True)
class Probe:
    """Seconds of one process, while the others do the same: of a second of audio, a training step, a batch of answers.

    busy: wall time over CPU time; above 1 other programs take their share of the processors.
    """

    encoder: float
    step: float
    answer: float
    busy: float
    arithmetic: str


def measured(pool: Executor, processes: int) -> Probe:
    """The probe, in every process of the pool at once. About two seconds after their imports, on a quick machine."""
    found = [job.result() for job in [pool.submit(probe) for _ in range(processes)]]
    numbers = {name: mean(each[name] for each in found) for name in ("encoder", "step", "answer", "busy")}
    return Probe(**numbers, arithmetic=found[0]["arithmetic"])


def probe() -> dict[str, Any]:
    """One process's measurement, in CPU seconds; see ``Probe``."""
    import numpy as np
    import torch

    from qa_train.infer.encoded import encode as heard
    from qa_train.model import build_model
    from qa_train.model.precision import native_bfloat16
    from qa_train.train.optimizer.muon import muon_with_adamw
    from qa_train.utils.process import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    cfg = experiment("pretrain")
    bf16 = native_bfloat16("cpu") if cfg.trainer.bf16 == "auto" else bool(cfg.trainer.bf16)
    model, processor = build_model(cfg.model, seed=0)
    optimizer = muon_with_adamw(model, cfg.trainer, dtype=torch.bfloat16 if bf16 else torch.float32)
    batch = _batch(model, processor)
    waves = list(np.random.default_rng(0).normal(0, 0.1, (4, _PROBE_AUDIO_S * 4000)).astype(np.float32))
    mel_bins = int(processor.feature_extractor.feature_size)
    question = {"input_ids": torch.randint(*_WORDS, (16, 48)), "attention_mask": torch.ones(16, 48, dtype=torch.long)}

    def encode() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            heard(model, waves, mel_bins)

    def learn() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch, use_cache=False).loss
        loss.backward()

    def answer() -> None:
        model.eval().generate(**question, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)

    started = time.perf_counter(), time.process_time()
    encoder, batch_s, update, answered = map(_seconds, (encode, learn, optimizer.step, answer))
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    return {
        "encoder": encoder / _PROBE_AUDIO_S,
        # The processes share Muon's matrices out; this one did all of them.
        "step": batch_s * _STEP_TOKENS / _PROBE_TOKENS + update / FULL_PROCESSES,
        "answer": answered,
        "busy": max(1.0, wall / max(cpu, 1e-9)),
        "arithmetic": "bfloat16" if bf16 else "float32",
    }


def _batch(model: Any, processor: Any) -> dict[str, Any]:
    """Half a micro-batch of the quickstart in made-up clips: 10 of 3 s, whose 50 tokens of text are learned."""
    import torch

    audio = processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    ids = torch.randint(*_WORDS, (10, _PROBE_TOKENS // 10))
    ids[:, :75] = audio
    labels = torch.where(ids == audio, -100, ids)
    states = torch.randn(750, model.config.audio_config.d_model)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "audio_states": states}


def _seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of one call, the best of as many as fit the budget: the first one also prepares."""
    best, begun = math.inf, time.process_time()
    while best == math.inf or time.process_time() - begun + best < _BUDGET_S:
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def expected(found: Probe, recipe: Recipe, processes: int) -> dict[str, float]:
    """Seconds of each part of a recipe."""
    slower = found.busy * FULL_PROCESSES / processes
    return {
        part: slower * sum(n * getattr(found, unit) * recipe.share(part, unit) for unit, n in COSTS[part].items())
        for part in PARTS
    }


class Clock:
    """The plan of the parts, and how far it is; parts that are done correct what is left."""

    def __init__(self, plan: Mapping[str, float], done: set[str]) -> None:
        """plan: seconds by part; done: those of an earlier start."""
        self.plan, self.done = dict(plan), set(done)
        self._took: dict[str, float] = {}

    def finish(self, part: str, seconds: float) -> str:
        """A part was done in ``seconds``; returns where that leaves us."""
        self.done.add(part)
        self._took[part] = seconds
        left = f", about {duration(self.left())} left" if len(self.done) < len(self.plan) else ""
        return f"{len(self.done)} of {len(self.plan)} parts{left}"

    def left(self, now: str = "", spent: float = 0.0) -> float:
        """Seconds of the parts that are left, by the plan times what its parts of the same kind really took; of the
        part ``now``, which began ``spent`` seconds ago, the rest.
        """
        times = {part: seconds * self._factor(part) for part, seconds in self.plan.items() if part not in self.done}
        return sum(max(0.0, seconds - spent * (part == now)) for part, seconds in times.items())

    def _factor(self, part: str) -> float:
        took = {name: s for name, s in self._took.items() if ("step" in COSTS[name]) == ("step" in COSTS[part])}
        took = took or self._took
        # Short parts say little: the plan keeps the weight of a tenth of it.
        weight = 0.1 * sum(self.plan.values())
        return (sum(took.values()) + weight) / (sum(self.plan[name] for name in took) + weight)

    def table(self) -> str:
        """The parts with their times, one line each."""
        return "\n".join(
            f"  {part:<20}{'done before' if part in self.done else duration(seconds):>12}"
            for part, seconds in self.plan.items()
        )


def advice(left_s: float, short_s: float, recipe: Recipe, folder: str, agreed: bool) -> tuple[str, bool]:
    """(what to say about the time that is left, whether to start). ``agreed``: --yes was given."""
    if left_s <= OFFER_S or recipe.name == "smoke":
        return "", True
    words = f"This machine takes about {duration(left_s)} for what is left"
    again = "scripts/quickstart.sh" + (f" {folder}" if folder else "")
    start = agreed or left_s <= ASK_S
    if recipe.name == "short":
        return (words + ".", True) if start else (f"{words}. To start all the same:\n  {again} --short --yes", False)
    shorter = f"the short recipe about {duration(short_s)}"
    if start:
        return f"{words}; {shorter} (another folder: scripts/quickstart.sh --short).", True
    return f"{words}; {shorter}. Choose:\n  scripts/quickstart.sh --short\n  {again} --yes", False


def calibrate(run: Path) -> dict[str, dict[str, float]]:
    """COSTS by a finished run of the full recipe.

    Raises:
        ValueError: a run of another recipe, or one that has not measured its probe or not come to its end.
    """
    path = run / "plan.json"
    plan = json.loads(path.read_text()) if path.is_file() else {}
    if plan.get("recipe") != "full" or "probe" not in plan:
        raise ValueError(f"{path} is not that of a full run: calibrate with the folder of scripts/quickstart.sh FOLDER")
    found, seconds = plan["probe"], json.loads((run / "seconds.json").read_text())
    if missing := [part for part in PARTS if part not in seconds]:
        raise ValueError(f"{run} is not finished ({missing[0]} is missing): start it again first")
    costs = {}
    for part in PARTS:
        rest, costs[part] = seconds[part], {}
        if part in STAGES:
            rows = map(json.loads, (run / part / "metrics.jsonl").read_text().splitlines())
            steps = sum(row.get("seconds", 0.0) for row in rows)
            costs[part]["step"], rest = round(steps / found["step"], 1), max(0.0, rest - steps)
        unit = "encoder" if part == "pretrain" else "answer"
        costs[part][unit] = round(rest / found[unit], 1)
    return costs


def remember(path: Path, recipe: Recipe, found: Probe) -> None:
    """Write the recipe and the probe of a run's first start."""
    if not path.is_file():
        path.write_text(json.dumps({"recipe": recipe.name, "probe": asdict(found)}, indent=2))


def recipe_of(path: Path, default: str) -> str:
    """The recipe that a folder was begun with; ``default`` for a new one."""
    return str(json.loads(path.read_text())["recipe"]) if path.is_file() else default


def main() -> None:
    """Print COSTS of a run, or the plan of this machine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calibrate", type=Path, required=True, help="the folder of a finished full quickstart")
    costs = calibrate(parser.parse_args().calibrate)
    print("COSTS: dict[str, dict[str, float]] = {")
    for part, units in costs.items():
        print(f"    {json.dumps(part)}: {json.dumps(units)},")
    print("}")


if __name__ == "__main__":
    main()
