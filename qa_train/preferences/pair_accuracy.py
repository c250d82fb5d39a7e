"""Does a model prefer the chosen answers of held-out pairs?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qa_train.data.batches import Batches
from qa_train.eval.scores.task_metrics import wilson_interval


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


@torch.inference_mode()
def pair_accuracy(model: Any, reference: Any | None, data: Batches, num_batches: int) -> dict[str, Any]:
    """Share of pairs, in percent, whose chosen answer the model prefers to the rejected one.

    With ``reference``, preference is DPO's implicit reward: the log-ratio to the reference
    (arXiv 2305.18290, section 4). Without it, the plain log-probability. Ties count as wrong.
    ``by_family`` has the same numbers for the pairs of each ``family`` that their records name.
    """
    margins: dict[str | None, list[float]] = {}
    for k in range(num_batches):
        batch, refs = data.build_named(k)
        if not refs:
            # Nothing of the batch could be read; its placeholder is not a pair.
            continue
        scores = answer_logps(model, batch)
        if reference is not None:
            scores = scores - answer_logps(reference, batch)
        chosen, rejected = scores.chunk(2)
        for ref, margin in zip(refs, (chosen - rejected).tolist(), strict=True):
            family = data.sources[ref.source].record(ref.row).get("family")
            margins.setdefault(family, []).append(margin)
    if not margins:
        raise ValueError("no pair to score: the batches are empty")
    by_family = {family: _accuracy(found) for family, found in margins.items() if family is not None}
    everything = [margin for found in margins.values() for margin in found]
    return _accuracy(everything) | {"by_family": dict(sorted(by_family.items()))}


def _accuracy(margins: list[float]) -> dict[str, float]:
    right, total = sum(margin > 0 for margin in margins), len(margins)
    low, high = wilson_interval(right, total)
    return {"value": 100 * right / total, "ci_low": low, "ci_high": high, "n": total, "margin": sum(margins) / total}
