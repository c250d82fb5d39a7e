"""The machine: Python and packages, torch and its GPUs, DeepSpeed, audio formats, disk, limits, W&B."""

from __future__ import annotations

import io
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from qa_train.doctor import processor
from qa_train.doctor.finding import Finding, note, ok, problem
from qa_train.utils.process import COMPILER_REMEDY, missing_compiler

_GIB = 1024**3
_SHORT_DISK = 20
_SHORT_SHM = 1
_FILES = 4096
# How long the import of DeepSpeed may take: it looks for compilers and GPUs.
_IMPORT_S = 120


def examine(folder: str) -> Iterator[Finding]:
    """Everything that needs no file of the user; ``folder``: where runs will be written."""
    yield _python()
    yield from packages()
    yield from _tested_versions()
    yield from _torch()
    yield compiler()
    yield from processor.examine()
    yield _deepspeed()
    yield from audio_formats()
    yield from disk(Path(folder))
    yield _open_files()
    yield wandb_key(dict(os.environ), Path.home())


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return ok("python", found)


def packages(requirements: list[str] | None = None) -> Iterator[Finding]:
    """Installed versions against what this package asks for; absent extras in one line."""
    wanted = metadata.requires("qa-train") or [] if requirements is None else requirements
    absent: set[str] = set()
    right = 0
    for each in map(Requirement, wanted):
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(each.marker or ""))
        try:
            version = metadata.version(each.name)
        except metadata.PackageNotFoundError:
            if extra:
                absent.add(extra[1])
            else:
                yield problem(each.name, "not installed", f"pip install '{each.name}{each.specifier}'")
            continue
        if each.specifier.contains(version, prereleases=True):
            right += 1
        else:
            yield problem(
                each.name,
                f"{version}, but qa-train needs {each.specifier}",
                f"pip install '{each.name}{each.specifier}'",
            )
    yield ok("packages", f"{right} of the right version")
    if absent := absent - {"dev", "quickstart", "plots"}:
        yield note(
            "extras",
            f"not complete: {', '.join(sorted(absent))}",
            f"if you need them: pip install 'qa-train[{','.join(sorted(absent))}]'",
        )


def _tested_versions() -> Iterator[Finding]:
    """Differences from constraints.txt, in a checkout."""
    path = Path(__file__).parents[2] / "constraints.txt"
    if not path.is_file():
        return
    other = []
    for line in path.read_text().splitlines():
        name, mark, version = line.partition("==")
        if not mark or line.startswith("#"):
            continue
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if found.partition("+")[0] != version:
            other.append(f"{name} {found} (tested: {version})")
    if other:
        yield note("tested versions", "; ".join(other[:5]) + (" ..." if len(other) > 5 else ""),
                   "for the tested set: pip install -c constraints.txt -e .")  # fmt: skip


def _torch() -> Iterator[Finding]:
    import torch

    build = f"{torch.__version__}, built for " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU")
    driver = shutil.which("nvidia-smi") is not None
    if not torch.cuda.is_available():
        if driver and torch.version.cuda is None:
            remedy = "install torch from the index that its installation page names for your CUDA version"
            yield problem("torch", f"{build}, although this machine has an NVIDIA driver", remedy)
        elif driver:
            yield problem("torch", f"{build}, but no GPU can be used",
                          "compare `nvidia-smi` with torch's CUDA version; check CUDA_VISIBLE_DEVICES")  # fmt: skip
        else:
            yield note("torch", f"{build}; no GPU here", "small models train on a CPU; the paper's need GPUs")
        return
    yield ok("torch", build)
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        text = f"{facts.name}, {facts.total_memory / _GIB:.1f} GiB, capability {facts.major}.{facts.minor}"
        if facts.major < 8:
            yield problem(f"GPU {i}", text, "bfloat16 and varlen attention need capability 8.0 (Ampere) or newer")
        else:
            yield ok(f"GPU {i}", text)
    if torch.distributed.is_nccl_available():
        yield ok("NCCL", ".".join(map(str, torch.cuda.nccl.version())))  # type: ignore[no-untyped-call]
    else:
        yield problem("NCCL", "not part of this torch", "several GPUs need it: install torch's Linux build for CUDA")
    if find_spec("torch.nn.attention.varlen") is None:
        yield problem("varlen attention", "this torch has none", "pip install 'torch>=2.10'")


def compiler() -> Finding:
    """The C compiler: on a GPU DPO, Liger's kernels and compiled layers end without one."""
    import torch

    missing = missing_compiler()
    if missing is None:
        return ok("C compiler", "found, with the headers of this Python")
    if torch.cuda.is_available():
        needed = "qa-train dpo, trainer.use_liger_kernel and trainer.compile_layers need one"
        return problem("C compiler", f"{missing}: {needed}", COMPILER_REMEDY)
    return note("C compiler", f"{missing}; only GPUs need one", COMPILER_REMEDY)


def _deepspeed() -> Finding:
    if find_spec("deepspeed") is None:
        return note(
            "deepspeed", "not installed", "for deepspeed=zero1, zero2 or zero3: pip install 'qa-train[deepspeed]'"
        )
    code = "import deepspeed; print('version', deepspeed.__version__)"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_IMPORT_S)
    except subprocess.TimeoutExpired:
        return problem("deepspeed", f"its import took over {_IMPORT_S} s", "see whether a file system or a GPU hangs")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return problem(
            "deepspeed", f"cannot be imported: {last}", "pip install --force-reinstall 'qa-train[deepspeed]'"
        )
    return ok("deepspeed", f"{done.stdout.rsplit('version', 1)[-1].strip()}, can be imported")


def audio_formats() -> Iterator[Finding]:
    """Write and read a tenth of a second in every format that shards may hold."""
    import numpy as np
    import soundfile

    wave = 0.1 * np.sin(np.arange(1600) / 10)
    kinds = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
             "mp3": ("MP3", "MPEG_LAYER_III")}  # fmt: skip
    broken = []
    for name, (container, codec) in kinds.items():
        buffer = io.BytesIO()
        try:
            soundfile.write(buffer, wave, 16_000, format=container, subtype=codec)
            buffer.seek(0)
            if len(soundfile.read(buffer)[0]) < 1600:
                broken.append(name)
        except (soundfile.LibsndfileError, ValueError, TypeError):
            broken.append(name)
    fine = [name for name in kinds if name not in broken]
    if fine:
        yield ok("audio formats", f"{', '.join(fine)} (libsndfile {soundfile.__libsndfile_version__})")
    if broken:
        remedy = "pip install --force-reinstall soundfile brings its own libsndfile; or convert to flac"
        yield problem("audio formats", f"cannot do {', '.join(broken)}", remedy)


def disk(folder: Path) -> Iterator[Finding]:
    """Free space where runs are written, and the shared memory that loader workers pass batches through."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GIB
    text = f"{free:.0f} GiB free in {folder.resolve()}"
    if free < _SHORT_DISK:
        yield note(
            "disk", text, "a checkpoint takes 14 bytes per trained parameter (8.4 B: 118 GB); point run.dir elsewhere"
        )
    else:
        yield ok("disk", text)
    shm = Path("/dev/shm")
    if shm.is_dir() and (size := shutil.disk_usage(shm).total / _GIB) < _SHORT_SHM:
        yield note(
            "shared memory", f"{size:.2f} GiB in /dev/shm", "in containers: --shm-size=8g, or data.num_workers=0"
        )


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES:
        return note(
            "open files",
            f"limit {soft}",
            f"ulimit -n {min(hard, 65536) if hard > 0 else 65536} for many shards and workers",
        )
    return ok("open files", f"limit {soft}")


def wandb_key(environ: dict[str, str], home: Path) -> Finding:
    """Whether metrics would go to W&B, and how to change that; the key itself is not looked at."""
    if find_spec("wandb") is None:
        return note("W&B", "not installed: metrics go to metrics.jsonl only", "pip install 'qa-train[tracking]'")
    if environ.get("WANDB_MODE") in ("offline", "disabled"):
        return ok("W&B", f"{environ['WANDB_MODE']} by WANDB_MODE")
    netrc = home / ".netrc"
    if environ.get("WANDB_API_KEY") or (netrc.is_file() and "wandb" in netrc.read_text()):
        return ok("W&B", "a key is there: runs are tracked online")
    return note("W&B", "no key: runs are kept offline", "wandb login; and later: wandb sync RUN/wandb/offline-run-*")
