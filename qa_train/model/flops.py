"""How many floating-point operations a batch needs, counted on real frames, real tokens and supervised rows only.

One multiply-add is two operations. Only matrix products count (convolutions, linear layers, the two products of
attention), as in torch's ``FlopCounterMode`` and in published model-FLOPs utilisation; norms, activations, softmax,
the embedding look-up and the optimizer do not. Plain arithmetic on lengths: a planner can use it without tensors.

An encoder counts its own (``qa_train.model.encoders``). d encoder width, n tokens of a document, D LLM width:
 - projector: 2 d D per audio token;
 - LLM forward: 2 operations per weight and token, and 4 H h per pair of tokens that sees each other (H heads of width
   h). A document of n tokens has n (n + 1) / 2 such pairs. Grouped keys and values save weights, not pairs;
 - head: 2 D V per supervised row.

A backward pass costs each linear layer one forward for the gradient of its weights, if they train, and one for the
gradient of its input, if something before it trains. Attention has no weights and two inputs: its backward is two
forwards. That gives 3 x forward for a part that trains, 1 x for a frozen encoder, and 2 x (attention: 3 x) for a
frozen LLM that gradients pass through. What gradient checkpointing, or the backward kernel of flash attention, computes
a second time is not useful work and is not in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from qa_train.config import ModelConfig
from qa_train.model.encoders.interface import EncoderCosts
from qa_train.model.encoders.kinds import kind_of
from qa_train.model.layers.lengths import audio_tokens


@dataclass(frozen=True)
class Shapes:
    """The sizes of a model that its cost depends on."""

    encoder: EncoderCosts
    width: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocab: int

    @classmethod
    def of(cls, config: Any) -> Shapes:
        """Those of a ``Qwen2AudioConfig`` whose LLM has gated MLPs (Qwen, Qwen2/2.5/3, Llama)."""
        text = config.text_config
        return cls(
            encoder=kind_of(config.audio_config).costs(config.audio_config),
            width=text.hidden_size,
            ffn=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocab=text.vocab_size,
        )

    @property
    def qkv_weights(self) -> int:
        """Weights of query, key and value of one LLM layer."""
        return self.width * (self.heads + 2 * self.kv_heads) * self.head_width

    @property
    def llm_weights(self) -> int:
        """Weights of the LLM's linear layers, all layers, without embedding and head."""
        return self.layers * (self.qkv_weights + self.heads * self.head_width * self.width + 3 * self.width * self.ffn)

    def adapter_weights(self, rank: int) -> int:
        """Weights of LoRA adapters of ``rank`` on all seven linear layers of every LLM layer."""
        query, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        ends = 2 * (self.width + query) + 2 * (self.width + keys) + 3 * (self.width + self.ffn)
        return self.layers * rank * ends


@dataclass(frozen=True)
class Work:
    """What a batch holds: mel frames of its segments, tokens of its documents, rows that the head must score."""

    segments: Sequence[int]
    documents: Sequence[int]
    supervised: int

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> Work:
        """That of a batch of the data path: attention_mask and labels [B, L], feature_lengths [S] if it has audio.

        Pairs have completion_mask [B, L] instead of labels.
        """
        mask = batch["attention_mask"].bool()
        asked = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"].bool()
        supervised = asked[:, 1:] & mask[:, 1:] & mask[:, :-1]
        lengths = batch.get("feature_lengths")
        return cls(
            segments=[] if lengths is None else lengths.tolist(),
            documents=mask.sum(1).tolist(),
            supervised=int(supervised.sum()),
        )


@dataclass(frozen=True)
class Regime:
    """Which parts train. ``lora_rank``: adapters on all linear layers of a frozen LLM."""

    encoder: bool = True
    projector: bool = True
    llm: bool = True
    lora_rank: int = 0

    @classmethod
    def of(cls, cfg: ModelConfig) -> Regime:
        """The trained parts of this configuration. Gradients pass through an encoder with adapters as through one that
        trains."""
        frozen, lora = set(cfg.freeze), set(cfg.lora.parts)
        return cls(
            encoder="encoder" in lora or not ("encoder" in frozen or lora),
            projector="projector" not in frozen,
            llm="llm" not in frozen and not lora,
            lora_rank=cfg.lora.r if "llm" in lora else 0,
        )

    def __post_init__(self) -> None:
        if not (self.encoder or self.projector or self.llm or self.lora_rank):
            raise ValueError("nothing trains in this regime: let a part train, or give a lora_rank")
        if self.llm and self.lora_rank:
            raise ValueError(f"lora_rank is {self.lora_rank} although the LLM trains: adapters need llm=False")


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by part of the model. stem: of the encoder, before its layers."""

    stem: float = 0
    encoder: float = 0
    encoder_attention: float = 0
    projector: float = 0
    llm: float = 0
    llm_attention: float = 0
    adapters: float = 0
    head: float = 0

    @property
    def total(self) -> float:
        """The sum over the parts."""
        return sum(getattr(self, field.name) for field in fields(self))


def forward_flops(shapes: Shapes, work: Work, *, lora_rank: int = 0, causal: bool = True) -> Flops:
    """One forward pass. ``causal=False`` counts whole squares of LLM attention, as kernels with a mask compute them."""
    tokens = sum(work.documents)
    pairs = sum(n * (n + 1) / 2 if causal else n * n for n in work.documents)
    encoder = shapes.encoder.flops(work.segments)
    return Flops(
        stem=encoder.stem,
        encoder=encoder.layers,
        encoder_attention=encoder.attention,
        projector=2 * shapes.encoder.width * shapes.width * sum(audio_tokens(length) for length in work.segments),
        llm=2 * shapes.llm_weights * tokens,
        llm_attention=4 * shapes.layers * shapes.heads * shapes.head_width * pairs,
        adapters=2 * shapes.adapter_weights(lora_rank) * tokens,
        head=2 * shapes.width * shapes.vocab * work.supervised,
    )


def training_flops(shapes: Shapes, work: Work, regime: Regime, *, causal: bool = True) -> Flops:
    """Forward and backward of one batch in a regime; see the module docstring for what a backward pass costs."""
    forward = forward_flops(shapes, work, lora_rank=regime.lora_rank, causal=causal)
    before_llm = regime.encoder or regime.projector or regime.llm  # the embedding trains with the LLM
    encoder, llm = shapes.encoder.flops(work.segments, trains=regime.encoder), int(regime.llm)
    rank = regime.lora_rank
    tokens = sum(work.documents)
    # With adapters alone nothing trains before the first layer, whose query, key and value pass no gradient on.
    first = 0 if before_llm else 2 * tokens
    return Flops(
        stem=encoder.stem,
        encoder=encoder.layers,
        encoder_attention=encoder.attention,
        projector=forward.projector * (1 + int(regime.projector) + int(regime.encoder)),
        llm=forward.llm * (2 + llm) - first * shapes.qkv_weights,
        llm_attention=forward.llm_attention * 3,
        adapters=forward.adapters * 3 - first * 3 * rank * shapes.width,
        head=forward.head * (2 + llm),
    )
