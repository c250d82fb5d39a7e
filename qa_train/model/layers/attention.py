"""Attention inside documents that are joined in a single row, without padding.

Shapes: T tokens of all documents together, N documents, H heads, D head width. A *document* is one
sequence that may see only itself: a segment of audio in the encoder, a row of the batch in the LLM.

The function is registered with transformers under ``UNPADDED`` and receives the ``Documents`` as a
keyword through the layers. Without that keyword it is the library's own SDPA attention, which serves
ordinary padded batches (generation with a cache), by flash or memory-efficient kernels and never by cuDNN's.

On CUDA in half precision, autocast's included, all documents go to ``torch.nn.attention.varlen`` in one call.
Elsewhere each document is one SDPA call. On a CPU core that is the fastest exact way (forward and backward of 45
documents of 40-80 tokens, 4 heads x 64: 19 ms; padded to a common length, in one group or in several
of similar length: 24-33 ms; encoder documents of 30-175 frames: 66 against 90-138 ms).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from qa_train.model.layers.on_cpu import sent

UNPADDED = "qa_train_unpadded"


@dataclass(frozen=True)
class Documents:
    """The boundaries of the documents in a joined row, made once per forward and shared by all layers.

    lengths: tokens of each document; starts: int32 [N + 1], their cumulated sum on the model's device.
    """

    lengths: list[int]
    starts: torch.Tensor
    longest: int

    @classmethod
    def of(cls, lengths: torch.Tensor, device: torch.device) -> Documents:
        """lengths: LongTensor [N] on the CPU, all positive."""
        starts = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        starts[1:] = lengths.cumsum(0)
        return cls(lengths.tolist(), sent(starts, device), int(lengths.max()))


def unpadded_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of one layer: query [1, H, T, D], key and value [1, H or fewer, T, D] -> [1, T, H, D].

    Causal if ``module.is_causal``. ``attention_mask`` is ignored when ``documents`` is given.
    """
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    window = kwargs.get("sliding_window")
    if window is not None and window < documents.longest:
        raise ValueError(
            f"the LLM uses a sliding window of {window} tokens, but a sample has {documents.longest}; "
            "unpadded attention has no sliding window: remove longer samples"
        )
    causal, scale = bool(getattr(module, "is_causal", False)), kwargs.get("scaling")
    dropout, dtype = kwargs.get("dropout", 0.0), _compute_dtype(query)
    attend = _varlen(query, dtype)
    if attend is None:
        repeats = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
        return _one_by_one(query, key, value, documents.lengths, causal, scale, dropout, dtype), None
    if dropout:
        raise ValueError(f"attention dropout is {dropout}; torch's varlen attention has none: set it to 0")
    rows = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    return attend(*rows, documents.starts, documents.longest, causal, scale)[None], None


def _compute_dtype(query: torch.Tensor) -> torch.dtype:
    """What attention computes in: autocast's type where it is on, as in SDPA; on the CPU always float32.

    Float32 weights under autocast give a query and key in float32 (rotary positions are not cast) and a value in
    half precision. The CPU's bfloat16 kernel takes twice the time of float32 (28 documents of 40 to 110 tokens,
    4 x 64, forward and backward: 25 ms against 12 ms with the casts).
    """
    kind = query.device.type
    if kind == "cpu":
        return torch.float32
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    causal: bool,
    scale: float | None,
    dropout: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Query, key and value [1, H, T, D] -> [1, T, H, D], in the query's type: one SDPA call in ``dtype`` a document."""
    with torch.autocast(query.device.type, enabled=False):
        parts = zip(*(x.to(dtype).split(lengths, 2) for x in (query, key, value)), strict=True)
        outs = [
            scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=scale).transpose(1, 2)
            for q, k, v in parts
        ]
        return torch.cat(outs, 1).to(query.dtype)


def _varlen(query: torch.Tensor, dtype: torch.dtype) -> Callable[..., torch.Tensor] | None:
    """torch's varlen attention, adapted, if it can take this query [1, H, T, D] in ``dtype``; else None.

    Its kernels are flash attention's: half precision, heads of 8, 16, ... or 256, compute capability 8 (Ampere).
    """
    width = query.shape[-1]
    if not query.is_cuda or dtype not in (torch.float16, torch.bfloat16) or width % 8 or width > 256:
        return None
    return _varlen_of(query.device)


@cache
def _varlen_of(device: torch.device) -> Callable[..., torch.Tensor] | None:
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return adapt_varlen(varlen_attn)


def adapt_varlen(varlen_attn: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """``varlen_attn`` of any release of torch as f(query, key, value, starts, longest, causal, scale) -> [T, H, D].

    query [T, H, D]; key and value [T, H or fewer, D]; starts int32 [N + 1]. In 2.10 and 2.11 it is causal by
    ``is_causal``, always scales by 1/sqrt(D) and wants as many heads everywhere; later it has a window, a scale and
    ``enable_gqa``.
    """
    options = inspect.signature(varlen_attn).parameters

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        longest: int,
        causal: bool,
        scale: float | None,
    ) -> torch.Tensor:
        extra: dict[str, Any] = {}
        if "window_size" in options:
            extra["window_size"] = (-1, 0) if causal else (-1, -1)
        else:
            extra["is_causal"] = causal
        if "scale" in options:
            extra["scale"] = scale
        elif scale is not None:
            query = query * (scale * query.shape[-1] ** 0.5)
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1 and "enable_gqa" in options:
            extra["enable_gqa"] = True
        elif repeats > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        out: Any = varlen_attn(query, key, value, starts, starts, longest, longest, **extra)
        return out

    return attend


def choose_attention(config: Any) -> None:
    """Set ``config`` and its parts to ``UNPADDED`` before a model is built, or leave them at "eager" where asked for.

    A part without a choice, or with "sdpa", which a configuration holds after a stock model was built from it, gets
    ``UNPADDED``: it computes by SDPA too. ValueError for any other.
    """
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        asked = part._attn_implementation
        if asked not in (None, "sdpa", "eager", UNPADDED):
            raise ValueError(
                f"attn_implementation is {asked!r} for the {part.model_type} part; the unpadded model takes 'eager' or "
                f"its own {UNPADDED!r}, which chooses the fastest kernel of the device: drop attn_implementation, or "
                "use the stock Qwen2AudioForConditionalGeneration"
            )
        # Not by the public name, which sets the parts of a part too.
        part._attn_implementation_internal = "eager" if asked == "eager" else UNPADDED


def mask_between(config: Any, documents: Documents, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask [1, 1, T, T] that separates the documents in an attention without document support; None for
    ``UNPADDED``.

    ValueError if the part that ``config`` describes was switched to one that takes no such mask.
    """
    if config._attn_implementation == UNPADDED:
        return None
    if config._attn_implementation not in ("eager", "sdpa"):
        raise ValueError(
            f"the {config.model_type} part was switched to attention {config._attn_implementation!r}, which takes no "
            f"mask between segments: use 'eager', 'sdpa' or {UNPADDED!r}"
        )
    device = documents.starts.device
    number = torch.arange(len(documents.lengths)).repeat_interleave(torch.tensor(documents.lengths)).to(device)
    apart = number[:, None] != number
    return torch.zeros_like(apart, dtype=dtype).masked_fill(apart, torch.finfo(dtype).min)[None, None]


# Torch prefers cuDNN's attention on Hopper (torch._fused_sdp_choice), and cuDNN builds a plan for every new shape: an
# answer has a new key length with every token. Here, because every model of ours imports this file before it runs.
torch.backends.cuda.enable_cudnn_sdp(False)
AttentionInterface.register(UNPADDED, unpadded_attention)
AttentionMaskInterface.register(UNPADDED, sdpa_mask)
