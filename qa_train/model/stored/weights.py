"""Weights in and out of a live model: strict restore, content hashes, freezing.

Checkpoints and hub folders keep the names of the first Qwen2-Audio release (``audio_tower.…``,
``language_model.lm_head.…``); the module tree of transformers 5 has other ones. The stock Trainer loads such a
file with ``strict=False`` and silently keeps the initial weights, hence ``load_weights`` and ``match``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from qa_train.model.layers.parts import PARTS, PREFIXES, model_name

logger = logging.getLogger(__name__)

ADAPTER = "adapter_model.safetensors"
# Values summed at a time: weights of half precision are copied for it.
_PIECE = 1 << 22
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Copy the safetensors of ``folder`` into ``model``; every weight must be there, once, in its shape.

    ValueError names what is missing, unexpected or of another shape, and then nothing was changed.
    """
    adapted = (Path(folder) / ADAPTER).is_file()
    targets = adapter_state(model, folder) if adapted else model.state_dict()
    files = [Path(folder) / ADAPTER] if adapted else weight_files(Path(folder))
    found = match(targets, files, str if adapted else model_name, str(folder))
    with torch.no_grad():
        for name, tensor in read_tensors(found):
            targets[name].copy_(tensor)


def match(
    targets: Mapping[str, torch.Tensor],
    files: Iterable[Path],
    rename: Callable[[str], str | None],
    where: str,
    *,
    allow_missing: Iterable[str] = (),
) -> dict[str, tuple[Path, str]]:
    """Where each of ``targets`` is stored: its file and the name there; only the headers of the files are read.

    Args:
        targets: tensors by their names in the model, of which the shapes count; they may be on "meta".
        files: safetensors files.
        rename: name in a file -> name in the model; None for what does not concern it.
        where: the owner of the files, for the message.
        allow_missing: patterns (as of file names) of what may be missing.

    Raises:
        ValueError: names what is missing, unexpected, there twice, or of another shape.
    """
    found: dict[str, tuple[Path, str]] = {}
    problems = []
    for file in files:
        with _open(file) as stored:
            for key in stored.keys():  # noqa: SIM118 (not a dict)
                name = rename(key)
                if name is None:
                    continue
                shape = list(stored.get_slice(key).get_shape())
                if name not in targets:
                    problems.append(f"unexpected {key}")
                elif name in found:
                    problems.append(f"{key} is there twice")
                elif shape != list(targets[name].shape):
                    problems.append(f"{key} has shape {shape}, the model has {list(targets[name].shape)}")
                found[name] = (file, key)
    missing = [name for name in targets if name not in found]
    allowed = {name for name in missing if any(fnmatchcase(name, pattern) for pattern in allow_missing)}
    # Missing ones first: what is missing is often what has another name.
    problems = [f"missing {name}" for name in missing if name not in allowed] + problems
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"the weights in {where} do not fit this model: {'; '.join(problems[:5])}{more}. "
            "Use the model configuration that the checkpoint was trained with, or a whole copy of it"
        )
    if allowed:
        logger.warning("%s lacks %s, which are initialized randomly (allow_missing)", where, ", ".join(sorted(allowed)))
    return found


def has_weight(files: Iterable[Path], key: str) -> bool:
    """Whether one of the safetensors ``files`` holds a weight of that name."""
    for file in files:
        with _open(file) as stored:
            if key in stored.keys():  # noqa: SIM118 (not a dict)
                return True
    return False


def read_tensors(found: Mapping[str, tuple[Path, str]]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything that `match` found, file by file."""
    for file in dict.fromkeys(place for place, _ in found.values()):
        with _open(file) as stored:
            for name, (place, key) in found.items():
                if place == file:
                    yield name, stored.get_tensor(key)


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: str) -> None:
    """ValueError if one of them has a non-finite value; threads read them in parallel."""

    def spoilt(item: tuple[str, torch.Tensor]) -> str | None:
        name, value = item
        if not value.is_floating_point():
            return None
        for piece in value.detach().reshape(-1).split(_PIECE):
            # One pass; a sum that leaves the range is looked at again.
            if not torch.isfinite(piece.sum(dtype=torch.float32)) and not torch.isfinite(piece).all():
                return name
        return None

    with ThreadPoolExecutor() as pool:
        names = [name for name in pool.map(spoilt, tensors) if name is not None]
    if names:
        raise ValueError(
            f"{where} has weights that are not finite (NaN or infinite), {len(names)} of its tensors, the first is "
            f"{names[0]}: use an older checkpoint, and a lower trainer.learning_rate"
        )


def adapter_state(model: nn.Module, folder: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a peft model that its checkpoint holds, by their names there; they can be written to."""
    if not hasattr(model, "peft_config"):
        raise ValueError(f"{folder} holds adapters, and this model has none: set model.lora as the run had it")
    from peft import get_peft_model_state_dict

    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def weight_files(folder: Path) -> list[Path]:
    """``model.safetensors``, or the shards that its index lists; ValueError if there is neither, or not all of them."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise ValueError(f"{folder} has neither model.safetensors nor its index: not a checkpoint with weights")
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        foreign = [name for name in names if not _SHARD.fullmatch(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of weights ({error}): use another copy of this folder") from error
    if foreign or not names:
        raise ValueError(
            f"{index} names {str(foreign)[:80] if foreign else 'nothing'}; expected safetensors files next to it: "
            "nothing else is read"
        )
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(absent)}, which its index lists: the checkpoint is incomplete")
    return [folder / name for name in names]


def _open(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error}): use another checkpoint") from error


def weights_digest(model: nn.Module, whole: Callable[[torch.Tensor], AbstractContextManager[Any]] | None = None) -> str:
    """SHA-256 over names, types, shapes and contents of all weights; the order does not count.

    ``whole``: a context for each weight in which it is whole, when it has been cut.
    """
    if whole is None:
        return _digest(model.state_dict().items())
    digests = []
    for name, value in model.state_dict(keep_vars=True).items():
        with whole(value):
            digests.append(_digest_one((name, value)))
    return _joined(digests)


def encoder_hash(model: nn.Module) -> str:
    """The digest of the audio encoder alone: two models with the same one give the same encoder states."""
    states = model.state_dict().items()
    return _digest((name, value) for name, value in states if name.startswith(PREFIXES["encoder"]))


def _digest(items: Iterable[tuple[str, torch.Tensor]]) -> str:
    # hashlib lets other threads run: hashing takes the time of the slowest core instead of the sum.
    with ThreadPoolExecutor() as pool:
        return _joined(pool.map(_digest_one, items))


def _joined(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _digest_one(item: tuple[str, torch.Tensor]) -> bytes:
    name, value = item
    head = f"{name} {value.dtype} {list(value.shape)} ".encode()
    content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(head + content.tobytes()).digest()


def freeze(model: nn.Module, parts: Iterable[str]) -> None:
    """Let everything train but ``parts`` (of "encoder", "projector", "llm"; the head belongs to the LLM).

    The encoder's positions never train: ``from_pretrained`` forgets that, so this must follow every load.
    """
    parts = list(parts)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"cannot freeze {', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    if set(parts) == set(PARTS):
        raise ValueError("freeze names every part, so nothing would train: remove one")
    frozen = tuple(prefix for part in parts for prefix in PREFIXES[part])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen) and "embed_positions" not in name)
