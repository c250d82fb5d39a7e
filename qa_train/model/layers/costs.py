"""What layers cost: operations and bytes, and how a part trains, which decides both. Arithmetic without tensors."""

from __future__ import annotations

from dataclasses import dataclass

# Rows of logits that the LM head holds at a time; 2048 x 156,032 in float32 are 1.3 GB.
HEAD_ROWS = 2048


@dataclass(frozen=True)
class Precision:
    """Bytes per value: of the weights, the residual stream, the products and attention.

    autocast: float32 weights, products in bfloat16; every linear layer then keeps a cast copy of its input.
    loop: attention runs document by document (on a CPU, and in float32 anywhere), and its output is copied once.
    norms: of what a layer norm keeps of its input; on a GPU autocast computes it in float32.
    """

    weights: int = 2
    stream: int = 2
    product: int = 2
    attention: int = 2
    autocast: bool = False
    loop: bool = False
    norms: int = 2

    @classmethod
    def of(cls, dtype: str, *, autocast: bool = False, cpu: bool = False) -> Precision:
        """That of weights in ``dtype`` ("float32", "bfloat16", "float16"), under autocast to bfloat16 or not."""
        size = 4 if dtype == "float32" else 2
        if autocast:
            wide = cpu or size == 4
            return cls(size, size, 2, 4 if wide else 2, autocast=size == 4, loop=wide, norms=size if cpu else 4)
        return cls(size, size, size, 4 if cpu else size, loop=cpu or size == 4, norms=size)


@dataclass(frozen=True)
class Trained:
    """How a part trains: whole, through adapters, or frozen (with gradients passing through it or not)."""

    whole: bool = False
    passes: bool = False
    # Of the adapters; 0 without them.
    rank: int = 0
    # Bytes per value that an adapter's first matrix reads, when it is not the layer's own input.
    adapter_copy: int = 0

    @property
    def adapters(self) -> bool:
        """Whether it trains through adapters."""
        return self.rank > 0


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass: of one layer, of one layer whose forward is run again
    (gradient checkpointing), and of what comes before the first layer and after the last."""

    layer: float
    marks: float
    ends: float


@dataclass(frozen=True)
class EncoderFlops:
    """Floating-point operations of an encoder: before its layers, in their linear layers, in their attention."""

    stem: float
    layers: float
    attention: float
