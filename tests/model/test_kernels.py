"""Liger's kernels need CUDA: here what is asked of the library, and the errors."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from qa_train.model.layers import kernels
from tests.model.conftest import Twins, make_twins


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A library that notes what it is asked for, on a machine that seems to have CUDA."""
    asked: dict[str, Any] = {}
    library, transformers, patches = (ModuleType(name) for name in ("liger_kernel", "transformers", "monkey_patch"))

    def patch(family: str) -> Any:
        def apply(
            rope: bool = True, cross_entropy: bool = False, fused_linear_cross_entropy: bool = True,
            rms_norm: bool = True, swiglu: bool = True, model: Any = None,
        ) -> None:  # fmt: skip
            asked.update(family=family, rope=rope, rms_norm=rms_norm, swiglu=swiglu, model=model)
            asked.update(losses=(cross_entropy, fused_linear_cross_entropy))

        return apply

    for family in ("qwen2", "qwen3", "llama"):
        setattr(patches, f"apply_liger_kernel_to_{family}", patch(family))
    transformers.monkey_patch = patches  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", library)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", transformers)
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return asked


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_only_the_llm_is_fused_and_never_the_loss(family: str, liger: dict[str, Any]) -> None:
    model = make_twins(model_type=family).ours
    kernels.use_liger_kernels(model)
    assert liger.pop("model") is model.model.language_model
    assert liger == {"family": family, "rope": True, "rms_norm": True, "swiglu": True, "losses": (False, False)}


def test_what_the_kernels_do_not_fit_is_refused(liger: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="computes SwiGLU, and this LLM has gelu"):
        kernels.use_liger_kernels(make_twins(hidden_act="gelu").ours)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        kernels.use_liger_kernels(make_twins().ours)
    assert not liger


def test_a_missing_library_is_named(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'qa-train\[kernels\]'"):
        kernels.use_liger_kernels(twins.ours)
