"""The loss, computed on supervised rows only: most positions are audio and prompt, and need no logits.

Shapes: B rows of the batch, L their padded length, D LLM width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Rows of logits held at a time; 2048 x 156,032 in float32 are 1.3 GB.
_CHUNK = 2048


def supervised_loss(
    head: nn.Module,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None,
    num_items: torch.Tensor | int | None,
) -> torch.Tensor:
    """Cross-entropy of the next token, summed over supervised tokens / ``num_items`` (None: their number).

    hidden [B, L, D]; labels [B, L], not shifted, -100 where nothing is asked; mask [B, L], 0 on padding. A token
    counts if it and the one before it are real. Zero, with a gradient of zero, if no token counts.
    """
    supervised = labels[:, 1:] != -100
    if mask is not None:
        supervised = supervised & mask[:, 1:].bool() & mask[:, :-1].bool()
    rows, targets = hidden[:, :-1][supervised], labels[:, 1:][supervised]
    chunks = list(zip(rows.split(_CHUNK), targets.split(_CHUNK), strict=True))
    if len(chunks) > 1 and torch.is_grad_enabled():
        losses = [checkpoint(_cross_entropy, head, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        losses = [_cross_entropy(head, *chunk) for chunk in chunks]
    return torch.stack(losses).sum() / (max(len(targets), 1) if num_items is None else num_items)


def _cross_entropy(head: nn.Module, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(head(rows).float(), targets, reduction="sum")
