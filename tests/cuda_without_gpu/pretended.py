"""A GPU that is not there: tensors without memory take the place of its own (torch's device "meta").

Shapes, types and lifetimes are those of a real run, so a model of 8.4 billion weights goes forward and backward in two
seconds, and what its tensors would hold is known. A value cannot be read from such a tensor: what would make the host
wait for a kernel (``item``, ``nonzero``, ``tolist``, a mask as an index) is an error here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qa_train.config import StageConfig
from qa_train.model import build_model, freeze, lora
from qa_train.model.flops import Work
from qa_train.model.layers import attention
from qa_train.model.layers.lengths import audio_tokens, mel_columns
from qa_train.model.precision import train_in_float32
from qa_train.planner.memory import trains_in_bfloat16
from qa_train.planner.sizes import _without_absent_sources

DEVICE = "meta"
# torch's caching allocator rounds up to this.
_BLOCK = 512


class Held(TorchDispatchMode):
    """Bytes that the results of operations hold, as torch's allocator rounds them; and operations that are no views."""

    def __init__(self, model: nn.Module, device: str = DEVICE, inputs: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._device = device
        self.now = self.most = self.operations = 0
        # Weights are counted elsewhere, and views are no new memory.
        self._known: dict[int, Any] = {x.untyped_storage()._cdata: x for x in (*model.parameters(), *inputs)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += not func.is_view
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == self._device:
                self._hold(tensor.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        number, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        if number in self._known:
            return

        def free(_: Any) -> None:
            self.now -= size
            del self._known[number]

        self._known[number] = weakref.ref(storage, free)
        self.now += size
        self.most = max(self.most, self.now)


@torch.library.custom_op("pretended::varlen", mutates_args=())
def _varlen(query: Tensor, key: Tensor, value: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    raise NotImplementedError


@_varlen.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    query, key, value, *_rest = ctx.saved_tensors
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


_varlen.register_autograd(_backward, setup_context=_keep)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, causal: bool, scale: float | None
) -> Tensor:
    """Flash attention's shapes: what it keeps are query, key, value, output and a float32 per token and head."""
    assert query.dtype == key.dtype == value.dtype == torch.bfloat16
    assert starts.dtype == torch.int32
    out: Tensor = _varlen(query, key, value, starts)[0]
    return out


def _always(value: Any) -> Callable[..., Any]:
    """A mock would keep the tensors that it is called with."""
    return lambda *_: value


@contextmanager
def pretended_gpu(*, autocast: bool = False) -> Iterator[None]:
    """Attention as on a GPU, and with ``autocast`` its casts for this model's operations (torch has none here)."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(attention, "_varlen", _always(_attend)))
        stack.enter_context(mock.patch.object(attention, "_compute_dtype", _always(torch.bfloat16)))
        copies: dict[int, Tensor] = {}
        half, full = ("linear", "conv1d"), ("layer_norm", "cross_entropy")
        for name in (*half, *full) if autocast else ():
            dtype = torch.bfloat16 if name in half else torch.float32
            casting = _casting(getattr(nn.functional, name), dtype, copies)
            stack.enter_context(mock.patch.object(nn.functional, name, casting))
        yield


def _casting(function: Callable[..., Any], dtype: torch.dtype, copies: dict[int, Tensor]) -> Callable[..., Any]:
    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(dtype)
        if id(value) not in copies:
            copies[id(value)] = value.to(dtype)
        return copies[id(value)]

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return call


def opened(cfg: StageConfig) -> Any:
    """The model that ``cfg`` trains, as a run opens it, and with its adapters; gradients are let go at once."""
    model, _ = build_model(_without_absent_sources(cfg.model)[0], meta=True)
    freeze(model, cfg.model.freeze)
    model.train()
    base = model
    with mock.patch.object(lora, "weights_digest", return_value=""):
        adapters = lora.plan_adapters(model, cfg.model, seed=0)
    if adapters is not None:
        model = lora.add_adapters(model, adapters, float32=not cfg.deepspeed.config)
        if not cfg.deepspeed.config:
            train_in_float32(model)
    base.set_recompute(**asdict(cfg.trainer.gradient_checkpointing))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    return model


def casts(cfg: StageConfig) -> bool:
    """Whether a run of ``cfg`` is under autocast."""
    return trains_in_bfloat16(cfg) and not cfg.deepspeed.config


def batch_of(work: Work, model: Any) -> dict[str, Tensor]:
    """A batch on the CPU with the lengths of ``work``: a clip in front of each text, scored tokens at its end."""
    documents, audio = list(work.documents), [audio_tokens(frames) for frames in work.segments]
    ids, answer = torch.full((len(documents), max(documents)), 5), work.supervised // len(documents)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, length in enumerate(documents):
        if row < len(audio):
            ids[row, : audio[row]] = model.config.audio_token_id
        mask[row, :length], labels[row, length - answer : length] = 1, 5
    lengths = torch.tensor(work.segments[: len(documents)])
    mels = model.config.audio_config.num_mel_bins
    features = torch.empty(mels, int(mel_columns(lengths, 3000).sum()), device=DEVICE)
    texts = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return texts | {"input_features": features, "feature_lengths": lengths}
