"""Selective recomputation: what is cheap to make in a layer is made again in the backward pass, the rest is kept.

Kept are results of matrix products and attention, what attention reads, and the sums between sublayers. Made again are
norms, activation functions, and all of an adapter but its result. torch's selective checkpointing decides for every
operation in Python, and runs the whole layer a second time: several times the work of the host. Here a layer runs once,
as always; only calls of cheap functions are noted (`remade`), and a linear layer that reads the result of one notes
the call instead of keeping its input. What is not known is kept: that costs memory, and is never wrong. Weights must
not change between the forward and the backward pass: torch does not check what hooks keep.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_OTHERWISE = "use trainer.gradient_checkpointing full or none"


class _Thread(threading.local):
    """Whether this thread makes something again: autograd does so in a thread of its own."""

    remaking = False


_thread = _Thread()


class _Done(Exception):
    """All that is wanted of a call has been made."""


class _Call:
    """A call of a cheap function that can be repeated: for its result, and for what autograd saves inside of it.

    Both are made when the first of them is asked for, and forgotten when all have been.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], random: bool) -> None:
        self._function = function
        # Results of other calls are not kept, but made again, too.
        self._inputs = [
            x if (call := _noted(x)) is None else partial(_like, call.result(), x.dtype, x.shape) for x in inputs
        ]
        self._versions = [x._version for x in inputs]
        self._grads = [x.requires_grad for x in inputs]
        self._state = _State(inputs[0].device, random)
        self._kept = self._storages(inputs)
        self._saved = self._results = self._left = 0
        self._made: tuple[Tensor | None, list[Tensor]] | None = None

    def result(self) -> Callable[[], Tensor]:
        """What makes the result again; it is asked once in a backward pass."""
        self._results += 1
        return partial(self._take, None)

    def pack(self, tensor: Tensor) -> Any:
        """For autograd, in the first run: the tensor itself if it is kept anyway, else its number."""
        if not _is_inner(tensor, self._kept):
            return tensor
        self._saved += 1
        return self._saved - 1

    def unpack(self, packed: Any) -> Tensor:
        """What `pack` was given."""
        return packed if isinstance(packed, Tensor) else self._take(packed)

    def _take(self, number: int | None) -> Tensor:
        if self._made is None:
            self._made, self._left = self._repeat(), self._saved + self._results
        result, saved = self._made
        found = result if number is None else saved[number]
        self._left -= 1
        if not self._left:
            self._made = None
        assert found is not None
        return found

    def _repeat(self) -> tuple[Tensor | None, list[Tensor]]:
        """The result, None if nobody asks for it, and what autograd saves."""
        inputs = tuple(map(self._input, self._inputs, self._versions, self._grads))
        kept, saved = self._storages(inputs), list[Tensor]()

        def pack(tensor: Tensor) -> None:
            # Nothing for autograd: this graph is not run, and one that held a result of its own would never be freed.
            if _is_inner(tensor, kept):
                saved.append(tensor.detach())
                if len(saved) == self._saved and not self._results:
                    raise _Done

        result = None
        outside, _thread.remaking = _thread.remaking, True
        try:
            with self._state.restored(), torch.enable_grad(), saved_tensors_hooks(pack, _unpack):
                result = self._function(*inputs).detach()
        except _Done:
            pass
        finally:
            _thread.remaking = outside
        if len(saved) != self._saved:
            raise RuntimeError(
                f"autograd saved {self._saved} tensors of {self._function}, and {len(saved)} when it was repeated: "
                + _OTHERWISE
            )
        return result, saved

    def _storages(self, inputs: tuple[Tensor, ...]) -> set[int]:
        """Of the inputs that are kept."""
        return {_storage(x) for x, known in zip(inputs, self._inputs, strict=True) if isinstance(known, Tensor)}

    def _input(self, known: Tensor | Callable[[], Tensor], version: int, grad: bool) -> Tensor:
        if not isinstance(known, Tensor):
            return known().detach().requires_grad_(grad)
        if known._version != version:
            raise RuntimeError(f"what {self._function} had read was changed in place afterwards: {_OTHERWISE}")
        return known.detach().requires_grad_(grad)


class _State:
    """What a call depends on besides its inputs: autocast and, if it is ``random``, the generators."""

    def __init__(self, device: torch.device, random: bool) -> None:
        self._device = device
        self._autocast = _autocast(device.type)
        self._generators = None
        if random:
            gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
            self._generators = (torch.get_rng_state(), gpu)

    def restored(self) -> ExitStack:
        """Within, it is as it was."""
        stack, kind = ExitStack(), self._device.type
        if _autocast(kind) != self._autocast:
            stack.enter_context(torch.autocast(kind, dtype=self._autocast, enabled=self._autocast is not None))
        if self._generators is not None:
            cpu, gpu = self._generators
            stack.enter_context(torch.random.fork_rng([self._device] if gpu is not None else []))
            torch.set_rng_state(cpu)
            if gpu is not None:
                torch.cuda.set_rng_state(gpu, self._device)
        return stack


def _autocast(kind: str) -> torch.dtype | None:
    """The type that autocast gives to products on devices of this kind, None where it is off."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def remade(
    function: Callable[..., Tensor],
    *inputs: Tensor,
    again: Callable[..., Tensor] | None = None,
    random: bool = False,
) -> Tensor:
    """``function(*inputs)``, of which autograd keeps the inputs alone: what it saves inside is made again.

    again: what is called then, if it is not ``function`` itself; random: whether it draws random numbers.
    """
    if not torch.is_grad_enabled() or _thread.remaking:
        return function(*inputs)
    call = _Call(again or function, inputs, random)
    with saved_tensors_hooks(call.pack, call.unpack):
        out = function(*inputs)
    if out.requires_grad:
        # On the storage, which views share, also those that DeepSpeed's hooks put in the place of a result.
        out.untyped_storage().qa_train_call = call  # type: ignore[attr-defined]
    return out


def _noted(x: Tensor) -> _Call | None:
    """The call whose unchanged result ``x`` is, or a view of all of it."""
    storage = x.untyped_storage()
    call: _Call | None = getattr(storage, "qa_train_call", None)
    return call if call is not None and storage.nbytes() == x.nbytes and x.is_contiguous() and not x._version else None


def _like(make: Callable[[], Tensor], dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return make().to(dtype).reshape(shape)


def _storage(x: Tensor) -> int:
    number: int = x.untyped_storage()._cdata
    return number


def _is_inner(tensor: Tensor, kept: set[int]) -> bool:
    """Whether it exists because of a call alone: it is no weight, and no view of an input that is kept."""
    return not isinstance(tensor, nn.Parameter) and _storage(tensor) not in kept


def _unpack(packed: Any) -> Tensor:
    return packed if isinstance(packed, Tensor) else packed()


def _linear(module: nn.Module, plain: Callable[..., Tensor], x: Tensor) -> Tensor:
    """A linear layer that does not keep an input that can be made again."""
    call, dtype = _noted(x), _autocast(x.device.type)
    if call is None or not torch.is_grad_enabled():
        return plain(x)
    if dtype is not None:
        # As autocast would inside, where the copy would not be known.
        x = x.to(dtype)
    storage, size = _storage(x), x.numel()

    def pack(tensor: Tensor) -> Any:
        if _storage(tensor) != storage or tensor.numel() != size or not tensor.is_contiguous():
            return tensor
        return partial(_like, call.result(), tensor.dtype, tensor.shape)

    with saved_tensors_hooks(pack, _unpack):
        return plain(x)


def _norm(module: nn.Module, plain: Callable[..., Tensor], x: Tensor) -> Tensor:
    # Again as a module: under ZeRO-3 its hooks bring the weights.
    return remade(plain, x, again=module)


def _activation(module: nn.Module, plain: Callable[..., Tensor], x: Tensor) -> Tensor:
    return remade(plain, x)


def _gated(module: Any, plain: Callable[..., Tensor], x: Tensor) -> Tensor:
    """The MLP of the LLM families: down(act(gate(x)) * up(x))."""
    out: Tensor = module.down_proj(remade(partial(_product, module.act_fn), module.gate_proj(x), module.up_proj(x)))
    return out


def _product(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    return activation(gate) * up


def _adapted(module: Any, plain: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """peft's linear layer with an adapter: of the adapter nothing is kept."""
    if args or kwargs or module.disable_adapters or module.merged or len(module.active_adapters) != 1:
        return plain(x, *args, **kwargs)
    base: Tensor = module.base_layer(x)
    (name,) = module.active_adapters
    random = module.training and getattr(module.lora_dropout[name], "p", 0) > 0
    return (base + remade(partial(_adapter, module, name), x, random=random)).to(base.dtype)


def _adapter(module: Any, name: str, x: Tensor) -> Tensor:
    first, second = module.lora_A[name], module.lora_B[name]
    x = module._cast_input_dtype(x, first.weight.dtype)
    out: Tensor = second(first(module.lora_dropout[name](x))) * module.scaling[name]
    return out


class _Replaced(partial[Tensor]):
    """A forward of ours, with the module and its own forward."""


def remake(layer: nn.Module, on: bool) -> None:
    """Let ``layer``, which has its adapters by now, keep less for the backward pass, or as much as ever."""
    for name, module in layer.named_modules():
        forward = _forward_of(name, module)
        if forward is None:
            continue
        if isinstance(before := module.__dict__.get("forward"), _Replaced):
            module.forward = before.args[1]
        if on:
            module.forward = _Replaced(forward, module, module.forward)


def _forward_of(name: str, module: nn.Module) -> Callable[..., Tensor] | None:
    """What replaces the module's forward."""
    last = name.rpartition(".")[2]
    if hasattr(module, "lora_A"):
        return _adapted
    if "lora_" in name:
        return None
    if isinstance(module, nn.Linear):
        return _linear
    if "norm" in last:
        return _norm
    if last == "activation_fn":
        return _activation
    return _gated if hasattr(module, "gate_proj") else None
