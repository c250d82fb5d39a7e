"""ZeRO checkpoints for another number of processes or another ZeRO stage.

DeepSpeed shards optimizer state (and, from stage 3, weights) by rank, so only a run of the same shape can read it.
Its converter joins the pieces into a "universal" form that any shape reads. The result is stored with the original
files of the checkpoint, and the manifest is rewritten to include it. The pieces of ZeRO-1 and ZeRO-2 do not contain
frozen parameters: these keep the model's initial values, which the run's pinned settings reproduce.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from qa_train.model.stored.manifest import UNIVERSAL
from qa_train.train.job import checkpoints
from qa_train.train.job.distributed import from_main, is_main
from qa_train.utils.progress import say

_LATEST = "latest_universal"


def read_in_another_shape(folder: Path, before: str, now: str, args: Any) -> None:
    """Let a ZeRO run of another shape resume from ``folder``; a collective call.

    Args:
        folder: a complete checkpoint.
        before: its layout of the optimizer's state (``optimizer_layout``).
        now: the layout of this run.
        args: the TrainingArguments, with DeepSpeed settings to change so that they read the universal form.

    Raises:
        ValueError: one of the two is not a ZeRO run, or the conversion failed.
    """
    if "whole" in (before, now):
        raise ValueError(
            f"the optimizer state in {folder} is {before}, and this run's would be {now}: use the same deepspeed= as "
            f"before, or start a new run from these weights with model.checkpoint={folder} and another run.dir"
        )
    refusal = None
    if is_main():
        try:
            make_universal(folder)
        except (ValueError, OSError) as error:
            refusal = str(error)
    refusal = from_main(refusal)
    if refusal is not None:
        raise ValueError(refusal)
    args.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}


def make_universal(folder: Path) -> None:
    """Convert a complete ZeRO checkpoint in place, unless that was done before; needs as much disk again.

    Raises:
        ValueError: DeepSpeed's converter failed; its last lines are in the message.
    """
    manifest = checkpoints.read_manifest(folder)
    if _LATEST in manifest["files"]:
        return
    source = folder / (folder / "latest").read_text().strip()
    target = folder / (source.name + UNIVERSAL)
    # A killed conversion leaves partial output; it is not in the manifest, so nothing reads it.
    shutil.rmtree(target, ignore_errors=True)
    say(f"joining the ZeRO parts of {folder.name} for another number of processes or stage (once)")
    _convert(source, target)
    # It joins slices in there and may leave the folder behind.
    shutil.rmtree(target / "tmp", ignore_errors=True)
    (folder / _LATEST).write_text(target.name)
    known = {key: value for key, value in manifest.items() if key not in ("format", "files", "checksums")}
    checkpoints.commit(folder, known)


def _convert(source: Path, target: Path) -> None:
    program = "from qa_train.train.job.distributed import join_zero_parts; join_zero_parts()"
    words = [sys.executable, "-c", program, "--inject_missing_state"]
    words += ["--input_folder", str(source), "--output_folder", str(target)]
    workers = str(min(os.cpu_count() or 1, 8))
    words += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    # A separate process: otherwise it would treat this one as a rank of the run.
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    clean = {key: value for key, value in os.environ.items() if key not in ranks}
    done = subprocess.run(words, capture_output=True, text=True, env=clean)
    if done.returncode:
        shutil.rmtree(target, ignore_errors=True)
        last = "\n".join(done.stderr.strip().splitlines()[-4:])
        raise ValueError(
            f"DeepSpeed could not convert {source} (exit code {done.returncode}): {last}\n"
            "Use the same deepspeed= and number of processes as before, or start a new run from these weights with "
            f"model.checkpoint={source.parent} and another run.dir"
        )
