"""The processor: its instruction sets, how fast they multiply here, and how many threads torch will use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from qa_train.doctor.finding import Finding, note, ok

# torch's name -> the maker's, from old to new; x86 and Arm.
_SETS = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "neon": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}
# What takes instructions away: oneDNN's products, torch's own loops, MKL's products.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")


def examine() -> Iterator[Finding]:
    """Everything about the processor; takes about half a second for two products."""
    import torch

    from qa_train.model.precision import cpu_product_rate, native_bfloat16

    capabilities = torch.cpu.get_capabilities()
    yield instructions(capabilities, torch.backends.cpu.get_cpu_capability(), dict(os.environ))
    rates = cpu_product_rate(torch.float32), cpu_product_rate(torch.bfloat16)
    yield arithmetic(*rates, native=native_bfloat16("cpu"))
    quota = cpu_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    cores = int(capabilities.get("num_physical_cores", 0))
    affinity = len(os.sched_getaffinity(0))
    yield threads(torch.get_num_threads(), affinity, cores, quota, os.environ.get("OMP_NUM_THREADS"))


def instructions(capabilities: Mapping[str, object], loops: str, environ: Mapping[str, str]) -> Finding:
    """Instruction sets that matter here. capabilities: torch's; loops: the set that torch's own loops use."""
    found = [name for key, name in _SETS.items() if capabilities.get(key)]
    text = f"{', '.join(found) or 'none of those that matter here'}; torch's own loops use {loops}"
    if limits := [f"{name}={environ[name]}" for name in _LIMITS if environ.get(name)]:
        return note("instruction sets", f"{text}; limited by {' '.join(limits)}", "unset them, to use all there are")
    return ok("instruction sets", text)


def arithmetic(float32: float, bfloat16: float, *, native: bool) -> Finding:
    """What the products of one thread reach, operations per second, and what ``auto`` makes of it."""
    text = f"one thread multiplies {float32 / 1e9:,.0f} GFLOP/s in float32, {bfloat16 / 1e9:,.0f} in bfloat16"
    if native:
        return ok("arithmetic", f"{text}: on it trainer.bf16=auto trains in bfloat16")
    slower = f"{float32 / bfloat16:.0f} times" if bfloat16 < float32 else "no"
    return note(
        "arithmetic",
        f"{text}, which this processor has no instructions for: on it trainer.bf16=auto trains in float32",
        f"leave trainer.bf16 at auto or false: true would make the products {slower} slower",
    )


def threads(used: int, affinity: int, cores: int, quota: float | None, asked: str | None) -> Finding:
    """Threads that torch will use.

    Args:
        used: torch's number.
        affinity: CPUs that this process may run on.
        cores: physical ones of the machine; 0: unknown.
        quota: CPUs' worth of time that a container may take; None: no limit.
        asked: OMP_NUM_THREADS.
    """
    about = [f"this process may use {affinity} CPU{'s' * (affinity > 1)}"]
    about += [f"the machine has {cores} core{'s' * (cores > 1)}"] if cores else []
    about += [f"its container has the time of {quota:g}"] if quota is not None else []
    about += [f"OMP_NUM_THREADS={asked}"] if asked else []
    text = f"torch will use {used} ({', '.join(about)})"
    room = affinity if quota is None else min(affinity, max(1, math.ceil(quota)))
    if used > room:
        return note("threads", text, f"OMP_NUM_THREADS={room}: more threads than that wait for each other")
    return ok("threads", text)


def cpu_quota(root: Path, own: Path) -> float | None:
    """CPUs' worth of time that the control groups of this process allow, the least of them; None without a limit.

    Args:
        root: where control groups are mounted.
        own: the process's list of them (/proc/self/cgroup), lines of ``number:controllers:path``.
    """
    found: list[float] = []
    lines = own.read_text().splitlines() if own.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has one tree, version 1 one for each controller. In a container the tree may begin at the group.
        base = root / controllers if controllers else root
        folder = base / path.lstrip("/")
        for place in {base, *([folder, *folder.parents] if folder != base else [])}:
            if place == base or base in place.parents:
                found += _limits(place)
    return min(found, default=None)


def _limits(folder: Path) -> Iterator[float]:
    """The limit of one group, in CPUs."""
    for name, period_name in (("cpu.max", None), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        path = folder / name
        if not path.is_file():
            continue
        words = path.read_text().split()
        if period_name is not None:
            words.append((folder / period_name).read_text().strip())
        if words[0] not in ("max", "-1"):
            yield int(words[0]) / int(words[1])
