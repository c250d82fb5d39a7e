"""The two sides that are compared: our model and the stock one, over one set of weights in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from benchmark.clips import Example, our_batch, stock_batch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration
from transformers.loss.loss_utils import ForCausalLMLoss

from qa_train.model import UnpaddedQwen2AudioForConditionalGeneration, freeze
from qa_train.model.flops import Regime
from qa_train.model.tokenizers import AUDIO, token_id

LORA_RANK = 16

REGIMES = {
    "full": Regime(),
    "frozen-encoder": Regime(encoder=False),
    "frozen-llm": Regime(llm=False),
    "lora": Regime(encoder=False, projector=False, llm=False, lora_rank=LORA_RANK),
}


def _scaled(width: int, layers: int, vocab: int) -> dict[str, dict[str, Any]]:
    """Qwen2-Audio-7B with widths divided by ``width`` and so many layers; heads keep their width of 64 and 128."""
    audio = {"d_model": 1280 // width, "encoder_ffn_dim": 5120 // width, "encoder_attention_heads": 20 // width}
    text = {"hidden_size": 4096 // width, "intermediate_size": 11008 // width, "num_attention_heads": 32 // width}
    return {
        "audio_config": {**audio, "encoder_layers": layers, "num_mel_bins": 128},
        "text_config": {
            **text,
            "model_type": "qwen2",
            "num_key_value_heads": text["num_attention_heads"],
            "num_hidden_layers": layers,
            "vocab_size": vocab,
            "max_position_embeddings": 8192,
        },
    }


# Encoder, LLM and head keep the proportions of the released model (0.637 : 6.476 : 0.639 billion weights) at every
# size. What cannot shrink is the length of a clip: attention over 1500 frames costs 0.2 times the encoder's linear
# layers at full width, 0.4 times at half and 0.8 times at a quarter. So results carry the FLOP ratio of 8.4 B, too.
SIZES = {"tiny": _scaled(4, 2, 2440), "small": _scaled(2, 4, 9760), "8b": _scaled(1, 32, 156032)}
# Narrow and deep: Qwen2 0.5B behind Whisper small, 0.72 billion weights. Its operations are short, so that a GPU waits
# for the host sooner than at 8.4 B.
SIZES["0.5b"] = {
    "audio_config": {
        "d_model": 768, "encoder_ffn_dim": 3072, "encoder_attention_heads": 12, "encoder_layers": 12,
        "num_mel_bins": 128,
    },
    "text_config": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
        "num_key_value_heads": 2, "num_hidden_layers": 24, "vocab_size": 156032, "max_position_embeddings": 8192,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One way to train: ``batch`` makes tensors of examples, ``loss`` is the micro-batch's share of the step's loss."""

    name: str
    model: nn.Module
    batch: Callable[[list[Example]], dict[str, Tensor]]
    loss: Callable[[nn.Module, dict[str, Tensor], int], Tensor]


def our_loss(model: nn.Module, batch: dict[str, Tensor], num_items: int) -> Tensor:
    """As qa_train's trainers call it: only supervised rows meet the head."""
    loss: Tensor = model(**batch, use_cache=False, num_items_in_batch=num_items).loss
    return loss


def stock_loss(model: nn.Module, batch: dict[str, Tensor], num_items: int) -> Tensor:
    """As HF's Trainer with its own causal-LM loss passed as ``compute_loss_func``.

    Without that function the stock model ignores ``num_items_in_batch``, and accumulation multiplies the loss.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits
    return ForCausalLMLoss(logits, batch["labels"], logits.shape[-1], num_items)


def make_config(size: str, tokenizer: PreTrainedTokenizerBase) -> Qwen2AudioConfig:
    """The configuration of a size of ``SIZES``."""
    return Qwen2AudioConfig(**SIZES[size], audio_token_index=token_id(tokenizer, AUDIO))


def make_sides(size: str, regime: str, processor: Any, device: str, dtype: torch.dtype, *, seed: int = 0) -> list[Side]:
    """Ours and stock, which share every parameter and buffer, with the regime's parts frozen."""
    tokenizer = processor.tokenizer
    with torch.device(device):
        torch.manual_seed(seed)
        ours: Any = UnpaddedQwen2AudioForConditionalGeneration._from_config(make_config(size, tokenizer), dtype=dtype)
    with torch.device("meta"):
        stock: Any = Qwen2AudioForConditionalGeneration._from_config(make_config(size, tokenizer), dtype=dtype)
    choice = REGIMES[regime]
    frozen = [part for part in ("encoder", "projector", "llm") if not getattr(choice, part)]
    freeze(ours, [] if choice.lora_rank else frozen)
    if choice.lora_rank:
        layers = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
        ours, stock = (
            get_peft_model(model, LoraConfig(r=choice.lora_rank, target_modules=layers)) for model in (ours, stock)
        )
    share_weights(stock, ours)
    return [
        Side("ours", ours.train(), lambda examples: our_batch(examples, processor), our_loss),
        Side("stock", stock.train(), lambda examples: stock_batch(examples, processor), stock_loss),
    ]


def share_weights(target: nn.Module, source: nn.Module) -> None:
    """Let ``target`` use the very parameters and buffers of ``source``, which has the same module names."""
    for name, module in target.named_modules():
        twin = source.get_submodule(name)
        for kind in ("_parameters", "_buffers"):
            ours, theirs = getattr(module, kind), getattr(twin, kind)
            if set(ours) != set(theirs):
                raise ValueError(f"{name or 'the model'}: {kind} are {sorted(ours)} and {sorted(theirs)}, not the same")
            ours.update(theirs)


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """The first layer of the encoder and of the LLM: what enters it is what the part computes on."""
    ends = {"encoder": "audio_tower.layers.0", "llm": "language_model.layers.0"}
    return {part: next(m for name, m in model.named_modules() if name.endswith(end)) for part, end in ends.items()}
