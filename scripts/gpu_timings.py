"""What a GPU takes for answers and for steps: the checks of `check_gpu` that measure time, at the benchmark's sizes."""

from __future__ import annotations

import gc
import json
import time
from importlib.util import find_spec
from typing import Any

import torch

from qa_train.model.layers.kernels import use_liger_kernels

Found = dict[str, Any]
# Largest difference as a share of the largest value: rounding of the type, over some hundred terms.
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
# After so long `steps` begins no other: the first step of compiled layers may take two minutes.
STEPS_S = 400
KERNELS = ("plain", "liger", "compiled")
# The combinations that a run may have.
MODES_OF = {"plain": ("none", "selective", "full"), "liger": ("none", "full"), "compiled": ("none",)}


class SkippedError(Exception):
    """Why a check cannot be made here."""


def random_model(size: str, device: str) -> tuple[Any, Any]:
    """A model of a size of the benchmark with random bfloat16 weights, and its processor."""
    from benchmark.twins import make_config

    from qa_train.model import UnpaddedQwen2AudioForConditionalGeneration, load_tokenizer
    from qa_train.model.build import make_processor

    tokenizer = load_tokenizer("builtin:nano")
    config = make_config(size, tokenizer)
    with torch.device(device):
        model: Any = UnpaddedQwen2AudioForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    return model, make_processor(tokenizer, config)


def decode(device: str) -> Found:
    """Milliseconds a token of bfloat16 answers: with key lengths that are new, with the same again, and by cuDNN.

    A kernel that is planned for each length shows in the first figure: the second has all plans.
    """
    sizes, tokens = (("0.5b", "8b"), 128) if device == "cuda" else (("tiny",), 8)
    found: Found = {"rows": [8, 8, 16], "ok": True}
    for size in sizes:
        model = random_model(size, device)[0].eval()
        # What any shape loads is not part of it.
        decode_seconds(model, 4, tokens)
        new, again = decode_seconds(model, 8, tokens), decode_seconds(model, 8, tokens)
        try:
            torch.backends.cuda.enable_cudnn_sdp(True)
            cudnn = decode_seconds(model, 16, tokens)
        finally:
            torch.backends.cuda.enable_cudnn_sdp(False)
        for name, seconds in (("new_ms", new), ("again_ms", again), ("cudnn_new_ms", cudnn)):
            found[f"{size}_{name}"] = round(1000 * seconds / tokens, 3)
        found["ok"] &= new <= 1.5 * again
        del model
    return found


def decode_seconds(model: Any, rows: int, tokens: int) -> float:
    """Of so many new tokens for so many rows, half of which are padded on the left."""
    ids = torch.ones(rows, 32, dtype=torch.long, device=model.device)
    mask = torch.ones_like(ids)
    mask[rows // 2 :, :8] = 0
    wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    with torch.no_grad():
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0)
    wait()
    return time.perf_counter() - started


def steps(device: str) -> Found:
    """A forward and backward pass by what is recomputed, plain, with Liger's kernels and with compiled layers.

    Each with milliseconds until the host has asked for everything and until all is done, peak memory, and the norm of
    its gradients, which must be that of the plain layers. What fails, or does not fit, does not end the rest.
    """
    sizes, clips = (("0.5b", "8b"), 16) if device == "cuda" else (("tiny",), 2)
    deadline, found = time.monotonic() + STEPS_S, Found()
    for size in sizes:
        norm = None
        for kernels in KERNELS:
            case = f"{size} {kernels}"
            try:
                model, inputs = stepping(size, kernels, device, clips)
            except Exception as error:
                found[case] = said(error)
                continue
            for mode in MODES_OF[kernels]:
                if time.monotonic() > deadline:
                    found.setdefault("left_out", []).append(f"{case} {mode}")
                    continue
                try:
                    model.set_recompute(encoder=mode, llm=mode)
                    made = step_times(model, inputs, device)
                    norm = norm or made["norm"]
                    made["ok"] = abs(made["norm"] / norm - 1) <= ALLOWED[torch.bfloat16]
                except Exception as error:
                    made = said(error)
                found[f"{case} {mode}"] = made
                # If what follows ends the process, this is not lost.
                print(json.dumps(found | {"ok": False}), flush=True)
                model.zero_grad(set_to_none=True)
            del model, inputs
            gc.collect()
            torch.cuda.empty_cache()
    verdicts = [made["ok"] for made in found.values() if isinstance(made, dict)]
    return found | {"ok": False if False in verdicts else True if True in verdicts else None}


def said(error: Exception) -> Found:
    """What went wrong: no fault where there is no room, or not the library."""
    absent = isinstance(error, torch.OutOfMemoryError | SkippedError)
    lines = str(error).strip().splitlines() or [""]
    return {"ok": None if absent else False, "why": f"{type(error).__name__}: {lines[0][:200]}"}


def stepping(size: str, kernels: str, device: str, clips: int) -> tuple[Any, dict[str, Any]]:
    """A model that trains in full, and a micro-batch of so many clips, as the trainer gives it."""
    from benchmark.clips import MIXED, make_examples, our_batch

    from qa_train.model.layers.on_cpu import OnCpu
    from qa_train.model.layers.recompute import compile_layers

    if kernels == "liger" and (device != "cuda" or find_spec("liger_kernel") is None):
        raise SkippedError("Liger's kernels need CUDA and liger-kernel")
    torch.manual_seed(0)
    model, processor = random_model(size, device)
    if kernels == "liger":
        use_liger_kernels(model)
    if kernels == "compiled":
        compile_layers(model)
    batch = our_batch(make_examples(MIXED, clips, processor.tokenizer), processor)
    inputs: dict[str, Any] = {name: value.to(device) for name, value in batch.items()}
    return model.train(), inputs | {"on_cpu": OnCpu.of(batch), "use_cache": False}


def step_times(model: Any, inputs: dict[str, Any], device: str, rounds: int = 3) -> Found:
    """The medians of some rounds, after one that does not count."""
    asked, taken = [], []
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds + 1):
        model.zero_grad(set_to_none=True)
        wait()
        started = time.perf_counter()
        model(**inputs).loss.backward()
        asked.append(time.perf_counter() - started)
        wait()
        taken.append(time.perf_counter() - started)
    norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
    middle = [round(1000 * sorted(each[1:])[rounds // 2], 2) for each in (asked, taken)]
    found: Found = {"host_ms": middle[0], "ms": middle[1], "norm": float(torch.stack(norms).norm())}
    return found | ({"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)} if device == "cuda" else {})
