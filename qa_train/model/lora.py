"""Low-rank adapters through peft: target layers, contents of a checkpoint, and loading.

A checkpoint of a run with adapters is a folder in peft's own format (``adapter_model.safetensors``,
``adapter_config.json``), with the projector if it trains, and ``base.json``: how to build the model that the adapters
were trained on, and a digest of its weights. The base itself is not copied.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qa_train.config import EncoderConfig, LanguageModelConfig, LoraSettings, ModelConfig
from qa_train.model.layers.parts import LAYERS, PROJECTOR_MODULE
from qa_train.model.stored.loading import read_json, short
from qa_train.model.stored.weights import ADAPTER, adapter_state, check_finite, load_weights, weights_digest
from qa_train.utils.closest import did_you_mean

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

logger = logging.getLogger(__name__)

_CONFIG = "adapter_config.json"
_BASE = "base.json"
# The patterns that `target_pattern` makes: layers of a part, and names of the linear layers in them.
_TARGET = rf"\(\?:(?:{'|'.join(re.escape(re.escape(prefix)) for prefix in LAYERS.values())})\.\*\\\.\(\?:[\w|]+\)\)"
_TARGETS = re.compile(rf"{_TARGET}(?:\|{_TARGET})?")
_MOST_RANK, _MOST_ALPHA = 4096, 1 << 20
# Fields of the stored configuration that a run sets, or that change nothing.
_FREE = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "auto_mapping", "base_model_name_or_path",
    "inference_mode", "peft_version", "revision", "task_type",
}  # fmt: skip


@dataclass(frozen=True)
class Adapters:
    """peft's configuration, and the record from which the base is built again."""

    config: LoraConfig
    base: dict[str, Any]

    def write_base(self, folder: Path) -> None:
        """Put the record of the base next to the adapters, in place of peft's empty form of a model card."""
        (folder / "README.md").unlink(missing_ok=True)
        (folder / _BASE).write_text(json.dumps(self.base, indent=2, sort_keys=True) + "\n")


def plan_adapters(model: nn.Module, cfg: ModelConfig, *, seed: int) -> Adapters | None:
    """What ``cfg.lora`` asks for on ``model`` (as ``build_model(cfg, seed=seed)`` gave it); None when it is off.

    ValueError if peft is not installed, or a target module does not exist.
    """
    if not cfg.lora.parts:
        return None
    if find_spec("peft") is None:
        raise ValueError("model.lora needs peft: pip install 'qa-train[lora]', or set model.lora.parts=[]")
    from peft import LoraConfig

    config = LoraConfig(
        r=cfg.lora.r,
        lora_alpha=cfg.lora.alpha,
        lora_dropout=cfg.lora.dropout,
        target_modules=target_pattern(model, cfg.lora),
        modules_to_save=None if "projector" in cfg.freeze else [PROJECTOR_MODULE],
        bias="none",
    )
    # Empty tensors are weights sharded by ZeRO-3; their digest would be meaningless.
    cut = any(hasattr(p, "ds_numel") for p in model.parameters())
    base = {"model": asdict(_base_config(cfg)), "seed": seed, "weights_digest": None if cut else weights_digest(model)}
    return Adapters(config, base)


def add_adapters(model: nn.Module, adapters: Adapters, *, float32: bool = True) -> PeftModel:
    """``model`` with new adapters in place, which change nothing yet (their second factor is zero).

    float32: adapters in float32 also with weights of half precision; ZeRO-3 cannot mix the two.
    """
    from peft import get_peft_model

    return get_peft_model(model, adapters.config, autocast_adapter_dtype=float32)  # type: ignore[arg-type]


def has_adapters(folder: str | Path) -> bool:
    """Whether ``folder`` is a checkpoint of adapters."""
    return all((Path(folder) / name).is_file() for name in (ADAPTER, _CONFIG, _BASE))


def read_base(folder: str | Path) -> tuple[ModelConfig, int, str | None]:
    """The configuration, seed and weights digest of the model that the adapters in ``folder`` belong to."""
    path = Path(folder) / _BASE
    try:
        found = read_json(path)
        cfg = dict(found["model"])
        parts = {"encoder": EncoderConfig, "llm": LanguageModelConfig, "lora": LoraSettings}
        cfg.update({name: kind(**cfg[name]) for name, kind in parts.items()})
        model, digest = ModelConfig(**cfg), found["weights_digest"]
        places = (model.checkpoint, model.tokenizer, model.encoder.source, model.llm.source, digest)
        if not all(place is None or isinstance(place, str) for place in places):
            raise TypeError("a path is not a text")
        if not all(isinstance(part.config, dict) for part in (model.encoder, model.llm)):
            raise TypeError("a configuration is none")
        return model, int(found["seed"]), digest
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}): use another checkpoint") from error


def apply_adapters(model: nn.Module, folder: str | Path, digest: str | None) -> PeftModel:
    """The adapters of ``folder`` on their base ``model``, not merged; all of them must be there, and fit.

    ValueError if the weights of ``model`` are not those that the adapters were trained on.
    """
    if digest is None:
        logger.warning(
            "%s/%s has no digest of the base (the run cut it by ZeRO-3): nothing proves that this is the base that the "
            "adapters were trained on",
            folder,
            _BASE,
        )
    elif weights_digest(model) != digest:
        raise ValueError(
            f"the adapters in {folder} were trained on other weights than those that {_BASE} leads to now: restore "
            "the base model (its source, checkpoint or seed), or correct the place in that file"
        )
    adapted = place_adapters(model, folder)
    load_weights(adapted, folder)
    check_finite(adapter_state(adapted, folder).items(), str(folder))
    return adapted


def place_adapters(model: nn.Module, folder: str | Path) -> PeftModel:
    """``model`` with adapters as `_CONFIG` in ``folder`` describes them, without their weights.

    ValueError if it describes anything but what a run of this project writes, or peft is not installed.
    """
    if find_spec("peft") is None:
        raise ValueError(f"{folder} holds adapters: pip install 'qa-train[lora]' to read them")
    from peft import get_peft_model

    config = _read_config(Path(folder) / _CONFIG)
    try:
        # Their first values are drawn, and replaced.
        with torch.random.fork_rng(devices=[]):
            return get_peft_model(model, config)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"the adapters of {folder}/{_CONFIG} do not fit its base: {short(error)}") from error


def _read_config(path: Path) -> LoraConfig:
    """peft's configuration as a run writes it. Others could name modules to import, or a pattern that takes hours."""
    from peft import LoraConfig

    stored, plain = read_json(path), LoraConfig().to_dict()
    kept = {name: stored.get(name, plain[name]) for name in ("r", "lora_alpha", "lora_dropout", "bias")}
    targets, saved = stored.get("target_modules"), stored.get("modules_to_save")
    wrong = [name for name, value in stored.items() if name not in _FREE and value != plain.get(name)]
    wrong += [name for name, high in (("r", _MOST_RANK), ("lora_alpha", _MOST_ALPHA), ("lora_dropout", 1)) if not (
        isinstance(kept[name], int | float) and not isinstance(kept[name], bool) and 0 <= kept[name] <= high
    )]  # fmt: skip
    if not isinstance(kept["r"], int) or kept["r"] < 1:
        wrong.append("r")
    if not isinstance(targets, str) or not _TARGETS.fullmatch(targets):
        wrong.append("target_modules")
    if saved not in (None, [PROJECTOR_MODULE]):
        wrong.append("modules_to_save")
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{path} has {name} = {str(stored.get(name))[:80]}, which no run of qa-train writes: use the adapters as "
            "the run saved them"
        )
    return LoraConfig(**kept, target_modules=targets, modules_to_save=saved)


def merge_adapters(model: Any) -> Any:
    """The plain model with the adapters added into its weights (in the weights' own precision)."""
    return model.merge_and_unload(safe_merge=True)


def write_adapters(model: Any, folder: Path, base: str) -> int:
    """The adapters of ``model`` as peft reads them, for a base that is called ``base``; returns their parameters."""
    model.save_pretrained(folder)
    path = folder / _CONFIG
    found = read_json(path) | {"base_model_name_or_path": base, "auto_mapping": None, "inference_mode": True}
    path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sum(weight.numel() for weight in adapter_state(model, folder).values())


def target_pattern(model: nn.Module, lora: LoraSettings) -> str:
    """A regular expression for the full names of the linear layers that get adapters: those of the repeated layers.

    ValueError if a name of ``lora.target_modules`` is that of no layer.
    """
    linear = {
        part: {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if name.startswith(LAYERS[part]) and isinstance(module, nn.Linear)
        }
        for part in lora.parts
    }
    known = sorted(set().union(*linear.values()))
    if missing := sorted(set(lora.target_modules or ()).difference(known)):
        raise ValueError(
            f"model.lora.target_modules holds {missing}, which no layer of {' and '.join(lora.parts)} has: "
            f"{did_you_mean(missing[0], known)}use some of {', '.join(known)}, or null for all of them"
        )
    patterns = []
    for part, names in linear.items():
        wanted = names if lora.target_modules is None else names & set(lora.target_modules)
        if not wanted:
            raise ValueError(
                f"model.lora.target_modules {lora.target_modules} names no linear layer of the {part}: "
                f"use some of {', '.join(sorted(names))}, or null for all of them"
            )
        patterns.append(rf"{re.escape(LAYERS[part])}.*\.(?:{'|'.join(sorted(wanted))})")
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def _base_config(cfg: ModelConfig) -> ModelConfig:
    """``cfg`` without adapters, with folders as full paths, so that it holds from any directory."""
    return replace(
        cfg,
        checkpoint=_place(cfg.checkpoint),
        encoder=replace(cfg.encoder, source=_place(cfg.encoder.source)),
        llm=replace(cfg.llm, source=_place(cfg.llm.source)),
        tokenizer=_place(cfg.tokenizer),
        freeze=[],
        lora=LoraSettings(),
        verify=True,
    )


def _place(source: str | None) -> str | None:
    return str(Path(source).resolve()) if source is not None and Path(source).exists() else source
