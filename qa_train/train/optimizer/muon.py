"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum of a weight matrix, orthogonalized.

``torch.optim.Muon`` always orthogonalizes in bfloat16, which a CPU without such instructions computes up to a hundred
times slower than float32, and every process does all matrices. This one computes in the run's own precision, and shares
the matrices out: each process orthogonalizes some, and all exchange the updates.

It steps the hidden matrices of the LLM and the encoder; AdamW steps everything else. Both are joined to one optimizer,
so that schedulers, checkpoints and accelerate see a single one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qa_train.config import TrainerConfig
from qa_train.model.layers.parts import NOT_HIDDEN
from qa_train.train.optimizer.groups import PartRates

# Newton-Schulz coefficients of the post, and of torch.optim.Muon.
_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_STEPS = 5
_EPSILON = 1e-7
# Two-dimensional parameters for AdamW although they may be in a hidden layer.
_NOT_MUON = (*NOT_HIDDEN, "lora_")


def orthogonalized(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values between 0.7 and 1.2; [A, B] -> [A, B] in ``dtype``.

    Five Newton-Schulz iterations of a quintic polynomial, as in ``torch.optim.Muon``.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.size(0) > matrix.size(1)
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=_EPSILON)
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def shares(shapes: Iterable[tuple[int, int]], count: int) -> list[int]:
    """Which of ``count`` processes orthogonalizes each matrix, so that all have about the same work.

    The largest first, each to the process with the least so far: the same on every process.
    """
    work = [min(shape) * sum(shape) * min(shape) for shape in shapes]
    owner, load = [0] * len(work), [0] * count
    for i in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        owner[i] = load.index(min(load))
        load[owner[i]] += work[i]
    return owner


class Muon(torch.optim.Optimizer):
    """Muon for matrices, with Nesterov momentum, decoupled weight decay, and updates of AdamW's usual size.

    The update is scaled by 0.2 * sqrt(max(A, B)) (arXiv 2502.16982), so that AdamW's learning rates fit. With several
    processes, ``step`` is a collective call, and gradients must be the same on all of them, as under DDP. The state is
    ``torch.optim.Muon``'s: a checkpoint does not depend on precision or on the number of processes.

    Args:
        groups: parameter groups of matrices, with their own "lr" and "weight_decay" or these.
        dtype: precision of the iterations; bfloat16 where the run computes in it, else float32.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype
        for group in self.param_groups:
            if wrong := [list(p.shape) for p in group["params"] if p.ndim != 2]:
                raise ValueError(f"Muon is for matrices; found parameters of shape {wrong[0]}: give those to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure: compute the loss before the step")
        todo = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        moved = [self._momentum(p, group["momentum"]) for group, p in todo]
        for (group, p), update in zip(todo, self._orthogonalized(moved), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """The matrix to orthogonalize: the gradient, mixed twice with its running mean (Nesterov)."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad, memory_format=torch.preserve_format)
        mean: Tensor = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(mean, momentum)

    def _orthogonalized(self, matrices: list[Tensor]) -> list[Tensor]:
        """All matrices orthogonalized: this process's share computed here, the rest by the others."""
        if not matrices:
            return []
        dtype = self.dtype
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not several:
            return [orthogonalized(matrix, dtype) for matrix in matrices]
        rank, count = dist.get_rank(), dist.get_world_size()
        owner = shares([(m.size(0), m.size(1)) for m in matrices], count)
        sizes = [sum(m.numel() for m, o in zip(matrices, owner, strict=True) if o == r) for r in range(count)]
        # A gather wants equal sizes: the shares are filled up to the largest.
        boxes = [matrices[0].new_empty(max(sizes), dtype=dtype) for _ in range(count)]
        mine = [orthogonalized(m, dtype).reshape(-1) for m, o in zip(matrices, owner, strict=True) if o == rank]
        own = torch.cat([*mine, boxes[rank].new_zeros(max(sizes) - sizes[rank])])
        dist.all_gather(boxes, own)
        places = [0] * count
        found = []
        for matrix, o in zip(matrices, owner, strict=True):
            found.append(boxes[o][places[o] : places[o] + matrix.numel()].view_as(matrix))
            places[o] += matrix.numel()
        return found


class MuonWithAdamW(torch.optim.Optimizer):
    """``muon`` steps the first parameter groups, ``adamw`` the rest; both read the same group objects."""

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW) -> None:
        self.halves: tuple[torch.optim.Optimizer, ...] = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """Let the halves work on this optimizer's groups, whose learning rates schedulers change."""
        split = len(self.halves[0].param_groups)
        self.halves[0].param_groups = self.param_groups[:split]
        self.halves[1].param_groups = self.param_groups[split:]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both halves."""
        if closure is not None:
            raise ValueError("MuonWithAdamW takes no closure: compute the loss before the step")
        for half in self.halves:
            half.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both halves."""
        return {"halves": [half.state_dict() for half in self.halves]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both halves, and share their groups again."""
        for half, state in zip(self.halves, state_dict["halves"], strict=True):
            half.load_state_dict(state)
        self.param_groups = [group for half in self.halves for group in half.param_groups]


def muon_with_adamw(
    model: nn.Module,
    options: TrainerConfig,
    *,
    dtype: torch.dtype = torch.float32,
    rates: PartRates | None = None,
) -> MuonWithAdamW:
    """Muon at ``options.muon_learning_rate`` for the trained hidden matrices of encoder and LLM, AdamW for the rest.

    Muon's update is scaled to AdamW's usual size, so learning rates of the two are comparable. Biases and norms get no
    weight decay. Low-rank adapters are AdamW's: Muon's update would make each of their two factors orthogonal.
    ``rates``: the rates of the parts, if they differ. ``dtype``: precision of Muon's iterations.

    Raises:
        ValueError: no rate for Muon, or no hidden matrix trains.
    """
    if options.muon_learning_rate is None:
        raise ValueError("trainer.muon_learning_rate is null: set it to train with Muon")
    muon_rate, weight_decay = options.muon_learning_rate, options.weight_decay
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in trained if p.ndim == 2 and not any(part in name for part in _NOT_MUON)]
    if not hidden:
        raise ValueError("trainer.muon_learning_rate is set, but no hidden matrix trains: set it to null")
    taken = {id(p) for p in hidden}
    rest = [p for _, p in trained if id(p) not in taken]
    matrices = [{"params": hidden, "weight_decay": weight_decay}]
    others = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    if rates is not None:
        matrices, others = rates.split(matrices, learning_rate=muon_rate), rates.split(others)
    muon = Muon(matrices, lr=muon_rate, weight_decay=weight_decay, dtype=dtype)
    adamw = torch.optim.AdamW(
        others,
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=any(p.is_cuda for p in rest) or None,
    )
    return MuonWithAdamW(muon, adamw)
