"""Whether the device that a command is to run on can be used."""

from __future__ import annotations

import os


def check_device(device: str) -> None:
    """ValueError for a device that this machine, or this build of torch, does not have."""
    if device == "cpu":
        return
    import torch

    # Each of torchrun's processes on its own device.
    index = os.environ.get("LOCAL_RANK")
    try:
        torch.empty(0, device=f"cuda:{index}" if device == "cuda" and index is not None else device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={device} cannot be used ({reason}): use device=cpu, or see: qa-train doctor"
        ) from error
