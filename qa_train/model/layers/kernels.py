"""Liger's fused kernels for the LLM: RMSNorm, rotary positions and SwiGLU, each in one pass over memory.

Their results differ from the plain operations by rounding only. The encoder has LayerNorm and GELU, which torch has
fused already; Liger's fused cross-entropy stays off, because the head sees supervised rows only (``head.py``).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from qa_train.model.layers.parts import module_of


def use_liger_kernels(model: Any) -> None:
    """Replace the three operations in the LLM of ``model``, in place; the weights and their names stay.

    Liger replaces the rotary function of the whole family, so later models of it in this process have it too.
    ValueError without CUDA or the library, or for an LLM that the kernels do not fit.
    """
    if find_spec("liger_kernel") is None:
        raise ValueError(
            "trainer.use_liger_kernel needs liger-kernel: pip install 'qa-train[kernels]', or set "
            "trainer.use_liger_kernel=false"
        )
    if not torch.cuda.is_available():
        raise ValueError("trainer.use_liger_kernel needs a CUDA device: set trainer.use_liger_kernel=false on a CPU")
    llm = module_of(model, "llm")
    if llm.config.hidden_act not in ("silu", "swish"):
        raise ValueError(
            f"trainer.use_liger_kernel computes SwiGLU, and this LLM has {llm.config.hidden_act}: "
            "set trainer.use_liger_kernel=false"
        )
    from liger_kernel.transformers import monkey_patch

    # The families of ``sources.LLM_FAMILIES``; each name is that of its function.
    apply = getattr(monkey_patch, f"apply_liger_kernel_to_{llm.config.model_type}", None)
    if apply is None:
        raise ValueError(f"liger-kernel has nothing for {llm.config.model_type}: set trainer.use_liger_kernel=false")
    apply(rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=llm)
