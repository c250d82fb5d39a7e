"""The parts of a model, and the prefixes of their weights' names, which are defined only here.

A model has three parts: "encoder", "projector" and "llm"; the head and the embedding are the LLM's. Works on names and
needs no torch, so that the planner can use it.
"""

from __future__ import annotations

import re
from typing import Any

PREFIXES: dict[str, tuple[str, ...]] = {
    "encoder": ("model.audio_tower.",),
    "projector": ("model.multi_modal_projector.",),
    "llm": ("model.language_model.", "lm_head."),
}
PARTS = tuple(PREFIXES)
# The repeated layers.
LAYERS = {"encoder": "model.audio_tower.layers.", "llm": "model.language_model.layers."}
EMBEDDING = "model.language_model.embed_tokens."
HEAD = "lm_head."
# The module as peft names it in an adapter.
PROJECTOR_MODULE = "multi_modal_projector"
# Matrices that no hidden layer holds, by parts of their names.
NOT_HIDDEN = ("embed_tokens", "embed_positions", "lm_head", "multi_modal_projector")
# The modules before the first layer of a part.
BEFORE_THE_LAYERS = ("conv1.", "conv2.", "embed_positions.", "embed_tokens.")
# What peft puts before the names of the model that it wraps.
PEFT = "base_model.model."

# How the encoder's weights begin in WhisperForConditionalGeneration, WhisperModel, Qwen2-Audio (as released, as
# transformers names it), and alone.
ENCODER_IN_FILES = ("model.encoder.", "encoder.", "audio_tower.", "model.audio_tower.", "")

# Name in a file of the first Qwen2-Audio release -> name in the model; the first match holds, and no other matches what
# it gives.
_RENAMED = (
    ("language_model.lm_head.", "lm_head."),
    # As transformers 5 writes it under ZeRO-3; its own loader takes it as well.
    ("language_model.model.model.", "model.language_model."),
    ("language_model.model.", "model.language_model."),
    ("audio_tower.", "model.audio_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


def part_of(name: str) -> str:
    """The part that the parameter ``name`` belongs to, with or without peft's prefix; ValueError for none."""
    plain = name.removeprefix(PEFT)
    for part, prefixes in PREFIXES.items():
        if plain.startswith(prefixes):
            return part
    raise ValueError(f"the parameter {name} belongs to no part of the model: {', '.join(PARTS)}")


def module_of(model: Any, part: str) -> Any:
    """The module of a part: it contains all its weights except the head."""
    return model.get_submodule(PREFIXES[part][0].removesuffix("."))


def model_name(key: str) -> str:
    """The name in the model of a weight that a file has under ``key``."""
    for old, new in _RENAMED:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def key_mapping() -> dict[str, str]:
    """The same for transformers' ``from_pretrained``: patterns of names in files -> what takes their place."""
    return {f"^{re.escape(old)}": new for old, new in _RENAMED}
