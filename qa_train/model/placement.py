"""Which device answers: the one place that decides what ``device=auto`` is, and whether a device can be used."""

from __future__ import annotations

import os

import torch


def choose_device(asked: str) -> str:
    """The device to load a model to: "cpu" or "cuda:N".

    "auto" is "cuda" where torch sees a GPU, else "cpu". With "cuda" each of torchrun's processes has its own, N being
    its ``LOCAL_RANK`` (Slurm's ``SLURM_LOCALID`` under srun alone).

    Raises:
        ValueError: this machine, or this build of torch, does not have the device. "auto" does not fall back to the
            CPU from a GPU that is there and cannot be used.
    """
    kind = asked
    if asked == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    device = f"cuda:{number}" if kind == "cuda" else kind
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"device={asked} cannot be used ({reason}): use device=cpu, or see: qa-train doctor"
        ) from error
    return device


def describe_device(device: str) -> str:
    """ "cuda:0, NVIDIA H200", or "cpu"."""
    return f"{device}, {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else device
