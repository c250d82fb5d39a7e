"""Activation checkpointing by part: the same gradients in every mode, and only the asked work done twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from qa_train.model.layers.recompute import MODES, compile_layers, keeps
from tests.model.conftest import Batch, Twins

SHORT = [[3, -20, 2], [5, -133, 4], [9]]


def step(model: torch.nn.Module, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch.joined(), labels=batch.labels).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


class Gelus(TorchDispatchMode):
    """Counts how often the encoder's activation function runs forward."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.gelu.default
        return func(*args, **(kwargs or {}))


def work(model: torch.nn.Module, batch: Batch) -> tuple[int, int]:
    """FLOPs of matrix products, convolutions and attention, and runs of GELU, of one forward and backward."""
    with FlopCounterMode(display=False) as counter, Gelus() as gelus:
        step(model, batch)
    return counter.get_total_flops(), gelus.count


@pytest.mark.parametrize("encoder", MODES)
@pytest.mark.parametrize("llm", MODES)
def test_gradients_are_equal_in_every_mode(twins: Twins, encoder: str, llm: str) -> None:
    model, batch = twins.ours.train(), Batch(SHORT)
    loss, gradients = step(model, batch)
    model.set_recompute(encoder=encoder, llm=llm)
    found_loss, found = step(model, batch)
    assert found_loss == loss
    assert found.keys() == gradients.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in gradients.items())


def test_selective_repeats_no_matrix_product_and_full_repeats_all(twins: Twins) -> None:
    model, batch = twins.ours.train(), Batch(SHORT)
    layers = len(model.model.audio_tower.layers)
    plain, gelus = work(model, batch)
    model.set_recompute(encoder="selective", llm="selective")
    assert work(model, batch) == (plain, gelus + layers)
    model.set_recompute(encoder="full", llm="none")
    flops, count = work(model, batch)
    encoder = flops - plain
    assert count == gelus + layers
    model.set_recompute(encoder="none", llm="full")
    llm = work(model, batch)[0] - plain
    model.set_recompute(encoder="full", llm="full")
    assert encoder > 0
    assert llm > 0
    assert work(model, batch)[0] == plain + encoder + llm


def test_trl_can_switch_it_off_and_on_again(twins: Twins) -> None:
    model = twins.ours
    model.set_recompute(encoder="none", llm="full")
    model.activation_checkpointing_disable()
    assert not any(layer.gradient_checkpointing for layer in model.model.language_model.layers)
    model.activation_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in model.model.language_model.layers)
    assert not any(layer.gradient_checkpointing for layer in model.model.audio_tower.layers)
    with pytest.raises(ValueError, match="use one of none, selective, full"):
        model.set_recompute(encoder="some")


@pytest.mark.parametrize("mode", ["none", "full"])
def test_compiled_layers_give_the_same_gradients_for_any_length(twins: Twins, mode: str) -> None:
    model = twins.ours.train()
    expected = [step(model, Batch(rows)) for rows in (SHORT, [[4, -77, 3], [6]])]
    model.set_recompute(encoder=mode, llm=mode)
    plain = work(model, Batch(SHORT))
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        """All that depends on our code: what is traced, and when again. Making machine code of it takes minutes."""
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile_layers(model, backend=backend)
    found_loss, found = step(model, Batch(SHORT))
    assert found_loss == pytest.approx(expected[0][0], rel=1e-5)
    for name, gradient in expected[0][1].items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    # Before and after the attention, of an encoder layer and of a decoder layer at least.
    compiled = len(graphs)
    assert compiled >= 4
    operations = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    assert any("linear" in name for name in operations)
    assert any("gelu" in name for name in operations)
    assert any("silu" in name for name in operations)
    found_loss, _ = step(model, Batch([[4, -77, 3], [6]]))
    assert found_loss == pytest.approx(expected[1][0], rel=1e-5)
    assert len(graphs) == compiled, "another length was compiled again"
    # What is compiled is recomputed as before.
    assert work(model, Batch(SHORT))[0] == plain[0]
    torch._dynamo.reset()


def test_a_missing_compiler_is_named(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="there is no no-such-compiler"):
        compile_layers(twins.ours)


class Kept(TorchDispatchMode):
    """Bytes that "selective" keeps of the results of products, by whether the inner dimension is the rank."""

    def __init__(self, rank: int | None) -> None:
        super().__init__()
        self.rank, self.kept, self.again = rank, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::addmm"):
            kept = keeps(func._schema.name, args, self.rank)
            self.kept += kept * out.nbytes
            self.again += (not kept) * out.nbytes
        return out


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_wide_products_of_adapters_are_computed_again(twins: Twins, dropout: float) -> None:
    rank, batch = 3, Batch(SHORT)
    adapted: Any = get_peft_model(
        twins.ours.train(),
        LoraConfig(
            r=rank, target_modules=r".*layers\..*(_proj|fc1|fc2)", lora_dropout=dropout, init_lora_weights=False
        ),
    )
    base = adapted.get_base_model()
    base.disable_input_require_grads()
    found, work_done, kept = {}, {}, {}
    for name, mode, known in (("none", "none", None), ("all", "selective", None), ("rank", "selective", rank)):
        base.set_recompute(encoder=mode, llm=mode, rank=known)
        torch.manual_seed(7)
        found[name] = step(adapted, batch)
        work_done[name] = work(adapted, batch)[0]
        with torch.no_grad(), Kept(known) as counter:
            adapted(**batch.joined())
        kept[name] = (counter.kept, counter.again)
    for name in ("all", "rank"):
        assert found[name][0] == found["none"][0]
        assert all(torch.equal(found[name][1][key], gradient) for key, gradient in found["none"][1].items())
    assert len(found["none"][1]) > 20
    # The second products and nothing else: they are few operations, and nearly half of the bytes.
    assert work_done["all"] == work_done["none"]
    assert 0 < work_done["rank"] - work_done["none"] < 0.05 * work_done["none"]
    assert kept["all"] == (sum(kept["rank"]), 0)
    assert 0.4 * kept["all"][0] < kept["rank"][1] < 0.5 * kept["all"][0]
