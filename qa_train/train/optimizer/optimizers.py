"""Muon for the hidden matrices of the LLM, AdamW for everything else, joined to one optimizer.

Schedulers, checkpoints and accelerate then see a single one. Before a model is loaded, `rehearse_optimizer` builds the
configured optimizer on a dummy weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

from qa_train.model.layers.parts import NOT_HIDDEN
from qa_train.train.optimizer.groups import PartRates
from qa_train.train.optimizer.muon import Muon

# Two-dimensional parameters for AdamW although they may be in a hidden layer.
_NOT_MUON = (*NOT_HIDDEN, "lora_")

# Schedules that transformers builds without looking at trainer.lr_scheduler_kwargs.
_PLAIN_SCHEDULES = ("constant", "constant_with_warmup")


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
    *,
    muon_learning_rate: float,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    dtype: torch.dtype = torch.float32,
    rates: PartRates | None = None,
) -> MuonWithAdamW:
    """Muon at ``muon_learning_rate`` for the trained hidden matrices of encoder and LLM layers, AdamW for the rest.

    Muon's update is scaled to AdamW's usual size, so learning rates of the two are comparable. Biases and norms get no
    weight decay. Low-rank adapters are AdamW's: Muon's update would
    make each of their two factors orthogonal. ``rates``: the rates of the parts, if they differ.
    ``dtype``: precision of Muon's iterations.

    Raises:
        ValueError: no hidden matrix trains.
    """
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
        matrices, others = rates.split(matrices, learning_rate=muon_learning_rate), rates.split(others)
    muon = Muon(matrices, lr=muon_learning_rate, weight_decay=weight_decay, dtype=dtype)
    adamw = torch.optim.AdamW(
        others,
        lr=learning_rate,
        betas=betas,
        eps=epsilon,
        fused=any(p.is_cuda for p in rest) or None,
    )
    return MuonWithAdamW(muon, adamw)


def rehearse_optimizer(args: TrainingArguments) -> None:
    """Build optimizer and schedule of ``args`` on a throw-away weight, and take one step with both.

    What cannot be built would otherwise end the run after its model was loaded.

    Raises:
        ValueError: names ``trainer.optim`` or ``trainer.lr_scheduler_type``, why it fails, and what to use.
    """
    # With enumerations as texts.
    said = args.to_dict()
    net: Any = nn.Linear(1, 1).to(args.device)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, net)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise TypeError("it needs settings that are not given here")
        optimizer = kind(net.parameters(), **options)
        net(torch.ones(1, 1, device=args.device)).backward()
        optimizer.step()
    except Exception as error:
        raise ValueError(
            f"trainer.optim={said['optim']} cannot be built ({_line(error)}): install what it needs, or use "
            "trainer.optim=adamw_torch"
        ) from error
    schedule: str = said["lr_scheduler_type"]
    given: dict[str, Any] = said["lr_scheduler_kwargs"] or {}
    try:
        if given and schedule in _PLAIN_SCHEDULES:
            raise TypeError("it takes none of them")
        steps = args.max_steps
        scheduler = get_scheduler(schedule, optimizer, args.get_warmup_steps(steps), steps, given)
        optimizer.step()  # in torch's order, or it warns
        scheduler.step()
    except Exception as error:
        drop = ", ".join(f"'~trainer.lr_scheduler_kwargs.{key}'" for key in given)
        remedy = f"remove unknown arguments ({drop})" if given else "use another"
        raise ValueError(
            f"trainer.lr_scheduler_type={schedule} with trainer.lr_scheduler_kwargs={given} cannot be built "
            f"({_line(error)}): {remedy}, or add what it needs ('+trainer.lr_scheduler_kwargs.KEY=VALUE')"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
