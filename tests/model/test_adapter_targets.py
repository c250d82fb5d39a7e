"""Which layers get adapters, and what is said about names that no layer has."""

from __future__ import annotations

import re

import pytest
from torch import nn

from qa_train.config import LoraSettings
from qa_train.model.layers.parts import LAYERS
from qa_train.model.lora import target_pattern

ENCODER, LLM = ("q_proj", "k_proj", "fc1"), ("q_proj", "o_proj", "gate_proj")


def nested(layers: dict[str, nn.Module]) -> nn.Module:
    """A module with these at these dotted names."""
    root = nn.Module()
    for path, layer in layers.items():
        *outer, last = path.split(".")
        at: nn.Module = root
        for name in outer:
            if not hasattr(at, name):
                at.add_module(name, nn.Module())
            at = getattr(at, name)
        at.add_module(last, layer)
    return root


def model() -> nn.Module:
    """Two layers of each part, with what gets no adapters beside them."""
    found: dict[str, nn.Module] = {f"{LAYERS['encoder']}0.norm": nn.LayerNorm(2), "lm_head": nn.Linear(2, 2)}
    for part, names in (("encoder", ENCODER), ("llm", LLM)):
        found |= {f"{LAYERS[part]}{i}.{name}": nn.Linear(2, 2) for i in range(2) for name in names}
    return nested(found)


@pytest.mark.parametrize(
    ("parts", "names", "count"),
    [
        (["encoder"], None, 6),
        (["llm"], None, 6),
        (["encoder", "llm"], None, 12),
        (["encoder", "llm"], ["q_proj"], 4),
        (["encoder", "llm"], ["q_proj", "fc1"], 6),
        (["encoder", "llm"], ["k_proj", "gate_proj"], 4),
    ],
)
def test_layers_that_get_adapters(parts: list[str], names: list[str] | None, count: int) -> None:
    net = model()
    pattern = re.compile(target_pattern(net, LoraSettings(parts=parts, target_modules=names)))
    assert sum(pattern.fullmatch(name) is not None for name, _ in net.named_modules()) == count


@pytest.mark.parametrize(
    ("parts", "names", "message"),
    [
        (["encoder", "llm"], ["q_proj", "fc2"], "holds ['fc2'], which no layer of encoder and llm has: did you mean"),
        (["encoder", "llm"], ["q_prj"], "did you mean q_proj? use some of fc1, gate_proj, k_proj, o_proj, q_proj"),
        (["llm", "encoder"], ["q_proj", "gate", "fc1"], "holds ['gate'], which no layer of llm and encoder has"),
        (["llm", "encoder"], ["norm", "fc1", "q_proj"], "holds ['norm']"),
        (["llm"], ["q_proj", "fc1"], "holds ['fc1'], which no layer of llm has"),
        (["encoder", "llm"], ["fc1"], "names no linear layer of the llm: use some of gate_proj, o_proj, q_proj"),
        (["encoder", "llm"], ["o_proj"], "names no linear layer of the encoder: use some of fc1, k_proj, q_proj"),
    ],
)  # fmt: skip
def test_names_that_no_layer_has_are_refused(parts: list[str], names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        target_pattern(model(), LoraSettings(parts=parts, target_modules=names))
