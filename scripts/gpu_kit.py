#!/usr/bin/env python
"""The packages that a GPU machine without a network lacks, in one small archive, and the four checks to run there.

    python scripts/gpu_kit.py build                      # here: writes build/gpu_kit.tar.xz
    python scripts/gpu_kit.py checks --out checks.json   # there, in a checkout with it: kernels, parity, stages
    python scripts/gpu_kit.py answers --out answers.json # there: generation, decode speed, ZeRO, compiled layers
    python scripts/gpu_kit.py steps --out steps.json     # there: recomputation, Liger, compiled layers, 0.5B and 8.4B
    python scripts/gpu_kit.py benchmark --out 8b.json    # there: 8.4B in full and with adapters against the stock path

For Python 3.12 on x86-64 Linux with torch for its GPU, numpy, pandas, pyarrow and accelerate. Each of the four
is meant for ten minutes; every check has its own limit, the benchmark begins nothing new after 7.5 minutes, and results
are written as JSON after every step. ``--device cpu`` tries them.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT / "build" / "gpu_kit.tar.xz"
EXTRAS = ("deepspeed", "lora", "kernels")
# What such a machine has: torch and pandas with what they need, and the large ones among the others.
THERE = {
    "torch", "triton", "numpy", "pandas", "pyarrow", "accelerate", "hf-xet", "psutil", "pyyaml", "packaging",
    "filelock", "fsspec", "jinja2", "markupsafe", "setuptools", "typing-extensions", "networkx", "sympy", "mpmath",
    "python-dateutil", "six", "tzdata", "ninja",
}  # fmt: skip
# Built here from their sources, without extensions: there are no wheels of them.
SOURCES = {"antlr4-python3-runtime", "deepspeed"}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]
# Read by no run.
DROPPED = ("*/tests/*", "*.pyi", "*/licenses/*", "*/transformers/cli/*", "*/gradio/*")
CHECKS = "scripts/check_gpu.py"
RUNS = {
    "checks": [CHECKS, "--checks", "machine,attention,parity,half,liger,pretrain,sft,dpo"],
    "answers": [CHECKS, "--checks", "machine,answers,decode,sharded"],
    "steps": [CHECKS, "--checks", "machine,steps"],
    "benchmark": ["scripts/benchmark_training.py", "--data", "mixed", "--regimes", "full", "lora",
                  "--batch-sizes", "8", "16"],
}  # fmt: skip


def needed(name: str, extras: tuple[str, ...] = ()) -> dict[str, str]:
    """All that ``name[extras]`` needs, and that is not there already: name -> requirement. Read from what is here."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    there = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux"}
    found: dict[str, str] = {}
    waiting, seen = [(name, extras)], set[tuple[str, tuple[str, ...]]]()
    while waiting:
        package, wanted = waiting.pop()
        if (package, wanted) in seen:
            continue
        seen.add((package, wanted))
        try:
            lines = requires(package) or []
        except PackageNotFoundError:
            # Of kernels for a GPU, which are not installed here, torch and triton are all that they need.
            lines = []
        for line in lines:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate(there | {"extra": extra}) for extra in (*wanted, "")):
                continue
            key = canonicalize_name(requirement.name)
            if key in THERE or key == "qa-train":
                continue
            found.setdefault(key, line)
            waiting.append((key, tuple(sorted(requirement.extras))))
    return found


def fetch(names: list[str], wheels: Path) -> None:
    """The pinned wheels of ``names`` into the folder ``wheels``."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    pins = ["-c", str(ROOT / "constraints.txt")]
    plain = os.environ | {"DS_BUILD_OPS": "0"}
    made = sorted(SOURCES & set(names))
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), *pins, *made], check=True, env=plain)
    platforms = [word for each in PLATFORMS for word in ("--platform", each)]
    words = ["download", "--no-deps", "--only-binary=:all:", "--python-version", "3.12", *platforms, *pins]
    subprocess.run([*pip, *words, "--dest", str(wheels), *sorted(set(names) - SOURCES)], check=True)


def build(archive: Path) -> None:
    """Write the packages as one archive. They are unpacked: compressed together they take half of what wheels take."""
    with tempfile.TemporaryDirectory() as name:
        wheels = Path(name)
        fetch(sorted(needed("qa-train", EXTRAS)), wheels)
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w:xz") as tar:
            for wheel in sorted(wheels.glob("*.whl")):
                add_wheel(tar, wheel)
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


def add_wheel(tar: tarfile.TarFile, wheel: Path) -> None:
    """The files of a wheel as they lie in site-packages, without those that no run reads."""
    with zipfile.ZipFile(wheel) as packed:
        for entry in packed.infolist():
            if entry.is_dir() or any(fnmatch.fnmatch(f"/{entry.filename}", pattern) for pattern in DROPPED):
                continue
            member = tarfile.TarInfo(entry.filename)
            member.size, member.mode = entry.file_size, 0o644
            with packed.open(entry) as file:
                tar.addfile(member, file)


def run(name: str, device: str, out: Path | None) -> int:
    """One of the four, with the archive's packages in front of the machine's own; without an archive with those."""
    words = [*RUNS[name], "--device", device, *(["--out", str(out)] if out else [])]
    if name == "benchmark":
        words += ["--size", "8b" if device == "cuda" else "tiny"]
    with tempfile.TemporaryDirectory() as site:
        if ARCHIVE.exists():
            with tarfile.open(ARCHIVE) as tar:
                tar.extractall(site, filter="data")
        path = os.pathsep.join([site, str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | {"PYTHONPATH": path}).returncode


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", *RUNS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.what == "build":
        build(options.out or ARCHIVE)
        return 0
    return run(options.what, options.device, options.out)


if __name__ == "__main__":
    sys.exit(main())
