"""Which arithmetic a device multiplies fast: the one place that decides between bfloat16 and float32.

A processor without bfloat16 instructions still computes bfloat16 products, one value at a time: 7 to 50 times slower
than in float32 (docs/lab/quickstart.md). Training, the encoder cache, evaluation, chat, serve and Muon all ask here.
"""

from __future__ import annotations

import time
from functools import cache

import torch

# Rows, inner and outer width of the product that is timed: a feed-forward of the quickstart's encoder.
_PROBE = (500, 384, 1536)


@cache
def native_bfloat16(kind: str) -> bool:
    """Whether devices of this ``kind`` ("cpu" or "cuda") multiply bfloat16 in hardware.

    On a CPU oneDNN is asked first: it knows the instructions and the limit of ``ONEDNN_MAX_CPU_ISA``. It also reports
    support where it emulates bfloat16 with AVX-512, so support is confirmed by timing one product. The two cases are
    far apart: native is at least twice as fast as float32, emulated a fifth of it or less.
    """
    if kind == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if kind != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return bfloat16_speed() > 1


@cache
def bfloat16_speed() -> float:
    """How many times faster a matrix product is in bfloat16 than in float32 on this CPU; below 1 it is slower."""
    return cpu_product_rate(torch.bfloat16) / cpu_product_rate(torch.float32)


@cache
def cpu_product_rate(dtype: torch.dtype) -> float:
    """Operations per CPU second of one thread's matrix product in ``dtype``.

    CPU time, and the best of several: other programs on the machine change it little. One thread, because the CPU time
    of another thread that still runs is known late.
    """
    rows, inner, outer = _PROBE
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, outer, dtype=dtype)
        best, begun = float("inf"), time.process_time()
        # A slow product takes over 0.1 s: one look is then enough.
        for _ in range(20):
            started = time.process_time()
            a @ b
            best = min(best, max(time.process_time() - started, 1e-7))
            if time.process_time() - begun > 0.1:
                break
    finally:
        torch.set_num_threads(threads)
    return 2 * rows * inner * outer / best


def compute_dtype(stored: torch.dtype, device: str | torch.device) -> torch.dtype:
    """The type to load weights in, for answers: the stored type, but float32 where half precision is slow."""
    if stored in (torch.bfloat16, torch.float16) and not native_bfloat16(torch.device(device).type):
        return torch.float32
    return stored


def train_in_float32(model: torch.nn.Module) -> None:
    """Turn trained weights of a half-precision model (the projector) into float32, so that small updates count."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()
