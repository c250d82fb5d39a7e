#!/usr/bin/env python
"""Everything that has a path of its own on a GPU, against its plain twin: run it once on a new kind of machine.

    python scripts/check_gpu.py [--checks attention,parity] [--out gpu.json]     # minutes on one GPU
    python scripts/check_gpu.py --device cpu                                     # the script itself, without a GPU

Each check is a process of its own with a time limit, so that one that crashes takes no other with it. The results are
in the file after each; the exit code is 1 if one failed. A check without its library or device is skipped; the
output names it. Speed against the stock path: ``scripts/benchmark_training.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

# On a bare machine nothing is installed: the checkout itself is the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_timings import ALLOWED, Found, SkippedError, decode, steps

from qa_train.model.layers import attention
from qa_train.model.layers.kernels import use_liger_kernels

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 300
# Seven trainings, one after the other; twelve ways to make a step.
LONGER_S = {"sharded": 540, "steps": 540}


def timed(work: Callable[[], Any], device: str, rounds: int = 10) -> float:
    """Median seconds of ``work``, after two rounds that do not count."""
    taken = []
    for _ in range(rounds + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return sorted(taken[2:])[rounds // 2]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest one, as a share of the largest expected value."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def machine(device: str) -> Found:
    """Versions, the card, and its rate at large matrix products."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: a @ b, device)
    found: Found = {"torch": torch.__version__, "bf16_tflops": round(2 * size**3 / seconds / 1e12, 2)}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "capability": f"{card.major}.{card.minor}",
            "gib": round(card.total_memory / 2**30),
        }
    return found


def attention_twins(device: str) -> Found:
    """Attention inside documents against one call for each in float64: values, gradients, and seconds of both paths."""
    heads, groups, width = (28, 4, 128) if device == "cuda" else (4, 2, 64)
    longest = 750 if device == "cuda" else 60
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, longest, (24,), generator=generator)
    documents = attention.Documents.of(lengths, torch.device(device))
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shapes = [(1, n, int(lengths.sum()), width) for n in (heads, groups, groups, heads)]
    query, key, value, up = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    path = attention._varlen(query, dtype)
    found: Found = {"path": "varlen" if path else "one by one", "tokens": int(lengths.sum()), "documents": len(lengths)}

    def run(kind: torch.dtype, causal: bool, fused: bool) -> list[torch.Tensor]:
        parts = [x.detach().to(kind).requires_grad_() for x in (query, key, value)]
        module = torch.nn.Module()
        module.is_causal = causal  # type: ignore[assignment]
        kept = attention._varlen
        try:
            if not fused:
                attention._varlen = lambda *_: None  # type: ignore[assignment]
            out, _ = attention.unpadded_attention(module, *parts, None, documents=documents)
        finally:
            attention._varlen = kept
        out.backward(up.transpose(1, 2).to(kind))
        return [out, *(part.grad for part in parts if part.grad is not None)]

    kept_dtype = attention._compute_dtype
    for causal in (True, False):
        ours = run(dtype, causal, True)
        attention._compute_dtype = lambda _: torch.float64
        exact = run(torch.float64, causal, False)
        attention._compute_dtype = kept_dtype
        name = "causal" if causal else "whole"
        found[name] = max(difference(a, b) for a, b in zip(ours, exact, strict=True))
        found[f"{name}_ms"] = round(1000 * timed(lambda c=causal: run(dtype, c, True), device), 2)
        found[f"{name}_one_by_one_ms"] = round(1000 * timed(lambda c=causal: run(dtype, c, False), device), 2)
    found["ok"] = max(found["causal"], found["whole"]) <= ALLOWED[dtype]
    if device == "cuda" and path is None and torch.cuda.get_device_capability() >= (8, 0):
        found |= {"ok": False, "why": "this card has varlen attention, and it was not taken"}
    return found


def parity(device: str) -> Found:
    """Logits, loss and gradients against the stock model in float32 (scripts/check_parity.py)."""
    import check_parity

    result = check_parity.check(12 if device == "cpu" else 40, seed=0, device=device)
    found = {name: getattr(result, name) for name in ("logits", "loss", "gradient", "neighbour")}
    # Kernels of a GPU may add in another order when a neighbour changes: rounding, where the CPU has none.
    worst = max(result.logits, result.loss, result.gradient)
    return found | {"ok": worst <= check_parity.LIMIT and result.neighbour <= (0 if device == "cpu" else 1e-5)}


def half_precision(device: str) -> Found:
    """Loss and gradients under bfloat16 autocast: no further from float32 than the stock model's are."""
    import check_parity
    import numpy as np

    ours, stock, processor = check_parity.make_models("qwen2", True)
    padded, joined, labels = check_parity.make_batch(np.random.default_rng(3), processor, dict.fromkeys(
        check_parity.COUNTED, 0))  # fmt: skip
    joined = {name: values if name == "feature_lengths" else values.to(device) for name, values in joined.items()}
    padded = {name: values.to(device) for name, values in padded.items()}
    labels = labels.to(device)

    def run(model: Any, inputs: dict[str, torch.Tensor], half: bool) -> list[torch.Tensor]:
        model.to(device).zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16) if half else nullcontext():
            loss = model(**inputs, labels=labels, **({"use_cache": False} if model is stock else {})).loss
        loss.backward()
        return [loss.detach(), *(p.grad for n, p in model.named_parameters() if "embed_positions" not in n)]

    away = {}
    for name, model, inputs in (("ours", ours, joined), ("stock", stock, padded)):
        exact, rounded = ([x.clone() for x in run(model, inputs, half)] for half in (False, True))
        away[name] = [difference(a, b) for a, b in zip(rounded, exact, strict=True)]
    found = {f"{name}_{part}": value for name, values in away.items() for part, value in
             (("loss", values[0]), ("gradients_mean", sum(values[1:]) / len(values[1:])))}  # fmt: skip
    found["ok"] = found["ours_gradients_mean"] <= 2 * found["stock_gradients_mean"] and found["ours_loss"] < 2e-2
    return found


def liger(device: str) -> Found:
    """Liger's kernels in the LLM against the plain operations: loss and gradients in float32."""
    if find_spec("liger_kernel") is None:
        raise SkippedError("liger-kernel is not installed: pip install 'qa-train[kernels]'")
    if device != "cuda":
        raise SkippedError("its kernels need CUDA")
    import check_parity
    import numpy as np

    found: Found = {}
    for family in ("qwen2", "qwen3", "llama"):
        results = []
        for fused in (False, True):
            ours, _, processor = check_parity.make_models(family, True)
            counts = dict.fromkeys(check_parity.COUNTED, 0)
            _, joined, labels = check_parity.make_batch(np.random.default_rng(3), processor, counts)
            ours.to(device)
            if fused:
                use_liger_kernels(ours)
            inputs = {n: v if n == "feature_lengths" else v.to(device) for n, v in joined.items()}
            loss = ours(**inputs, labels=labels.to(device)).loss
            loss.backward()
            results.append([loss, *(p.grad for p in ours.parameters() if p.grad is not None)])
        found[family] = max(difference(a, b) for a, b in zip(results[1], results[0], strict=True))
    return found | {"ok": max(found.values()) <= ALLOWED[torch.float32]}


def command(*words: str, cpu: bool = False) -> subprocess.CompletedProcess[str]:
    """A qa-train command in a process of its own; ``cpu`` hides the GPU from it."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    # Packages that were brought along (scripts/gpu_kit.py) are on it.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "qa_train", *words],
        env=os.environ | {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path} | hidden,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"qa-train {' '.join(words)} ended with {done.returncode}: {done.stderr[-1500:]}")
    return done


def losses(folder: Path) -> list[float]:
    """Of every step of a run."""
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stage_twins(device: str, stage: str) -> Found:
    """A stage here against the CPU: the losses of float32, stopped and resumed, and of bfloat16."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        # A rate that does not hang on the number of steps, which the first half of a run has less of.
        words = [stage, "experiment=smoke", "trainer.lr_scheduler_type=constant"]
        command(*words, f"run.dir={root / 'cpu'}", cpu=True)
        command(*words, f"run.dir={root / 'float32'}", "trainer.max_steps=4")
        command(*words, f"run.dir={root / 'float32'}")
        command(*words, f"run.dir={root / 'bfloat16'}", "trainer.bf16=true")
        expected = losses(root / "cpu")
        for kind in ("float32", "bfloat16"):
            found[kind] = max(abs(a / b - 1) for a, b in zip(losses(root / kind), expected, strict=True))
    # Later steps carry the rounding of those before them.
    return found | {"ok": found["float32"] < 1e-3 and found["bfloat16"] < 5e-2}


def answers(device: str) -> Found:
    """Greedy answers of a trained model to twenty clips, here and on the CPU."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        command("pretrain", "experiment=smoke", f"run.dir={root / 'run'}")
        write_questions(root / "questions.jsonl")
        said = []
        for where in (device, "cpu"):
            out = root / f"answers-{len(said)}"
            words = [f"checkpoint={root / 'run'}", f"data={root / 'questions.jsonl'}", f"out={out}", "probe=0"]
            command("eval", *words, f"device={where}", "max_new_tokens=24", cpu=where == "cpu")
            lines = (out / "predictions.jsonl").read_text().splitlines()
            said.append([json.loads(line)["prediction"] for line in lines])
    equal = sum(a == b for a, b in zip(*said, strict=True))
    # A tie between two tokens may fall either way.
    return {"equal": equal, "of": len(said[0]), "ok": equal >= len(said[0]) - 1}


def write_questions(path: Path) -> None:
    """Twenty clips of noise, and a question about each."""
    import numpy as np
    import soundfile

    lines = []
    for i in range(20):
        rng = np.random.default_rng(i)
        soundfile.write(path.with_name(f"{i}.wav"), rng.normal(0, 0.1, 8000 + 4000 * i), 16_000)
        lines.append(json.dumps({"audio": f"{i}.wav", "prompt": "What is it?", "gt": "noise", "metric": "accuracy"}))
    path.write_text("\n".join(lines) + "\n")


def sharded(device: str) -> Found:
    """ZeRO-2 and ZeRO-3 on this device, stopped and resumed, against plain training; and compiled layers."""
    if find_spec("deepspeed") is None:
        raise SkippedError("deepspeed is not installed: pip install 'qa-train[deepspeed]'")
    found: Found = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        plain = ["pretrain", "experiment=smoke", "trainer.lr_scheduler_type=constant", "trainer.max_steps=6"]
        command(*plain, f"run.dir={root / 'plain'}")
        expected = losses(root / "plain")
        for kind, more in (("zero2", ["deepspeed=zero2"]), ("zero3", ["deepspeed=zero3"]),
                           ("compiled", ["trainer.compile_layers=true"])):  # fmt: skip
            folder = root / kind
            command(*plain[:-1], *more, f"run.dir={folder}", "trainer.max_steps=3")
            command(*plain, *more, f"run.dir={folder}")
            found[kind] = max(abs(a / b - 1) for a, b in zip(losses(folder), expected, strict=True))
    return found | {"ok": max(found.values()) < 1e-3}


CHECKS: dict[str, Callable[[str], Found]] = {
    "machine": machine,
    "attention": attention_twins,
    "parity": parity,
    "half": half_precision,
    "liger": liger,
    "pretrain": partial(stage_twins, stage="pretrain"),
    "sft": partial(stage_twins, stage="sft"),
    "dpo": partial(stage_twins, stage="dpo"),
    "decode": decode,
    "steps": steps,
    "answers": answers,
    "sharded": sharded,
}


def one(name: str, device: str) -> Found:
    """A check in this process: what it found, with ``ok`` True, False, or None where it was skipped."""
    # Float32 is compared to float32's rounding: torch lets cuDNN's convolutions round to TF32 by default.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        found = CHECKS[name](device)
    except SkippedError as skipped:
        return {"ok": None, "why": str(skipped)}
    numbers = [value for value in found.values() if isinstance(value, float)]
    if any(math.isnan(value) for value in numbers):
        return found | {"ok": False, "why": "not a number"}
    return {"ok": True} | found


def finding(line: str) -> Found | None:
    """A line of a check's output that tells what it found; None for any other."""
    try:
        found = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and "ok" in found else None


def apart(name: str, device: str) -> Found:
    """A check in a process of its own."""
    words = [sys.executable, __file__, "--device", device, "--one", name]
    limit_s = LONGER_S.get(name, LIMIT_S)
    started = time.perf_counter()
    # A session of its own, so that trainings which it started end with it.
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    why = ""
    try:
        out, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        why = f"not done after {limit_s} s"
    # What it had found before it ended, too.
    found = [each for each in map(finding, out.splitlines()) if each is not None]
    if process.returncode or not found:
        why = why or f"ended with {process.returncode}: {errors[-1500:]}"
        return (found[-1] if found else {}) | {"ok": False, "why": why}
    return found[-1] | {"seconds": round(time.perf_counter() - started, 1)}


def main() -> int:
    """Run the checks; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--checks", default=",".join(CHECKS), help=f"some of {', '.join(CHECKS)}")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--one", choices=tuple(CHECKS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("check_gpu: torch sees no CUDA device; --device cpu tries the script itself")
    if options.one:
        print(json.dumps(one(options.one, options.device)))
        return 0
    if unknown := set(options.checks.split(",")) - set(CHECKS):
        sys.exit(f"check_gpu: no check {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    results: dict[str, Found] = {}
    for name in options.checks.split(","):
        results[name] = found = apart(name, options.device)
        word = {True: "passed", False: "FAILED", None: "skipped"}[found["ok"]]
        shown = (f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items() if k != "ok")
        print(f"{name:<10} {word}  {', '.join(shown)}", flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps({"device": options.device, "checks": results}, indent=2) + "\n")
    return int(any(found["ok"] is False for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
