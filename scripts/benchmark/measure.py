"""Steps, times and counted FLOPs of one side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from benchmark.clips import Example
from benchmark.twins import Side, parts
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Batch = dict[str, Tensor]
_CPU_PRODUCT = 2048


@dataclass(frozen=True)
class Seconds:
    """Time of the process (all its threads) and of the wall clock."""

    cpu: float
    wall: float


@contextmanager
def timed(device: str) -> Iterator[Callable[[], Seconds]]:
    """``with timed(d) as seconds: ...``, then ``seconds()``; waits for the GPU before and after."""
    _wait(device)
    cpu, wall = time.process_time(), time.perf_counter()
    taken: list[Seconds] = []
    yield lambda: taken[0]
    _wait(device)
    taken.append(Seconds(time.process_time() - cpu, time.perf_counter() - wall))


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def micro_batches(side: Side, examples: list[Example], size: int, device: str) -> list[Batch]:
    """The step's batches of ``size`` clips in the given order, on the device."""
    groups = [examples[start : start + size] for start in range(0, len(examples), size)]
    # Lengths stay on the CPU, where our model reads them: a loader that copies ahead does the same.
    return [
        {name: value if name == "feature_lengths" else value.to(device) for name, value in side.batch(group).items()}
        for group in groups
    ]


def forward_backward(side: Side, batches: list[Batch], num_items: int) -> Tensor:
    """The loss of one step, a scalar on the device; gradients are added to those there are."""
    losses = []
    for batch in batches:
        loss = side.loss(side.model, batch, num_items)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def optimizer_step(side: Side, batches: list[Batch], num_items: int, optimizer: torch.optim.Optimizer) -> Tensor:
    """One whole optimizer step: what is timed, the same for both sides. Returns the loss."""
    loss = forward_backward(side, batches, num_items)
    nn.utils.clip_grad_norm_([p for p in side.model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


@dataclass(frozen=True)
class FirstStep:
    """Loss and gradient norm before any update, counted FLOPs (0 if not counted), and positions computed on."""

    loss: float
    gradient_norm: float
    flops: float
    positions: dict[str, int]


def first_step(side: Side, batches: list[Batch], num_items: int, *, count: bool) -> FirstStep:
    """Forward and backward without an update."""
    positions = dict.fromkeys(("encoder", "llm"), 0)

    def look(part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            positions[part] += args[0].shape[0] * args[0].shape[1]

        return hook

    hooks = [module.register_forward_pre_hook(look(part)) for part, module in parts(side.model).items()]
    with torch.no_grad():
        for batch in batches:
            side.loss(side.model, batch, num_items)
    for hook in hooks:
        hook.remove()
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    if count:
        with counter:
            loss = forward_backward(side, batches, num_items)
    else:
        loss = forward_backward(side, batches, num_items)
    norms = [p.grad.float().norm() for p in side.model.parameters() if p.grad is not None]
    side.model.zero_grad()
    return FirstStep(float(loss), float(torch.stack(norms).norm()), float(counter.get_total_flops()), positions)


def _attention(query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, **_: Any) -> int:
    """The two products of attention [B, H, L, D], over the pairs that a causal kernel computes."""
    batch, heads, length, width = query
    pairs = length * (length + 1) // 2 if causal else length * key[2]
    return int(2 * batch * heads * pairs * (width + value[3]))


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, out: Any, sums: Any, dropout: float, causal: bool, **_: Any
) -> int:
    """Twice the forward; what a flash kernel computes again is not counted, as nowhere else."""
    return 2 * _attention(query, key, value, dropout, causal)


# torch's counter does not know the CPU's attention kernel, and counts whole squares for the others.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def measured_peak(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """FLOP/s of a large matrix product of random numbers: the best of five, the first one not counted."""
    size = 8192 if device.startswith("cuda") else _CPU_PRODUCT
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(6):
        with timed(device) as seconds:
            left @ right
        rates.append(2 * size**3 / (seconds().wall if device.startswith("cuda") else seconds().cpu))
    return {"what": f"{size}^3 matrix product, {str(dtype).removeprefix('torch.')}", "flops_per_s": max(rates[1:])}


def write_trace(sides: list[Side], steps: Mapping[str, Callable[[], Any]], device: str, file: Any) -> None:
    """A piece of each side's work under torch's profiler, as a table of operators by their own time."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if device.startswith("cuda"):
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        key = "self_device_time_total"
    for side in sides:
        with torch.profiler.profile(activities=kinds) as profile:
            steps[side.name]()
        file.write(f"{side.name}\n{profile.key_averages().table(sort_by=key, row_limit=40)}\n\n")
