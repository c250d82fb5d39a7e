"""Checks before and at the first step that would otherwise be found out hours later.

They take well under two seconds on a small model: two exchanges of small objects, a look at the disk, and two forward
passes of the first batch without gradients.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from qa_train.config import StageConfig
from qa_train.train.job.distributed import have_met
from qa_train.train.job.run import environment
from qa_train.train.safety.guards import StopRun

# Clocks this far apart make logs and time limits misleading; nothing in the training depends on them.
_CLOCK_TOLERANCE_S = 5.0
# Bytes per trained parameter: weights, float32 copy, two float32 moments.
_TRAINED_BYTES = 4 + 4 + 4 + 4
_FROZEN_BYTES = 4


def check_ranks(cfg: StageConfig) -> str:
    """Compare settings, package versions and clocks of all ranks; a collective call.

    Returns:
        The result, for the start's line. Raises: ValueError: ranks have other versions or settings; the message names
        them.
    """
    settings = hashlib.sha256(json.dumps(asdict(cfg), sort_keys=True, default=str).encode()).hexdigest()
    facts = environment()
    own = {"trainer.bf16": str(cfg.trainer.bf16), "settings": settings, "python": facts["python"], **facts["versions"]}
    if not have_met():
        return "1 process"
    # All leave the barrier at nearly the same time, so that clocks are compared and not waiting times.
    torch.distributed.barrier()
    ranks = gather_object([(own, time.time())])
    different = differences([found for found, _ in ranks])
    if different:
        raise ValueError(f"the processes of this run differ: {different}; install and start the same on every node")
    clocks = [clock for _, clock in ranks]
    apart = max(clocks) - min(clocks)
    warning = " (WARNING: set the nodes' clocks)" if apart > _CLOCK_TOLERANCE_S else ""
    return f"{len(ranks)} processes with equal versions and settings, clocks within {apart:.2f} s{warning}"


def differences(facts: list[dict[str, Any]]) -> str:
    """Which facts are not the same on all ranks, in words; empty when all are."""
    found = []
    for name in facts[0]:
        values = [each.get(name) for each in facts]
        if len(set(values)) > 1:
            other = next(rank for rank, value in enumerate(values) if value != values[0])
            found.append(f"{name} is {values[0]} on rank 0 and {values[other]} on rank {other}")
    return "; ".join(found)


def checkpoint_bytes(model: torch.nn.Module) -> int:
    """An estimate of one checkpoint's size: weights and, for trained parameters, AdamW's states."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(n * (_TRAINED_BYTES if trains else _FROZEN_BYTES) for n, trains in sizes)


def check_storage(folder: Path, model: torch.nn.Module) -> str:
    """Check that one more checkpoint fits in addition to those that are kept.

    Raises:
        ValueError: it does not; the message has the free and the needed space.
    """
    free, needed = shutil.disk_usage(folder).free, checkpoint_bytes(model)
    if free < needed:
        raise ValueError(
            f"{folder} has {free / 1e9:.2f} GB free and one checkpoint takes about {needed / 1e9:.2f} GB: make room, "
            "choose another run.dir, or start anyway with trainer.self_check=false"
        )
    return f"{free / 1e9:.1f} GB free, {needed / 1e9:.2f} GB per checkpoint"


# Entries of a batch that are inputs of the model.
_MODEL_INPUTS = ("input_ids", "attention_mask", "input_features", "feature_lengths", "audio_states", "audio_gather")


@torch.no_grad()
def probe_audio(model: Any, inputs: dict[str, Any]) -> str:
    """Prove that audio reaches the model: the same batch with its audio set to zero must have a different loss.

    A collective call under ZeRO-3: every rank runs the model twice. Dropout is off and no random number is drawn.

    Args:
        model: the wrapped model, as the training step calls it.
        inputs: one micro-batch on the model's device (see ``Collator``).

    Returns:
        The result, for the start's line. Raises: StopRun: there is audio in the batch and the loss does not depend on
        it.
    """
    words = {name: inputs[name] for name in _MODEL_INPUTS if name in inputs}
    words["labels"] = inputs.get("labels")
    if words["labels"] is None:
        words["labels"] = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    sound = next((name for name in ("audio_states", "input_features") if name in inputs), None)
    deaf = words if sound is None else words | {sound: torch.zeros_like(words[sound])}
    was_training = model.training
    model.eval()
    heard, unheard = (model(**each, use_cache=False, num_items_in_batch=1).loss.item() for each in (words, deaf))
    model.train(was_training)
    if sound is None or not torch.count_nonzero(words[sound]) or not (words["labels"][:, 1:] != -100).any():
        return "no audio in the first batch: not probed"
    if heard == unheard:
        raise StopRun(
            "the first batch has the same loss with its audio and with zeros in its place: the audio does not reach "
            "the model; look at model.checkpoint and the projector's weights, or start anyway with "
            "trainer.self_check=false"
        )
    return "audio reaches the model"
