"""States in a checkpoint besides the weights: optimizer, schedule, random numbers and ZeRO.

They are pickles, and a pickle can call any function. The checksums of a manifest do not help: whoever writes a folder
writes its checksums, too. So torch is restricted to tensors, plain values and the few classes below, for every caller:
transformers does so by itself, DeepSpeed (0.19) and its converter do not. A state with anything else, or one that
cannot be read, makes a checkpoint unusable, and an older one is used.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import safe_globals

from qa_train.model.stored.manifest import damage, read_manifest
from qa_train.train.job import checkpoints

# What DeepSpeed and torchao put into states besides tensors: a number, an enumeration, a range and a tensor of few
# bits. None of them has side effects when constructed.
_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "torchao.optim.subclass_4bit.OptimState4bit",
    "torchao.optim.subclass_8bit.OptimState8bit",
)
_SUFFIXES = (".pt", ".pth")
_TRAINER = "trainer_state.json"
# Without them transformers would silently start with a new optimizer.
_WHOLE = ("optimizer.pt", "scheduler.pt", _TRAINER)
_CUT = ("latest", "scheduler.pt", _TRAINER)
# File -> keys of which one must be there; muon_with_adamw has halves.
_KEYS = (
    (re.compile(r"optimizer\.pt"), ("state", "halves")),
    (re.compile(r"scheduler\.pt"), ("last_epoch",)),
    (re.compile(r".*optim_states\.pt"), ("optimizer_state_dict",)),
    (re.compile(r".*model_states\.pt"), ("module",)),
)
_RANDOM = re.compile(r"rng_state(?:_\d+)?\.pth")
UNREADABLE = (
    OSError, ImportError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError,
    OverflowError, pickle.UnpicklingError,
)  # fmt: skip


def plain_states_only() -> None:
    """From now on `torch.load` makes only tensors, plain values and `_CLASSES`, in this process and its children.

    It also holds for calls that ask for everything, as DeepSpeed's do.
    """
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    if "deepspeed" in sys.modules:
        _allow({name for name in _CLASSES if name.startswith("deepspeed.")})


def fault(folder: Path) -> str | None:
    """Why a run cannot resume from ``folder``, or None: damage or invalid states. Nothing in it is executed."""
    return damage(folder) or _problem(folder)


def _problem(folder: Path) -> str | None:
    plain_states_only()
    manifest = read_manifest(folder)
    files = manifest["files"]
    layout = str(manifest.get("optimizer", ""))
    needed = _WHOLE if layout == "whole" else _CUT if layout else ()
    if absent := [name for name in needed if name not in files]:
        return f"{', '.join(absent)} is not there"
    try:
        if _TRAINER in files:
            _check_step(folder)
        if "latest" in files:
            _check_tag(folder, files)
    except UNREADABLE as error:
        return _short(error)
    for name in sorted(files):
        if name.endswith(_SUFFIXES):
            try:
                _check(folder / name)
            except UNREADABLE as error:
                return f"{name} is not a training state ({_short(error)})"
    return None


def _check_step(folder: Path) -> None:
    found = json.loads((folder / _TRAINER).read_text())
    if not isinstance(found, dict) or found.get("global_step") != checkpoints.step_of(folder):
        raise ValueError(f"{_TRAINER} is not of step {checkpoints.step_of(folder)}")


def _check_tag(folder: Path, files: dict[str, Any]) -> None:
    """DeepSpeed reads the folder that ``latest`` names: it must be one of this checkpoint."""
    tag = (folder / "latest").read_text().strip()
    if not re.fullmatch(r"global_step\d+", tag) or not any(name.startswith(f"{tag}/") for name in files):
        raise ValueError(f"latest names {tag[:40]!r}, which is not in its manifest")


def _check(path: Path) -> None:
    """Read one state without its tensors' contents; an error of `UNREADABLE` if it is invalid."""
    strange = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    _allow(strange & set(_CLASSES))
    with safe_globals():
        if strange := strange and set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))):
            raise ValueError(f"it would call {', '.join(sorted(strange))}")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for pattern, keys in _KEYS:
        if pattern.fullmatch(path.name) and not (isinstance(state, dict) and any(key in state for key in keys)):
            raise ValueError(f"it has no {' or '.join(keys)}")
    if _RANDOM.fullmatch(path.name):
        random.Random().setstate(state["python"])
        np.random.RandomState().set_state(state["numpy"])
        torch.Generator().set_state(state["cpu"])


def _allow(names: set[str]) -> None:
    """Let torch unpickle these of `_CLASSES`; ImportError if their library is not installed."""
    for name in names:
        module, _, kind = name.rpartition(".")
        torch.serialization.add_safe_globals([getattr(import_module(module), kind)])


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
