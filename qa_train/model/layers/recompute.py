"""Activation checkpointing and torch.compile, layer by layer, separately for encoder and LLM.

Checkpointing: a layer keeps its input only ("full"), or also the results of its matrix products and attention
("selective"), and computes the rest again in the backward pass. The second product of an adapter, from its rank to the
width of a layer, is computed again too: as much memory as the layer's own product for a hundredth of its work.
Gradients are the same in every mode.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import AttentionInterface

from qa_train.model.layers.attention import UNPADDED, unpadded_attention
from qa_train.model.layers.parts import LAYERS, module_of

MODES = ("none", "selective", "full")

# Operations whose results "selective" keeps: recomputing any of them costs more than its memory is worth.
_PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm"})
_KEPT = _PRODUCTS | frozenset(
    {
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_efficient_attention",
        "torch_attn::_varlen_attn",
    }
)


class LayerwiseRecompute:
    """Mixed into the model: what is recomputed in the backward pass, chosen separately for encoder and LLM."""

    _chosen: dict[str, Any] | None = None

    def set_recompute(self, *, encoder: str = "none", llm: str = "none", rank: int | None = None) -> None:
        """Choose "none", "selective" or "full" for the layers of each part. ValueError for another word.

        rank: that of the model's adapters, if it has any.
        """
        modes = {"encoder": encoder, "llm": llm}
        for part, layers in _layers(self).items():
            run = _checkpointed(modes[part], part, rank)
            for layer in layers:
                # The two attributes are the protocol of transformers' GradientCheckpointingLayer.
                layer.gradient_checkpointing = run is not None
                layer._gradient_checkpointing_func = run
        self._chosen = {**modes, "rank": rank}

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


def _checkpointed(mode: str, part: str, rank: int | None) -> Callable[..., Any] | None:
    if mode not in MODES:
        raise ValueError(f"gradient checkpointing of the {part} is {mode!r}: use one of {', '.join(MODES)}")
    if mode == "none":
        return None
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, partial(_policy, rank))
    # Without the decorator that forbids torch.compile whatever is called inside: the layer must be compiled there.
    return partial(checkpoint.__wrapped__, **options)  # type: ignore[attr-defined]


def keeps(operation: str, args: Any, rank: int | None) -> bool:
    """Whether "selective" keeps the result of ``operation`` ("aten::mm"), called with ``args``.

    Products by their inner dimension: an adapter's second product has the rank there.
    """
    return operation in _KEPT and not (operation in _PRODUCTS and args[-1].shape[-2] == rank)


def _policy(rank: int | None, _context: Any, operation: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = keeps(operation.name().split(".")[0], args, rank)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def compile_layers(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let torch.compile fuse each encoder and decoder layer by itself, for any length.

    One layer's code serves all layers of its kind, so that it is compiled once. Attention stays outside: its
    document lengths change with every batch, and each change would compile it again. Under "full" checkpointing the
    layer is compiled inside the checkpoint. ValueError without a compiler.
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
