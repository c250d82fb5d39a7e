"""The device of a command that answers: chosen, checked and shown before anything is loaded."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Protocol, TypeVar


class _Answering(Protocol):
    device: str


Options = TypeVar("Options", bound=_Answering)


def on_device(options: Options) -> Options:
    """``options`` with the device that ``device=`` stands for, which is the first line of output, on stderr.

    On stderr, because the answers of `qa-train chat` and the address of `qa-train serve` are read from stdout.
    ValueError for a device that cannot be used.
    """
    from qa_train.model.placement import choose_device, describe_device

    device = choose_device(options.device)
    if int(os.environ.get("RANK", 0)) == 0:
        chosen = " (device=auto)" if options.device == "auto" else ""
        print(f"answers are computed on {describe_device(device)}{chosen}", file=sys.stderr, flush=True)
    return replace(options, device=device)  # type: ignore[type-var]
