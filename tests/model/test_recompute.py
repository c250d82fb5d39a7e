"""Activation checkpointing by part: the same gradients in every mode, and only the asked work done twice."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch._dynamo
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from qa_train.model.layers.recompute import MODES, compile_layers
from tests.cuda_without_gpu.pretended import Held
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


@pytest.mark.slow
def test_compiled_layers_give_the_same_gradients_for_any_length(twins: Twins) -> None:
    model = twins.ours.train()
    expected = [step(model, Batch(rows)) for rows in (SHORT, [[4, -77, 3], [6]])]
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
    torch._dynamo.reset()


def test_a_missing_compiler_is_named(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="there is no no-such-compiler"):
        compile_layers(twins.ours)


@pytest.fixture(params=[0.0, 0.3], ids=["no dropout", "dropout"])
def adapted(twins: Twins, request: pytest.FixtureRequest) -> Any:
    """The model with adapters of rank 3 on all linear layers."""
    targets = r".*layers\..*(_proj|fc1|fc2)"
    config = LoraConfig(r=3, target_modules=targets, lora_dropout=request.param, init_lora_weights=False)
    return get_peft_model(twins.ours.train(), config)


def test_adapters_learn_the_same_and_keep_nothing(adapted: Any) -> None:
    base, batch = adapted.get_base_model(), Batch(SHORT)
    found, work_done = {}, {}
    for mode in MODES:
        base.set_recompute(encoder=mode, llm=mode)
        torch.manual_seed(7)
        found[mode] = step(adapted, batch)
        work_done[mode] = work(adapted, batch)[0]
    assert len(found["none"][1]) > 20
    for mode in ("selective", "full"):
        assert found[mode][0] == found["none"][0]
        assert all(torch.equal(found[mode][1][key], gradient) for key, gradient in found["none"][1].items())
    # Of every adapter the first product, to its rank.
    assert 0 < work_done["selective"] - work_done["none"] < 0.05 * work_done["none"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_adapters_in_float32_and_autocast(twins: Twins, dtype: torch.dtype, autocast: bool) -> None:
    """What is made again is of the type that it was, and under the autocast of then."""
    model, batch = twins.ours.train().to(dtype), Batch(SHORT)
    if dtype != torch.float32 or autocast:
        config = LoraConfig(r=3, target_modules=r".*layers\..*(_proj|fc1|fc2)", init_lora_weights=False)
        model = get_peft_model(model, config).get_base_model()
    found = {}
    for mode in ("none", "selective"):
        model.set_recompute(encoder=mode, llm=mode)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**batch.joined(), labels=batch.labels).loss
        loss.backward()
        found[mode] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.equal(found["selective"][name], gradient) for name, gradient in found["none"].items())


def held(model: Any, batch: Batch) -> int:
    """Bytes that a forward pass leaves for the backward pass."""
    with Held(model, "cpu") as counter:
        loss = model(**batch.joined(), labels=batch.labels).loss
        gc.collect()
        found = counter.now
    assert loss.requires_grad
    return found


def test_selective_keeps_less_than_none_and_more_than_full(adapted: Any) -> None:
    base, batch, found = adapted.get_base_model(), Batch(SHORT), {}
    for mode in MODES:
        base.set_recompute(encoder=mode, llm=mode)
        found[mode] = held(adapted, batch)
    assert 1.5 * found["full"] < found["selective"] < 0.85 * found["none"]
    # Switched off, it is as before.
    base.set_recompute()
    assert held(adapted, batch) == found["none"]


def test_an_input_that_is_changed_in_place_is_an_error(twins: Twins) -> None:
    model = twins.ours.train()
    model.set_recompute(llm="selective")
    norm = model.model.language_model.layers[0].post_attention_layernorm

    def change(_module: Any, inputs: tuple[torch.Tensor], _out: Any) -> None:
        with torch.no_grad():
            inputs[0].mul_(2)

    norm.register_forward_hook(change)
    with pytest.raises(RuntimeError, match="changed in place"):
        step(model, Batch(SHORT))


def test_a_result_that_is_changed_in_place_is_kept(twins: Twins) -> None:
    model, found = twins.ours.train(), {}
    norm = model.model.language_model.layers[0].input_layernorm
    norm.register_forward_hook(lambda _m, _i, out: out.mul_(2))
    for mode in ("none", "selective"):
        model.set_recompute(llm=mode)
        found[mode] = step(model, Batch(SHORT))
    assert all(torch.equal(found["selective"][1][name], value) for name, value in found["none"][1].items())


def test_gradients_can_be_asked_for_twice(twins: Twins) -> None:
    model, batch = twins.ours.train(), Batch(SHORT)
    model.set_recompute(encoder="selective", llm="selective")
    _, once = step(model, batch)
    model.zero_grad()
    loss = model(**batch.joined(), labels=batch.labels).loss
    loss.backward(retain_graph=True)
    loss.backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, 2 * once[name], rtol=1e-6, atol=0)
