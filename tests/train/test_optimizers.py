"""Muon joined with AdamW: each parameter has one owner, schedulers reach both, states come back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qa_train.train.optimizers import MuonWithAdamW, muon_with_adamw


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.ModuleDict({"embed_tokens": nn.Embedding(7, 8), "layer": nn.Linear(8, 8), "lm_head": nn.Linear(8, 7)})
    net.forward = lambda ids: net["lm_head"](torch.relu(net["layer"](net["embed_tokens"](ids))))  # type: ignore[assignment]
    return net


def optimizer(net: nn.Module) -> MuonWithAdamW:
    return muon_with_adamw(
        net, muon_learning_rate=0.02, learning_rate=0.01, betas=(0.9, 0.98), epsilon=1e-8, weight_decay=0.1
    )


def train(net: nn.Module, opt: MuonWithAdamW, steps: int) -> list[float]:
    losses = []
    ids = torch.arange(7)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(net.forward(ids), (ids + 1) % 7)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses


def test_hidden_matrices_are_muons_and_everything_else_adamws() -> None:
    net = model()
    opt = optimizer(net)
    muon, adamw = opt.halves
    assert [p.shape for g in muon.param_groups for p in g["params"]] == [net["layer"].weight.shape]
    owned = [p for g in opt.param_groups for p in g["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(net.parameters()))
    no_decay = [p for g in adamw.param_groups if g["weight_decay"] == 0 for p in g["params"]]
    assert {p.ndim for p in no_decay} == {1}


def test_it_learns_and_a_scheduler_reaches_both_halves() -> None:
    net = model()
    opt = optimizer(net)
    losses = train(net, opt, 60)
    assert losses[-1] < losses[0] / 2
    torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.0)
    before = copy.deepcopy(net.state_dict())
    train(net, opt, 1)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_restored_optimizer_continues_exactly() -> None:
    net = model()
    opt = optimizer(net)
    train(net, opt, 3)
    twin = copy.deepcopy(net)
    twin.forward = lambda ids: twin["lm_head"](torch.relu(twin["layer"](twin["embed_tokens"](ids))))  # type: ignore[assignment]
    other = optimizer(twin)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert train(net, opt, 3) == train(twin, other, 3)
    # The groups are still shared after the restore.
    other.param_groups[0]["lr"] = 0.5
    assert other.halves[0].param_groups[0]["lr"] == 0.5


def test_nothing_to_orthogonalize_is_an_error() -> None:
    net = model()
    net["layer"].requires_grad_(False)
    with pytest.raises(ValueError, match="set it to null"):
        optimizer(net)
