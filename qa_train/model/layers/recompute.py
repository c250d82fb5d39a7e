"""Activation checkpointing and torch.compile, layer by layer, separately for encoder and LLM.

Checkpointing: a layer keeps its input only and runs again in the backward pass ("full"), or it keeps what is dear to
compute and makes the rest again ("selective", see ``remake``). Gradients are the same in every mode.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from qa_train.model.layers.attention import UNPADDED, unpadded_attention
from qa_train.model.layers.parts import LAYERS, module_of
from qa_train.model.layers.remake import remake

MODES = ("none", "selective", "full")


class LayerwiseRecompute:
    """Mixed into the model: what is recomputed in the backward pass, chosen separately for encoder and LLM."""

    _chosen: dict[str, str] | None = None

    def set_recompute(self, *, encoder: str = "none", llm: str = "none") -> None:
        """Choose "none", "selective" or "full" for the layers of each part, which have their adapters by now.

        ValueError for another word.
        """
        modes = {"encoder": encoder, "llm": llm}
        for part, layers in _layers(self).items():
            run = _checkpointed(modes[part], part)
            for layer in layers:
                # The two attributes are the protocol of transformers' GradientCheckpointingLayer.
                layer.gradient_checkpointing = run is not None
                layer._gradient_checkpointing_func = run
                remake(layer, modes[part] == "selective")
        self._chosen = modes

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None, **kwargs: Any) -> None:
        """As chosen by ``set_recompute`` before, else every layer as in the stock class.

        TRL's DPO switches checkpointing off for the reference and on again; the choice must be restored.
        """
        if self._chosen is not None:
            self.set_recompute(**self._chosen)
        else:
            super().gradient_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)  # type: ignore[misc]
            # transformers makes the inputs require gradients for checkpointing's older variant; a frozen encoder
            # would then pay a whole backward for nothing.
            self.disable_input_require_grads()  # type: ignore[attr-defined]


def _layers(model: Any) -> dict[str, list[Any]]:
    return {part: list(module_of(model, part).layers) for part in LAYERS}


def _checkpointed(mode: str, part: str) -> Callable[..., Any] | None:
    if mode not in MODES:
        raise ValueError(f"gradient checkpointing of the {part} is {mode!r}: use one of {', '.join(MODES)}")
    return partial(checkpoint, use_reentrant=False) if mode == "full" else None


def compile_layers(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let torch.compile fuse each encoder and decoder layer by itself, for any length.

    One layer's code serves all layers of its kind, so that it is compiled once. Attention stays outside: its
    document lengths change with every batch, and each change would compile it again. Checkpointed layers cannot
    be compiled (`qa_train.config.checks.stage_checks`). ValueError without a compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if backend == "inductor" and not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise ValueError(
            f"trainer.compile_layers needs a C++ compiler, and there is no {compiler}: install one, point CXX to it, "
            "or set trainer.compile_layers=false"
        )
    AttentionInterface.register(UNPADDED, torch.compiler.disable(unpadded_attention))
    for layers in _layers(model).values():
        for layer in layers:
            layer.compile(dynamic=True, backend=backend)
