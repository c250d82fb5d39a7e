"""The cards that a plan can be made for: memory as the driver reports it, and the rate of dense bfloat16 products."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One card. memory_gib: total, as nvidia-smi shows it; bf16_tflops: dense, float32 accumulation (data sheet)."""

    name: str
    memory_gib: float
    bf16_tflops: float


GPUS = {
    "h200": Gpu("H200 141 GB", 140.4, 989),
    "h100": Gpu("H100 SXM 80 GB", 79.6, 989),
    "b200": Gpu("B200 180 GB", 179.0, 2250),
    "a100-80": Gpu("A100 80 GB", 80.0, 312),
    "a100-40": Gpu("A100 40 GB", 40.0, 312),
    "l40s": Gpu("L40S 48 GB", 45.0, 362),
    "a6000": Gpu("RTX A6000 48 GB", 48.0, 155),
    "5090": Gpu("RTX 5090 32 GB", 31.8, 209),
    "4090": Gpu("RTX 4090 24 GB", 24.0, 165),
    "3090": Gpu("RTX 3090 24 GB", 24.0, 71),
    "l4": Gpu("L4 24 GB", 22.5, 121),
}


def find_gpu(name: str) -> Gpu:
    """The card of that name. ValueError if it is not in the table."""
    if name not in GPUS:
        raise ValueError(f"plan: gpu={name} is not in the table; use one of {', '.join(GPUS)}")
    return GPUS[name]
