"""Muon joined with AdamW: each parameter has one owner, schedulers reach both, states come back."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from qa_train.config import StageConfig, TrainerConfig
from qa_train.train import arguments
from qa_train.train.optimizer.muon import Muon, MuonWithAdamW, muon_with_adamw, shares
from tests.processes import free_port


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.ModuleDict({"embed_tokens": nn.Embedding(7, 8), "layer": nn.Linear(8, 8), "lm_head": nn.Linear(8, 7)})
    net.forward = lambda ids: net["lm_head"](torch.relu(net["layer"](net["embed_tokens"](ids))))  # type: ignore[assignment]
    return net


def optimizer(net: nn.Module) -> MuonWithAdamW:
    return muon_with_adamw(net, TrainerConfig(muon_learning_rate=0.02, learning_rate=0.01, weight_decay=0.1))


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


SHAPES = [(8, 8), (24, 8), (8, 24), (1, 5)]


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def step_with_gradients(params: list[nn.Parameter], opt: torch.optim.Optimizer, seed: int) -> None:
    for p, g in zip(params, matrices(seed)):
        p.grad = g.detach().clone()
    opt.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_is_torchs_own_within_the_rounding_of_bfloat16(dtype: torch.dtype) -> None:
    ours, theirs, start = matrices(), matrices(), matrices()
    mine = Muon([{"params": ours}], lr=0.02, weight_decay=0.1, dtype=dtype)
    stock = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for seed in (1, 2, 3):
        step_with_gradients(ours, mine, seed)
        step_with_gradients(theirs, stock, seed)
    for mine_, stock_, before in zip(ours, theirs, start):
        moved = (stock_ - before).norm()
        # In bfloat16 the two do the same operations; in float32 they differ by what bfloat16 rounds, 2^-8 a product.
        assert (mine_ - stock_).norm() < (1e-6 if dtype is torch.bfloat16 else 0.03) * moved
        assert dtype is not torch.float32 or not torch.equal(mine_, stock_)


def test_muon_in_float32_makes_no_bfloat16() -> None:
    params = matrices()
    seen = set()

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            seen.update({found.dtype} if isinstance(found, torch.Tensor) else set())
            return found

    with Watch():
        step_with_gradients(params, Muon([{"params": params}], lr=0.02, weight_decay=0.1, dtype=torch.float32), 1)
    assert torch.float32 in seen
    assert torch.bfloat16 not in seen


def test_muon_reads_the_state_of_torchs_own() -> None:
    ours, theirs = matrices(), matrices()
    stock = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    step_with_gradients(theirs, stock, 1)
    mine = Muon([{"params": ours}], lr=0.02, weight_decay=0.1, dtype=torch.float32)
    mine.load_state_dict(copy.deepcopy(stock.state_dict()))
    for mine_, stock_ in zip(ours, theirs):
        assert torch.equal(mine.state[mine_]["momentum_buffer"], stock.state[stock_]["momentum_buffer"])


def test_matrices_are_shared_out_evenly_and_a_vector_is_refused() -> None:
    nano = [(256, 256)] * 16 + [(768, 256)] * 8 + [(256, 768)] * 4
    owner = shares(nano, 2)
    work = [sum(min(s) ** 2 * sum(s) for s, o in zip(nano, owner) if o == rank) for rank in (0, 1)]
    assert max(work) <= 1.05 * min(work)
    assert set(shares(nano[:3], 5)) <= set(range(5))
    with pytest.raises(ValueError, match=r"shape \[3\]: give those to AdamW"):
        Muon([{"params": [nn.Parameter(torch.ones(3))]}], lr=0.1, weight_decay=0, dtype=torch.float32)


def _two_process_muon(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    params = matrices()
    opt = Muon([{"params": params}], lr=0.02, weight_decay=0.1, dtype=torch.float32)
    for seed in (1, 2):
        step_with_gradients(params, opt, seed)
    params[1].grad = None
    opt.step()
    torch.save([p.detach() for p in params], f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_of_muon_equal_one(tmp_path: Path) -> None:
    port = free_port()
    # Forked: two fresh processes would import everything again, ten seconds of a core.
    torch.multiprocessing.start_processes(_two_process_muon, (port, str(tmp_path)), nprocs=2, start_method="fork")
    params = matrices()
    opt = Muon([{"params": params}], lr=0.02, weight_decay=0.1, dtype=torch.float32)
    for seed in (1, 2):
        step_with_gradients(params, opt, seed)
    params[1].grad = None
    opt.step()
    for rank in (0, 1):
        for mine, theirs in zip(params, torch.load(tmp_path / f"{rank}.pt", weights_only=True)):
            assert torch.equal(mine, theirs)


def rehearsed(folder: Path, **options: object) -> None:
    given = {"max_steps": 10, "warmup_steps": 0.1, **options}
    arguments.rehearse_optimizer(TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **given))  # type: ignore[arg-type]


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial", "constant", "inverse_sqrt"])
def test_what_can_be_built_passes_the_rehearsal(optim: str, schedule: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        rehearsed(tmp_path, optim=optim, lr_scheduler_type=schedule)
    assert not [w for w in heard if "lr_scheduler.step" in str(w.message)], "it is printed at every start"


@pytest.mark.parametrize(
    ("schedule", "needed"),
    [
        ("cosine_with_min_lr", {"min_lr": 1e-6}),
        ("warmup_stable_decay", {"num_decay_steps": 3}),
        ("cosine_with_restarts", {"num_cycles": 2}),
    ],
)
def test_a_schedule_takes_what_it_needs(schedule: str, needed: dict[str, float], tmp_path: Path) -> None:
    """And what it does not know is refused, so that its own options are seen to reach it."""
    rehearsed(tmp_path, lr_scheduler_type=schedule, lr_scheduler_kwargs=needed)
    with pytest.raises(ValueError, match="unknown_option"):
        rehearsed(tmp_path, lr_scheduler_type=schedule, lr_scheduler_kwargs={**needed, "unknown_option": 1})


@pytest.mark.parametrize(
    "optim",
    ["adamw_bnb_8bit", "paged_lion_8bit", "adamw_torch_4bit", "galore_adamw", "galore_adamw_layerwise", "lomo",
     "schedule_free_adamw", "apollo_adamw", "grokadamw", "stable_adamw", "adamw_torch_npu_fused"],
)  # fmt: skip
def test_an_optimizer_that_cannot_be_built_is_refused_with_its_reason(optim: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^trainer\.optim={optim} cannot be built \(.+\): .*adamw_torch$"):
        rehearsed(tmp_path, optim=optim)


@pytest.mark.parametrize(
    ("schedule", "given", "told"),
    [
        ("linear", {"min_lr": 1e-5}, r"unexpected keyword argument 'min_lr'.*'~trainer\.lr_scheduler_kwargs\.min_lr'"),
        ("cosine", {"num_cycle": 2}, r"'~trainer\.lr_scheduler_kwargs\.num_cycle'"),
        ("constant", {"min_lr": 1e-5}, "takes none of them"),
        ("constant_with_warmup", {"power": 2}, "takes none of them"),
        ("cosine_with_min_lr", {}, r"use another, or add .*'\+trainer\.lr_scheduler_kwargs\.KEY=VALUE'"),
        ("warmup_stable_decay", {}, "num_decay_steps"),
        ("polynomial", {"lr_end": 1.0}, "lr_end"),
    ],
)
def test_a_schedule_that_cannot_be_built_is_refused_with_the_key_to_change(
    schedule: str, given: dict[str, float], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^trainer\.lr_scheduler_type={schedule} with .*{told}"):
        rehearsed(tmp_path, lr_scheduler_type=schedule, lr_scheduler_kwargs=given)


@pytest.mark.parametrize(
    ("asked", "gpu", "taken"),
    [
        ("auto", True, "adamw_torch_fused"),
        ("auto", False, "adamw_torch"),
        ("adamw_torch", True, "adamw_torch"),
        ("adamw_bnb_8bit", True, "adamw_bnb_8bit"),
        ("sgd", False, "sgd"),
    ],
)
def test_auto_is_one_kernel_on_a_gpu(asked: str, gpu: bool, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert arguments._optim(asked) == taken
    assert StageConfig().trainer.optim == "auto"


def test_muons_adamw_is_fused_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, fused, **o: made.append(fused) or adamw(groups, **o))
    net = model()
    optimizer(net)
    monkeypatch.setattr(nn.Parameter, "is_cuda", True, raising=False)
    optimizer(net)
    assert made == [None, True]
