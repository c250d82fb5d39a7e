"""The adapter of torch's varlen attention, which no CPU can run: every signature it has had, by a twin on the CPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from qa_train.model.layers import attention
from qa_train.model.layers.attention import Documents, adapt_varlen, unpadded_attention
from tests.model.conftest import Batch, Twins
from tests.test_architecture import _loaded

LENGTHS = [5, 1, 12, 3]
HEADS, KEY_HEADS, WIDTH = 4, 2, 16
Twin = Callable[..., torch.Tensor]


def documents_one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, starts: Any, longest: Any, causal: bool, scale: Any
) -> torch.Tensor:
    """What the documentation says of ``varlen_attn``: [T, H, D], each document by itself."""
    starts_q, starts_k = starts
    for start, longest_one in zip(starts, longest, strict=True):
        assert start.dtype == torch.int32
        assert start[0] == 0
        assert isinstance(longest_one, int)
        assert longest_one == int(start.diff().max())
    assert starts_q[-1] == len(query)
    assert starts_k[-1] == len(key) == len(value)
    outs = [
        scaled_dot_product_attention(
            query[a:b].transpose(0, 1), key[c:d].transpose(0, 1), value[c:d].transpose(0, 1),
            is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1],
        )
        for a, b, c, d in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False)
    ]  # fmt: skip
    return torch.cat(outs, 1).transpose(0, 1)


def torch_2_10(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
    max_q: int, max_k: int, is_causal: bool = False, return_aux: Any = None,
) -> torch.Tensor:  # fmt: skip
    assert return_aux is None
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return documents_one_by_one(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), is_causal, None)


def with_a_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
    max_q: int, max_k: int, *, return_aux: Any = None, scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    assert return_aux is None
    assert window_size in ((-1, -1), (-1, 0))
    assert query.shape[1] == key.shape[1] == value.shape[1]
    causal = window_size == (-1, 0)
    return documents_one_by_one(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), causal, scale)


def torch_2_12(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None, max_q: int, max_k: int, *, return_aux: Any = None, scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False, seqused_k: Any = None,
    block_table: Any = None, num_splits: int | None = None,
) -> torch.Tensor:  # fmt: skip
    assert return_aux is seqused_k is block_table is num_splits is None
    assert cu_seq_k is not None
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert window_size in ((-1, -1), (-1, 0))
    causal = window_size == (-1, 0)
    return documents_one_by_one(query, key, value, (cu_seq_q, cu_seq_k), (max_q, max_k), causal, scale)


RELEASES = (torch_2_10, with_a_window, torch_2_12)


def states(key_heads: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), WIDTH) for heads in (HEADS, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("twin", RELEASES)
@pytest.mark.parametrize("key_heads", [HEADS, KEY_HEADS], ids=["as many heads", "grouped"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("scale", [None, 0.6])
def test_every_signature_gives_the_attention_of_each_document(
    twin: Twin, key_heads: int, causal: bool, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = SimpleNamespace(is_causal=causal)
    documents = Documents.of(torch.tensor(LENGTHS), torch.device("cpu"))

    def run() -> list[torch.Tensor]:
        inputs = states(key_heads)
        out, _ = unpadded_attention(module, *inputs, None, documents, scaling=scale)
        assert out.shape == (1, sum(LENGTHS), HEADS, WIDTH)
        (out * torch.arange(WIDTH)).sum().backward()
        return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]

    expected = run()
    monkeypatch.setattr(attention, "_varlen", lambda *_: adapt_varlen(twin))
    for found, wanted in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("twin", RELEASES)
def test_the_whole_model_through_the_adapter(twins: Twins, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch([[3, -20, 2], [5, -133, 4], [9], [2, -3, 1]])
    model = twins.ours

    def step() -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        loss = model(**batch.joined(), labels=batch.labels).loss
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    expected = step()
    calls = []
    monkeypatch.setattr(attention, "_varlen", lambda *_: calls.append(1) or adapt_varlen(twin))
    for found, wanted in zip(step(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()) + 1e-9)
    assert len(calls) == len(model.model.audio_tower.layers) + len(model.model.language_model.layers)


def test_the_installed_torch_takes_what_the_adapter_gives() -> None:
    signature = inspect.signature(varlen_attn)

    def installed(*args: Any, **kwargs: Any) -> torch.Tensor:
        signature.bind(*args, **kwargs)
        return args[0]

    installed.__signature__ = signature  # type: ignore[attr-defined]
    query, key, value = (x[0].transpose(0, 1) for x in states(KEY_HEADS))
    starts = Documents.of(torch.tensor(LENGTHS), torch.device("cpu")).starts
    for causal in (True, False):
        assert adapt_varlen(installed)(query, key, value, starts, 12, causal, 0.6).shape == query.shape


def cuda_query(width: int = 64, dtype: torch.dtype = torch.float32) -> Any:
    """What the choice of the kernel looks at."""
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0), dtype=dtype, shape=(1, 4, 9, width))


def test_float32_under_autocast_is_computed_in_its_type_as_sdpa_would(monkeypatch: pytest.MonkeyPatch) -> None:
    on = {"cuda": False}
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: on[kind])
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    assert attention._compute_dtype(cuda_query()) == torch.float32
    assert attention._compute_dtype(cuda_query(dtype=torch.float16)) == torch.float16
    on["cuda"] = True
    assert attention._compute_dtype(cuda_query()) == torch.bfloat16
    # The kernel gets all three in one type, although rotary positions leave query and key in float32.
    monkeypatch.setattr(attention, "_compute_dtype", lambda query: torch.bfloat16)
    seen = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
        seen.extend([query.dtype, key.dtype, value.dtype])
        return query

    monkeypatch.setattr(attention, "_varlen", lambda query, dtype: kernel if dtype == torch.bfloat16 else None)
    query, key, value = states(HEADS)
    documents = Documents.of(torch.tensor(LENGTHS), torch.device("cpu"))
    module: Any = SimpleNamespace(is_causal=True)
    out, _ = unpadded_attention(module, query, key, value.bfloat16(), None, documents)
    assert seen == [torch.bfloat16] * 3
    assert out.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"attention dropout is 0\.1; .* has none: set it to 0"):
        unpadded_attention(module, query, key, value, None, documents, dropout=0.1)


@pytest.mark.parametrize(
    ("width", "dtype", "capability", "taken"),
    [
        (64, torch.bfloat16, (9, 0), True),
        (128, torch.float16, (8, 0), True),
        (64, torch.float32, (9, 0), False),
        (64, torch.bfloat16, (7, 5), False),
        (36, torch.bfloat16, (9, 0), False),
        (512, torch.bfloat16, (9, 0), False),
    ],
)
def test_the_kernel_is_chosen_where_it_can_run(
    width: int, dtype: torch.dtype, capability: tuple[int, int], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    attention._varlen_of.cache_clear()
    assert (attention._varlen(cuda_query(width), dtype) is not None) == taken
    attention._varlen_of.cache_clear()


def test_a_sliding_window_shorter_than_a_sample_is_refused() -> None:
    module: Any = SimpleNamespace(is_causal=True)
    documents = Documents.of(torch.tensor(LENGTHS), torch.device("cpu"))
    assert unpadded_attention(module, *states(HEADS), None, documents, sliding_window=12)[0].isfinite().all()
    with pytest.raises(ValueError, match="sliding window of 11 tokens, but a sample has 12"):
        unpadded_attention(module, *states(HEADS), None, documents, sliding_window=11)


@pytest.mark.parametrize(
    "module",
    [
        "train.pretrain", "train.sft", "train.dpo", "train.encode_once", "infer.generate", "infer.server",
        "infer.conversation", "eval.answers", "eval.suite", "preferences.from_answers", "callbacks.held_out",
    ],
)  # fmt: skip
def test_cudnn_attention_is_off_before_any_model_can_run(module: str) -> None:
    """Whatever trains or answers imports the file that switches it off, at the latest with its model."""
    assert "qa_train.model.layers.attention" in _loaded(f"qa_train.{module}") | _loaded("qa_train.model.build")
    assert "qa_train.model" in _loaded(f"qa_train.{module}")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    # The others stay.
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.math_sdp_enabled()
