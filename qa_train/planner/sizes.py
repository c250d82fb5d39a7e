"""How many parameters a configuration has, by part, and how many of them train; counted on the meta device."""

from __future__ import annotations

import re
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qa_train.config import ModelConfig
from qa_train.model.flops import Shapes
from qa_train.model.layers.parts import EMBEDDING, HEAD, part_of


@dataclass(frozen=True)
class Sizes:
    """Parameters by part (encoder, projector, embedding, llm layers, head, adapters), and of these the trained ones."""

    shapes: Shapes
    total: dict[str, int]
    trained: dict[str, int]
    # Parameters of the largest single weight, which ZeRO-3 gathers at once.
    largest: int
    # The source of the shapes, if it is not what the run will read.
    note: str = ""

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(self.total.values())

    @property
    def trained_parameters(self) -> int:
        """Those that train."""
        return sum(self.trained.values())


def measure(cfg: ModelConfig) -> Sizes:
    """Build the model without memory and count. ValueError if its shapes cannot be known here."""
    from qa_train.model import build_model, freeze
    from qa_train.model.lora import target_pattern

    cfg, note = _without_absent_sources(cfg)
    model, _ = build_model(cfg, meta=True)
    freeze(model, cfg.freeze)
    total, trained = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        part = _part(name)
        total[part] += parameter.numel()
        # With adapters only they train, and the projector unless it is frozen.
        alone = bool(cfg.lora.parts) and part != "projector"
        trained[part] += 0 if alone else parameter.numel() * parameter.requires_grad
    if cfg.lora.parts:
        targets, modules = re.compile(target_pattern(model, cfg.lora)), dict[str, Any](model.named_modules())
        linear = [module for name, module in modules.items() if targets.fullmatch(name)]
        trained["adapters"] = sum(cfg.lora.r * (each.in_features + each.out_features) for each in linear)
        # Of the projector peft trains a copy and also keeps the original.
        total["adapters"] = trained["adapters"] + trained["projector"]
    largest = max(parameter.numel() for parameter in model.parameters())
    return Sizes(Shapes.of(model.config), dict(total), {k: v for k, v in trained.items() if v}, largest, note)


def _part(name: str) -> str:
    if name.startswith((EMBEDDING, HEAD)):
        return "head" if name.startswith(HEAD) else "embedding"
    part = part_of(name)
    return "llm layers" if part == "llm" else part


def _without_absent_sources(cfg: ModelConfig) -> tuple[ModelConfig, str]:
    """``cfg`` with written shapes in place of weights that are not on this machine, and a sentence about it."""
    cfg, absent = deepcopy(cfg), []
    if _is_absent(cfg.checkpoint) and cfg.encoder.config and cfg.llm.config:
        absent.append(f"model.checkpoint={cfg.checkpoint}")
        cfg.checkpoint = None
    sections: list[tuple[str, Any]] = [("encoder", cfg.encoder), ("llm", cfg.llm)]
    for part, section in sections:
        if cfg.checkpoint is None and _is_absent(section.source) and section.config:
            absent.append(f"model.{part}.source={section.source}")
            section.source = None
    if absent and cfg.checkpoint is None and cfg.llm.source is None and _is_absent(cfg.tokenizer):
        cfg.tokenizer = "builtin:nano"
    return cfg, f"not on this machine, shapes as written in the configuration: {', '.join(absent)}" if absent else ""


def _is_absent(source: str | None) -> bool:
    return source is not None and not source.startswith(("package:", "builtin:")) and not Path(source).exists()
