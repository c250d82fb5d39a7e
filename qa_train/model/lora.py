"""Low-rank adapters through peft: what they sit on, what a checkpoint of them holds, and how they come back.

A checkpoint of a run with adapters is a folder in peft's own format (``adapter_model.safetensors``,
``adapter_config.json``), with the projector if it trains, and ``base.json``: how to build the model that the adapters
were trained on, and a digest of its weights. The base itself is not copied.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from qa_train.config import EncoderConfig, LanguageModelConfig, LoraSettings, ModelConfig
from qa_train.model.weights import weights_digest

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

_ADAPTER = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_BASE = "base.json"
# The repeated layers of a part; its convolutions, embeddings and head get no adapters.
_LAYERS = {"encoder": "model.audio_tower.layers.", "llm": "model.language_model.layers."}
_PROJECTOR = "multi_modal_projector"


@dataclass(frozen=True)
class Adapters:
    """peft's configuration, and the record from which the base is built again."""

    config: LoraConfig
    base: dict[str, Any]


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
        target_modules=_targets(model, cfg.lora),
        modules_to_save=None if "projector" in cfg.freeze else [_PROJECTOR],
        bias="none",
    )
    # Empty tensors are weights that ZeRO-3 has cut; their digest would say nothing.
    cut = any(hasattr(p, "ds_numel") for p in model.parameters())
    base = {"model": asdict(_base_config(cfg)), "seed": seed, "weights_digest": None if cut else weights_digest(model)}
    return Adapters(config, base)


def add_adapters(model: nn.Module, adapters: Adapters, *, float32: bool = True) -> PeftModel:
    """``model`` with new adapters in place, which change nothing yet (their second factor is zero).

    float32: adapters in float32 also beside weights of half precision; ZeRO-3 cannot mix the two.
    """
    from peft import get_peft_model

    adapted = get_peft_model(model, adapters.config, autocast_adapter_dtype=float32)  # type: ignore[arg-type]
    # With recomputation on, peft makes the inputs require gradients for its older variant, which ours is not: a
    # frozen encoder would keep its activations and pay a whole backward for nothing.
    if getattr(model, "_require_grads_hooks", None):
        model.disable_input_require_grads()  # type: ignore[operator]
    return adapted


def write_base(folder: Path, adapters: Adapters) -> None:
    """Put the record of the base beside the adapters, in place of peft's empty form of a model card."""
    (folder / "README.md").unlink(missing_ok=True)
    (folder / _BASE).write_text(json.dumps(adapters.base, indent=2, sort_keys=True) + "\n")


def has_adapters(folder: str | Path) -> bool:
    """Whether ``folder`` is a checkpoint of adapters."""
    return all((Path(folder) / name).is_file() for name in (_ADAPTER, _CONFIG, _BASE))


def read_base(folder: str | Path) -> tuple[ModelConfig, int, str | None]:
    """The configuration, seed and weights digest of the model that the adapters in ``folder`` belong to."""
    try:
        found = json.loads((Path(folder) / _BASE).read_text())
        cfg = dict(found["model"])
        parts = {"encoder": EncoderConfig, "llm": LanguageModelConfig, "lora": LoraSettings}
        cfg.update({name: kind(**cfg[name]) for name, kind in parts.items()})
        return ModelConfig(**cfg), int(found["seed"]), found["weights_digest"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}/{_BASE} is damaged ({error}): use another checkpoint") from error


def apply_adapters(model: nn.Module, folder: str | Path, digest: str | None) -> PeftModel:
    """The adapters of ``folder`` on their base ``model``, not merged.

    ValueError if the weights of ``model`` are not those that the adapters were trained on.
    """
    if find_spec("peft") is None:
        raise ValueError(f"{folder} holds adapters: pip install 'qa-train[lora]' to read them")
    from peft import PeftModel

    if digest is not None and weights_digest(model) != digest:
        raise ValueError(
            f"the adapters in {folder} were trained on other weights than those that {_BASE} leads to now: restore "
            "the base model (its source, checkpoint or seed), or correct the place in that file"
        )
    return PeftModel.from_pretrained(model, str(folder))  # type: ignore[arg-type]


def merge_adapters(model: Any) -> Any:
    """The plain model with the adapters added into its weights (in the weights' own precision)."""
    return model.merge_and_unload(safe_merge=True)


def _targets(model: nn.Module, lora: LoraSettings) -> str:
    """A regular expression for the full names of the linear layers that get adapters."""
    patterns = []
    for part in lora.parts:
        prefix = _LAYERS[part]
        inside = [(name, module) for name, module in model.named_modules() if name.startswith(prefix)]
        names = {name.rpartition(".")[2] for name, module in inside if isinstance(module, nn.Linear)}
        wanted = names if lora.target_modules is None else names & set(lora.target_modules)
        if not wanted:
            raise ValueError(
                f"model.lora.target_modules {lora.target_modules} names no linear layer of the {part}: "
                f"use some of {', '.join(sorted(names))}, or null for all of them"
            )
        patterns.append(rf"{re.escape(prefix)}.*\.(?:{'|'.join(sorted(wanted))})")
        missing = set(lora.target_modules or ()) - names
        if missing and len(lora.parts) == 1:
            raise ValueError(f"model.lora.target_modules holds {sorted(missing)}, which the {part} does not have")
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
    )


def _place(source: str | None) -> str | None:
    return str(Path(source).resolve()) if source is not None and Path(source).exists() else source
