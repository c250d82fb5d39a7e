"""Build a model under ZeRO-3 without a full copy in every process.

A stored model needs nothing of this: transformers creates it cut, rank 0 reads the file, and each layer is gathered
only while its weights are filled in. A model that is joined from parts, or whose adapters are merged, has to be whole
once: one process of each machine makes it and writes it to a temporary folder, from which all load their shards.
"""

from __future__ import annotations

import gc
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError
from torch import distributed
from transformers.integrations import deepspeed as deepspeed_state


def shards_weights() -> bool:
    """Whether several processes are about to cut the weights among themselves."""
    if not deepspeed_state.is_deepspeed_zero3_enabled():
        return False
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@contextmanager
def whole_weights() -> Iterator[None]:
    """Under ZeRO-3 transformers cuts a model while it is made, and its parts' weights would find empty tensors.

    Within this it is made whole.
    """
    active = deepspeed_state._hf_deepspeed_config_weak_ref
    deepspeed_state.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed_state._hf_deepspeed_config_weak_ref = active


@contextmanager
def made_once(make: Callable[[], tuple[Any, Any]]) -> Iterator[str]:
    """The folder of the model and processor that ``make()`` gives, made by one process of this machine.

    A collective call; the folder is removed at the end. ValueError on every rank when ``make`` fails on one.
    """
    # Two machines may have the same host name, in containers for instance.
    machine = (os.environ.get("GROUP_RANK"), socket.gethostname())
    folder = problem = None
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        folder = tempfile.mkdtemp(prefix="qa-train-model-")
        problem = _write(make, folder)
    found: list[Any] = [None] * distributed.get_world_size()
    try:
        distributed.all_gather_object(found, (machine, folder, problem))
        if problems := [each for _, _, each in found if each]:
            raise ValueError(problems[0])
        yield next(place for where, place, _ in found if place and where == machine)
        distributed.barrier()
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _write(make: Callable[[], tuple[Any, Any]], folder: str) -> str | None:
    """Make the model and save it; what went wrong, in words."""
    try:
        with whole_weights():
            model, processor = make()
            # transformers lets rank 0 alone write; here one process of every machine has a separate folder.
            model.should_save_on_this_rank = lambda is_main_process: True
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
    except ValueError as error:
        return str(error)
    except (OSError, SafetensorError) as error:
        return f"the assembled model could not be kept in {folder} ({error}): point TMPDIR to a place with more room"
    del model
    gc.collect()
    return None
