"""The LM head, which scores supervised rows only: most positions are audio and prompt, and need no logits.

Shapes: B rows of the batch, L their padded length, N supervised tokens, D LLM width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qa_train.model.layers.costs import HEAD_ROWS
from qa_train.model.layers.on_cpu import OnCpu, sent


class Head(nn.Linear):
    """A linear layer that can also give the loss.

    Scores and loss come from one call of the module, however many rows there are: under ZeRO-3 each call gathers
    the weights from all ranks, so ranks that called it a different number of times would wait for ever.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> Head:
        """The head with the very weights of ``linear``."""
        head = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        head.weight, head.bias = linear.weight, linear.bias
        return head.train(linear.training)

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor | None = None, smoothing: float = 0.0
    ) -> torch.Tensor:
        """hidden [..., D] -> logits [..., V]; with targets [N], hidden [N, D] -> cross-entropy of each [N], float32."""
        if targets is None:
            return super().forward(hidden)
        chunks = list(zip(hidden.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True))
        if len(chunks) > 1 and torch.is_grad_enabled():
            losses = [checkpoint(self._cross_entropy, *chunk, smoothing, use_reentrant=False) for chunk in chunks]
        else:
            losses = [self._cross_entropy(*chunk, smoothing) for chunk in chunks]
        return torch.cat(losses)

    def _cross_entropy(self, hidden: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
        return _cross_entropy(nn.functional.linear(hidden, self.weight, self.bias), targets, smoothing)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)


def supervised_loss(
    head: nn.Module,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor | None,
    num_items: torch.Tensor | int | None,
    row_weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
    on_cpu: OnCpu | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the next token, summed over supervised tokens / ``num_items`` (None: their number).

    Also its sum by row [B], float32, not divided and without a gradient: for the record of each source.
    ``row_weights`` [B] are factors on the loss of the rows; neither the number nor the sums by row change.
    ``smoothing``: as torch's ``cross_entropy``; ``on_cpu``: copies of labels and mask.

    hidden [B, L, D]; labels [B, L], not shifted, -100 where nothing is supervised; mask [B, L], 0 on padding. A token
    counts if it and the one before it are real. Zero, with a gradient of zero, if no token counts.

    A head that is not a `Head` (replaced, or wrapped by peft) scores all supervised rows in one call.
    """
    if on_cpu is None or on_cpu.labels is None:
        supervised = _supervised(labels, mask)
    else:
        supervised = _supervised(on_cpu.labels, on_cpu.attention_mask)
    places = tuple(sent(index, hidden.device) for index in supervised.nonzero(as_tuple=True))
    targets = labels[:, 1:][places]
    rows = hidden[:, :-1][places]
    if isinstance(head, Head):
        losses: torch.Tensor = head(rows, targets, smoothing)
    else:
        losses = _cross_entropy(head(rows), targets, smoothing)
    # Through a rectangle: adding up by index is not deterministic on CUDA.
    by_token = losses.new_zeros(supervised.shape)
    by_token[places] = losses.detach()
    if row_weights is not None:
        losses = losses * row_weights[places[0]]
    return losses.sum() / (max(len(targets), 1) if num_items is None else num_items), by_token.sum(1)


def _supervised(labels: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Which tokens from the second on count [B, L - 1]."""
    supervised = labels[:, 1:] != -100
    return supervised if mask is None else supervised & mask[:, 1:].bool() & mask[:, :-1].bool()
