"""What the quickstart's parts cost on this CPU as it is, without bfloat16, and without AVX-512: CPU seconds and ratios.

    python scripts/benchmark_cpu.py

Each row is a process of its own on one thread, limited by the variables that CONTRIBUTING.md names. The goal: a part
costs at most 1.3 times what the ratio of float32 matrix products alone would make of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# name -> the variables that limit oneDNN, ATen and MKL.
MACHINES: dict[str, dict[str, str]] = {
    "as it is": {},
    "without bfloat16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2 alone": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
BASELINE = "without bfloat16"
PARTS = ("encoder", "step", "answer")
_LOOK = """
import json, torch
from quickstart_time import probe
from qa_train.model.precision import bfloat16_speed, cpu_product_rate
found = min((probe() for _ in range(3)), key=lambda each: each["step"])
print(json.dumps(found | {"float32": cpu_product_rate(torch.float32), "bfloat16": bfloat16_speed()}))
"""


def look(limits: dict[str, str]) -> dict[str, Any]:
    """The quickstart's probe and the rates of products in a process with these limits."""
    places = os.pathsep.join([str(ROOT), str(ROOT / "scripts")])
    quiet = {"PYTHONPATH": places, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _LOOK], env={**os.environ, **quiet, **limits}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"benchmark_cpu: the probe failed: {done.stderr[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Print the table, in Markdown."""
    found = {name: look(limits) for name, limits in MACHINES.items()}
    base = found[BASELINE]
    print("| CPU | auto | float32 GFLOP/s | bfloat16 / float32 | encoding 1 s (ms) | step (s) | answers (s) |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, each in found.items():
        parts = " | ".join(f"{each[part] * (1000 if part == 'encoder' else 1):.3g}" for part in PARTS)
        print(f"| {name} | {each['arithmetic']} | {each['float32'] / 1e9:.0f} | {each['bfloat16']:.2g} | {parts} |")
    products = base["float32"] / found["AVX2 alone"]["float32"]
    print(f"\nAVX2 alone against {BASELINE}: float32 products {products:.2f} times as slow")
    for part in PARTS:
        ratio = found["AVX2 alone"][part] / base[part]
        print(f"  {part}: {ratio:.2f} times ({ratio / products:.2f} of the products'; goal: at most 1.3)")


if __name__ == "__main__":
    main()
