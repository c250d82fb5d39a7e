"""What the forward pass keeps for the backward pass, in bytes, layer by layer.

Counted from the operations of transformers' Qwen2 and Whisper layers and of the unpadded attention, and compared with
what autograd really saves on small models in the tests.

T tokens, D LLM width, H·h width of all heads, F MLP width; t conv frames, d encoder width, f its MLP width. With
``s`` bytes per value of the residual stream, ``p`` per output of a matrix product and ``a`` inside attention, a layer
that trains keeps, per token:

 - LLM: of each of two norms the input (in float32), the normalised values and what the linear layers read; of attention
   query, key, value and output (4 H h a) and the softmax's sums (4 bytes a head); of the gated MLP four times F p;
 - encoder: of each of two norms the input and what the linear layers read; 4 d a of attention; 2 f p of the MLP.

A frozen LLM that gradients pass through keeps less, because a frozen linear layer needs no input again; a frozen
encoder keeps nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from qa_train.model.flops import Shapes, Work
from qa_train.model.layers.lengths import audio_tokens, conv_frames

# Rows of logits held at a time (qa_train.model.layers.head), and bytes per logit at the worst moment of the backward
# pass: the log-softmax, its gradient and the gradient of the logits, each in float32.
HEAD_ROWS = 2048
_LOGIT_BYTES = 12


@dataclass(frozen=True)
class Precision:
    """Bytes per value: of the weights, the residual stream, the products and attention.

    autocast: float32 weights, products in bfloat16; every linear layer then keeps a cast copy of its input.
    loop: attention runs document by document (on a CPU, and in float32 anywhere), and its output is copied once.
    """

    weights: int = 2
    stream: int = 2
    product: int = 2
    attention: int = 2
    autocast: bool = False
    loop: bool = False

    @classmethod
    def of(cls, dtype: str, *, autocast: bool = False, cpu: bool = False) -> Precision:
        """That of weights in ``dtype`` ("float32", "bfloat16", "float16"), under autocast to bfloat16 or not."""
        size = 4 if dtype == "float32" else 2
        if autocast:
            wide = cpu or size == 4
            return cls(size, size, 2, 4 if wide else 2, autocast=size == 4, loop=wide)
        return cls(size, size, size, 4 if cpu else size, loop=cpu or size == 4)


@dataclass(frozen=True)
class Trained:
    """How a part trains: whole, through adapters, or frozen (with gradients passing through it or not)."""

    whole: bool = False
    adapters: bool = False
    passes: bool = False
    # Bytes per value that an adapter's first matrix reads, when it is not the layer's own input.
    adapter_copy: int = 0


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
    frames = sum(conv_frames(length) for length in work.segments)
    tokens = sum(work.documents)
    enc_layer, llm_layer = (
        _encoder_layer(shapes, precision, encoder) * frames,
        _llm_layer(shapes, precision, llm) * tokens,
    )
    enc_kept = _kept(modes[0], enc_layer, _encoder_marks(shapes, precision, encoder, modes[0]) * frames)
    llm_kept = _kept(modes[1], llm_layer, _llm_marks(shapes, precision, llm, modes[1]) * tokens)
    encoder_runs = encoder.whole or encoder.adapters
    llm_runs = llm.whole or llm.adapters or llm.passes
    kept_encoder = shapes.encoder_layers * enc_kept + _ends(shapes, work, precision, encoder) if encoder_runs else 0.0
    kept_llm = shapes.layers * llm_kept + _final_norm(shapes, precision) * tokens if llm_runs else 0.0
    # Layers are recomputed one at a time; the larger one counts. What it kept before is still there.
    again = [
        layer - (kept if mode == "selective" else 0.0)
        for mode, layer, kept, runs in (
            (modes[0], enc_layer, enc_kept, encoder_runs),
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
        # An adapter's second product is as wide as the layer's own.
        times = 2 if trained.adapters else 1
        heads, keys = shapes.heads * shapes.head_width, shapes.kv_heads * shapes.head_width
        products = heads + 2 * keys + shapes.width + 2 * shapes.ffn + shapes.width
        total += times * precision.product * products + precision.attention * heads + 4 * shapes.heads
    return total


def _encoder_layer(shapes: Shapes, precision: Precision, trained: Trained) -> float:
    """Bytes per conv frame of one encoder layer without checkpointing."""
    d, f, p = shapes.encoder_width, shapes.encoder_ffn, precision.product
    # Inputs of the linear layers: one tensor for query, key and value and one for fc1, or a copy for each of the four.
    copy = trained.adapter_copy or (p if precision.autocast else 0)
    copies = 4 * copy if copy else 2 * precision.stream
    loop = d * p if precision.loop else 0
    return 2 * precision.stream * d + copies * d + 4 * d * precision.attention + loop + 2 * f * p


def _encoder_marks(shapes: Shapes, precision: Precision, trained: Trained, mode: str) -> float:
    """Bytes per conv frame that a checkpointed encoder layer keeps."""
    d, f = shapes.encoder_width, shapes.encoder_ffn
    total = precision.stream * d
    if mode == "selective":
        times = 2 if trained.adapters else 1
        total += times * precision.product * (5 * d + f) + precision.attention * d
    return total


def _ends(shapes: Shapes, work: Work, precision: Precision, trained: Trained) -> float:
    """The convolutions before the encoder's layers, and pool and projector after them."""
    frames, d, b = sum(conv_frames(n) for n in work.segments), shapes.encoder_width, precision.product
    after = sum(audio_tokens(n) for n in work.segments) * 2 * d * precision.stream
    if not trained.whole:
        return after
    # mel columns = 2 x frames: input, output before and after the first GELU; then the second convolution's output.
    return after + frames * b * (2 * shapes.mel_bins + 4 * d + d)


def _final_norm(shapes: Shapes, precision: Precision) -> float:
    return 4 * shapes.width + 2 * precision.stream * shapes.width
