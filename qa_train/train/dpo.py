"""Stage 3: direct preference optimization against the model the stage starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from qa_train.config import StageConfig
from qa_train.model import build_model
from qa_train.train.common import go, open_stage, training_arguments
from qa_train.train.gather import gather_ragged
from qa_train.train.mixin import AudioTrainerMixin


class AudioDPOTrainer(AudioTrainerMixin, DPOTrainer):
    """TRL's DPOTrainer on audio batches; every pair of a step weighs the same.

    Batches hold as many pairs as fit the token budget, so TRL's mean over a batch is turned into
    a sum over pairs divided by the pairs of the whole step.
    """

    def attach(self, **parts: Any) -> None:
        """As the mixin, and let ranks gather rewards of unequal numbers of pairs."""
        super().attach(**parts)
        gather = self.accelerator.gather
        self.accelerator.gather = partial(gather_ragged, gather)  # type: ignore[method-assign]

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """As the mixin, and remember how many pairs the step has on all ranks."""
        found = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._pairs_of_step = self._step_numbers["pairs"]
        return found

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's DPO loss, weighted by this batch's share of the step's pairs."""
        result = DPOTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if not inputs["completion_mask"].any():
            # All pairs were skipped; a mean over no answer token is not a number.
            loss = torch.nan_to_num(loss)
        pairs = inputs["attention_mask"].shape[0] // 2
        # The trainer divides by the accumulation steps, DDP and DeepSpeed average over ranks.
        loss = loss * pairs * self.batches_per_step / self._pairs_of_step
        self.check_finite(loss)
        return (loss, result[1]) if return_outputs else loss


def dpo(cfg: StageConfig) -> int:
    """Run the stage; returns the process's exit code (0 finished, 75 stopped by a signal)."""
    args = training_arguments(cfg, DPOConfig, max_length=None, **asdict(cfg.dpo))
    stage = open_stage(cfg, args)
    if stage is None:
        return 0
    reference = None
    if stage.adapters is None:
        reference, _ = build_model(cfg.model, seed=cfg.run.seed)
        reference.requires_grad_(False)
    trainer = AudioDPOTrainer(
        model=stage.model,
        # With adapters the reference is the model without them: TRL switches them off, and nothing is held twice.
        ref_model=reference,
        peft_config=stage.adapters.config if stage.adapters else None,
        args=args,
        train_dataset=stage.dataset,
        data_collator=stage.collator,
        # The tokenizer, not the processor: TRL takes a processor to mean vision data.
        processing_class=stage.processor.tokenizer,
    )
    return go(trainer, stage)
