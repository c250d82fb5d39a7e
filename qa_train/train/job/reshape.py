"""ZeRO checkpoints for another number of processes, and their weights for everybody else.

DeepSpeed shards optimizer state (and, from stage 3, weights) by rank, so only a run of the same shape can read it.
Its converter joins the pieces into a "universal" form that any shape reads. The result is stored with the original
files of the checkpoint, and the manifest is rewritten to include it. The pieces of ZeRO-1 and ZeRO-2 do not contain
frozen parameters: these keep the model's initial values, which the run's pinned settings reproduce.

Whole weights are in every checkpoint, unless a ZeRO-3 run was told to leave their gathering out
(``stage3_gather_16bit_weights_on_model_save: false``). All of this needs one process and no GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from qa_train.model.stored.loading import DTYPES, read_json
from qa_train.model.stored.manifest import UNIVERSAL
from qa_train.train.job import checkpoints
from qa_train.train.job.distributed import by_main, weights_in_zero_parts
from qa_train.train.job.states import UNREADABLE
from qa_train.utils.atomic import is_full, write_json
from qa_train.utils.progress import say

_LATEST = "latest_universal"
_SHARD_BYTES = 2 * 10**9
_INDEX = "model.safetensors.index.json"
# Where weights are written until all are there.
_MAKING = "joined.part"


def read_in_another_shape(folder: Path, before: str, now: str, args: Any) -> None:
    """Let a ZeRO run of another shape resume from ``folder``; a collective call.

    Args:
        folder: a complete checkpoint.
        before: its layout of the optimizer's state (``optimizer_layout``).
        now: the layout of this run.
        args: the TrainingArguments, with DeepSpeed settings to change so that they read the universal form.

    Raises:
        ValueError: one of the two is not a ZeRO run, or only one is of stage 3, or the conversion failed.
    """
    # Stage 3 cuts weights, too, and DeepSpeed then looks for other files.
    if "whole" in (before, now) or ("ZeRO-3" in before) != ("ZeRO-3" in now):
        raise ValueError(
            f"the optimizer state in {folder} is {before}, and this run's would be {now}: use the same deepspeed= as "
            f"before, or start a new run from these weights with model.checkpoint={folder} and another run.dir"
        )

    by_main(lambda: make_universal(folder))
    args.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}


def make_universal(folder: Path) -> bool:
    """Convert a complete ZeRO checkpoint in place, unless that was done before (False); needs as much disk again.

    Raises:
        ValueError: DeepSpeed's converter failed; its last lines are in the message.
    """
    if _LATEST in checkpoints.read_manifest(folder)["files"]:
        return False
    source = folder / (folder / "latest").read_text().strip()
    target = folder / (source.name + UNIVERSAL)
    # A killed conversion leaves partial output; it is not in the manifest, so nothing reads it.
    shutil.rmtree(target, ignore_errors=True)
    say(f"joining the ZeRO parts of {folder.name} for another number of processes or stage (once)")
    _convert(source, target)
    # It joins slices in there and may leave the folder behind.
    shutil.rmtree(target / "tmp", ignore_errors=True)
    (folder / _LATEST).write_text(target.name)
    _commit_again(folder, {target.name, _LATEST})
    return True


def write_weights(folder: Path) -> bool:
    """Join the weights of a complete ZeRO-3 checkpoint that has none but in parts; False if it has.

    They get the type that its ``config.json`` states. In memory are at most 2 GB of them, and the frozen ones.

    Raises:
        ValueError: the parts cannot be joined.
    """
    if any(name.endswith(".safetensors") for name in checkpoints.read_manifest(folder)["files"]):
        return False
    stated = str(read_json(folder / "config.json").get("dtype")).removeprefix("torch.")
    if stated not in DTYPES:
        raise ValueError(f"{folder}/config.json has dtype {stated[:40]}; expected one of {', '.join(DTYPES)}")
    dtype = DTYPES[stated]
    try:
        parts = weights_in_zero_parts(folder)
    except UNREADABLE as error:
        raise ValueError(f"the ZeRO parts of {folder} cannot be joined ({error}): use another checkpoint") from error
    say(f"joining the weights of {folder.name}, {sum(part.shape.numel() for part in parts.values()) / 1e6:,.0f} M")
    empty = {name: torch.empty(part.shape, dtype=dtype, device="meta") for name, part in parts.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=_SHARD_BYTES)
    making = folder / _MAKING
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    for file, names in split.filename_to_tensors.items():
        save_file({name: parts[name].contiguous().to(dtype) for name in names}, making / file, {"format": "pt"})
    if split.is_sharded:
        write_json(making / _INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    added = {path.name for path in making.iterdir()}
    for name in added:
        (making / name).replace(folder / name)
    making.rmdir()
    _commit_again(folder, added)
    return True


def _commit_again(folder: Path, added: Collection[str]) -> None:
    """Make a complete checkpoint complete again, with the files and folders that were ``added`` to it."""
    manifest = checkpoints.read_manifest(folder)
    for path in checkpoints.files_of(folder):
        name = path.relative_to(folder)
        made_here = name.parts[0] in (_LATEST, _INDEX, _MAKING) or name.parts[0].endswith((UNIVERSAL, ".safetensors"))
        if made_here and str(name) not in manifest["files"] and name.parts[0] not in added:
            # Of a conversion that was killed: half of a file must not be counted among the others.
            path.unlink()
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
        if is_full(last):
            raise ValueError(
                f"{target} does not fit: the joined parts take as much room again as {source}, and "
                f"{shutil.disk_usage(source).free / 1e9:.2f} GB are free. Make room; the same command then continues "
                f"({last.splitlines()[-1]})"
            )
        raise ValueError(
            f"DeepSpeed could not convert {source} (exit code {done.returncode}): {last}\n"
            "Use the same deepspeed= and number of processes as before, or start a new run from these weights with "
            f"model.checkpoint={source.parent} and another run.dir"
        )
