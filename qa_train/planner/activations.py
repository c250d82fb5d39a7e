"""What the forward pass keeps for the backward pass, in bytes, layer by layer.

Counted from the operations of transformers' Qwen2 layers and of the unpadded attention, and compared with what autograd
really saves on small models in the tests. An encoder counts its own (``qa_train.model.encoders``).

T tokens, D LLM width, H·h width of all heads, F MLP width. With ``s`` bytes per value of the residual stream, ``p`` per
output of a matrix product and ``a`` inside attention, an LLM layer that trains keeps, per token: of each of two norms
the input (in float32), the normalised values and what the linear layers read; of attention query, key, value and output
(4 H h a) and the softmax's sums (4 bytes a head); of the gated MLP four times F p. A frozen LLM that gradients pass
through keeps less, because a frozen linear layer needs no input again.
"""

from __future__ import annotations

from dataclasses import dataclass

from qa_train.model.flops import Shapes, Work
from qa_train.model.layers.costs import HEAD_ROWS, Precision, Trained

# Bytes per logit at the worst moment of the backward pass: the log-softmax, its gradient and the gradient of the
# logits, each in float32.
_LOGIT_BYTES = 12


@dataclass(frozen=True)
class Activations:
    """Bytes kept at the end of the forward pass, and the most that one recomputed layer adds in the backward pass."""

    encoder: float
    llm: float
    recomputed: float
    logits: float

    @property
    def total(self) -> float:
        """Bytes that are held at the same time."""
        return self.encoder + self.llm + self.recomputed + self.logits


def activations(
    shapes: Shapes, work: Work, precision: Precision, encoder: Trained, llm: Trained, modes: tuple[str, str]
) -> Activations:
    """Those of one micro-batch. ``modes``: gradient checkpointing (none, selective or full) of encoder and LLM."""
    tokens = sum(work.documents)
    enc = shapes.encoder.kept(work.segments, precision, encoder, modes[0])
    llm_layer = _llm_layer(shapes, precision, llm) * tokens
    enc_kept = _kept(modes[0], enc.layer, enc.marks)
    llm_kept = _kept(modes[1], llm_layer, _llm_marks(shapes, precision, llm, modes[1]) * tokens)
    encoder_runs = encoder.whole or encoder.adapters
    llm_runs = llm.whole or llm.adapters or llm.passes
    kept_encoder = shapes.encoder.layers * enc_kept + enc.ends if encoder_runs else 0.0
    kept_llm = shapes.layers * llm_kept + _final_norm(shapes, precision) * tokens if llm_runs else 0.0
    # Layers are recomputed one at a time; the larger one counts. What it kept before is still there.
    again = [
        layer - (kept if mode == "selective" else 0.0)
        for mode, layer, kept, runs in (
            (modes[0], enc.layer, enc_kept, encoder_runs),
            (modes[1], llm_layer, llm_kept, llm_runs),
        )
        if mode != "none" and runs
    ]
    rows = min(work.supervised, HEAD_ROWS)
    hidden = work.supervised * shapes.width * precision.stream
    return Activations(kept_encoder, kept_llm, max(again, default=0.0), rows * shapes.vocab * _LOGIT_BYTES + hidden)


def _kept(mode: str, layer: float, marks: float) -> float:
    return layer if mode == "none" else min(marks, layer)


def _llm_layer(shapes: Shapes, precision: Precision, trained: Trained) -> float:
    """Bytes per token of one decoder layer without checkpointing."""
    width, heads, ffn = shapes.width, shapes.heads * shapes.head_width, shapes.ffn
    p = precision.product
    norm = 4 * width
    if trained.whole:
        norm += precision.stream * width  # the normalised values, for the gradient of the norm's weight
    attention = 4 * heads * precision.attention + 4 * shapes.heads
    total = 2 * norm + attention + 3 * ffn * p
    if not (trained.whole or trained.adapters):
        return total
    copy = trained.adapter_copy if trained.adapters else p if precision.autocast else 0
    # Inputs of the linear layers: one tensor for query, key and value and one for gate and up, or a copy for each.
    read = 5 * copy * width if copy else 2 * precision.stream * width
    out = copy * heads if copy and not precision.autocast else 0
    total += read + max(out, heads * p if precision.loop or trained.adapter_copy else 0)
    return total + ffn * (trained.adapter_copy or p)


def _llm_marks(shapes: Shapes, precision: Precision, trained: Trained, mode: str) -> float:
    """Bytes per token that a checkpointed decoder layer keeps."""
    total = precision.stream * shapes.width
    if mode == "selective":
        # The sum before the MLP, what attention reads and gives, and what the gated product reads.
        heads = shapes.heads * shapes.head_width
        keys = heads if precision.loop else shapes.kv_heads * shapes.head_width
        total += precision.stream * shapes.width + precision.attention * 2 * (heads + keys) + 4 * shapes.heads
        total += precision.product * 2 * shapes.ffn
        if precision.loop and (trained.whole or trained.adapters):
            total += precision.product * heads
    return total


def _final_norm(shapes: Shapes, precision: Precision) -> float:
    return 4 * shapes.width + 2 * precision.stream * shapes.width
