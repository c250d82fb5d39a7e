"""Does a model prefer the chosen answers of held-out pairs?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qa_train.data.batches import Batches
from qa_train.eval.scores import wilson_interval


@torch.inference_mode()
def answer_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Summed log-probability of each row's answer tokens: [2 P], the chosen halves first.

    ``batch`` is a preference batch (``PreferenceBatches.build``) of P pairs.
    """
    inputs = {name: value for name, value in batch.items() if name != "completion_mask"}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    targets = batch["input_ids"][:, 1:]
    picked = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
    return (picked * batch["completion_mask"][:, 1:]).sum(-1)


def pair_accuracy(model: Any, reference: Any | None, data: Batches, num_batches: int) -> dict[str, Any]:
    """Share of pairs, in percent, whose chosen answer the model prefers to the rejected one.

    With ``reference``, preference is DPO's implicit reward: the log-ratio to the reference
    (arXiv 2305.18290, section 4). Without it, the plain log-probability. Ties count as wrong.
    """
    right = total = 0
    margins = []
    for k in range(num_batches):
        batch = data.build(k)
        scores = answer_logps(model, batch)
        if reference is not None:
            scores = scores - answer_logps(reference, batch)
        chosen, rejected = scores.chunk(2)
        right += int((chosen > rejected).sum())
        total += len(chosen)
        margins.append((chosen - rejected).sum())
    if not total:
        raise ValueError("no pair to score: the batches are empty")
    low, high = wilson_interval(right, total)
    mean_margin = float(torch.stack(margins).sum()) / total
    return {"value": 100 * right / total, "ci_low": low, "ci_high": high, "n": total, "margin": mean_margin}
