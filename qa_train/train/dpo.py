"""Stage 3: direct preference optimization against the model the stage starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from qa_train.config import StageConfig
from qa_train.data.batches import Batches, PreferenceBatches
from qa_train.model import build_model, load_weights, weights_digest
from qa_train.model.layers.kernels import use_liger_kernels
from qa_train.train.flow import Callback, train
from qa_train.train.job.distributed import by_main, whole
from qa_train.train.mixin import AudioTrainerMixin
from qa_train.train.numbers.tally import PAIR_VALUES, pair_curves, pair_values
from qa_train.train.reference import Reference
from qa_train.train.stage import Stage
from qa_train.utils.progress import say

# The loss that is a mean over tokens, and those that sort the pairs of a micro-batch.
SFT = "sft"
SORTED = ("aot", "aot_unpaired")
# The folder in a checkpoint that holds a reference that moves (dpo.sync_ref_model).
MOVED_REFERENCE = "reference"
# So many micro-batches are looked at before a run with one of the latter.
LOOKED_AT = 1000


class AudioDPOTrainer(AudioTrainerMixin, DPOTrainer):
    """TRL's DPOTrainer on audio batches; every pair of a step has equal weight.

    Batches hold as many pairs as fit the token budget, so TRL's mean over a batch is turned into
    a sum over pairs divided by the pairs of the whole step; the mean of an added SFT term, over tokens of the chosen,
    into a sum over these divided by those of the whole step. How pairs fall into batches changes neither.
    """

    tallied = PAIR_VALUES
    # The stock classes declare the first as of the base class, and the second as any model.
    args: DPOConfig
    ref_model: Any

    @contextmanager
    def _kept_at_home(self) -> Iterator[list[torch.Tensor]]:
        """Keep the values that TRL would gather from all ranks, in its order: `pair_values` checks them by name.

        The tally adds it up once per step.

        TRL assumes equal pair counts across ranks. Token-budget batches break that: gloo would abort, and NCCL would
        hang or mix up values.
        """
        kept: list[torch.Tensor] = []
        gather = self.accelerator.gather

        def keep(values: torch.Tensor) -> torch.Tensor:
            kept.append(values.detach())
            return values

        self.accelerator.gather = keep  # type: ignore[method-assign]
        try:
            yield kept
        finally:
            self.accelerator.gather = gather  # type: ignore[method-assign]

    @contextmanager
    def _sft_by_tokens(self, chosen: torch.Tensor, share: float) -> Iterator[None]:
        """Weigh the SFT term so that, times ``share`` of the step's pairs, it has this batch's share of their tokens.

        chosen: mask of the tokens of the chosen answers [pairs, L - 1].
        """
        weights = self.loss_weights
        if SFT in self.loss_types and share:
            right = float(chosen.sum()) / max(self._step_numbers["chosen_tokens"], 1.0) / share
            self.loss_weights = [w * right if t == SFT else w for t, w in zip(self.loss_types, weights, strict=True)]
        try:
            yield
        finally:
            self.loss_weights = weights

    def curves(self) -> dict[str, float]:
        """Rewards, margins, accuracies, KL and lengths of the step, over all its pairs and by source."""
        return pair_curves(self.tally.record(self.accelerator), self.beta)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the mixin, but drop TRL's per-rank means so they do not override the step metrics."""
        for metrics in self._metrics.values():
            metrics.clear()
        super().log(logs, start_time)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """TRL would pad the dataset's rows here; our batches bring the values (``Reference.fill``)."""
        return dataset

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As the stock one; a moving reference is part of the training state and is saved with it."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.sync_ref_model and self.args.should_save:
            self.ref_model.save_pretrained(Path(output_dir) / MOVED_REFERENCE)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.args.sync_ref_model and checkpoint is not None:
            load_weights(self.ref_model, Path(checkpoint) / MOVED_REFERENCE)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's DPO loss, weighted by this batch's share of the step's pairs."""
        inputs = self._prepare_inputs(inputs)
        pairs, completions = inputs["attention_mask"].shape[0] // 2, inputs["on_cpu"].completion_mask
        share = pairs / self._step_numbers["pairs"]
        with self._kept_at_home() as kept, self._sft_by_tokens(completions[:pairs, 1:], share):
            result = DPOTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        reported = self._metrics["train" if model.training else "eval"]
        self.tally.add(pair_values(kept, inputs["completion_mask"], reported, training=model.training))
        loss = result[0] if return_outputs else result
        if not completions.any():
            # All pairs were skipped; a mean over no answer token is not a number.
            loss = torch.nan_to_num(loss)
        # The trainer divides by the accumulation steps, DDP and DeepSpeed average over ranks.
        loss = loss * share * self.batches_per_step
        self.check_finite(loss)
        return (loss, result[1]) if return_outputs else loss


def dpo(cfg: StageConfig, *, callbacks: Sequence[Callback] = ()) -> int:
    """Run the stage; see `qa_train.train.flow.train`."""
    options = asdict(cfg.dpo)
    precomputed = options.pop("reference") == "precomputed"
    return train(cfg, DPOConfig, _build, callbacks, max_length=None, precompute_ref_log_probs=precomputed, **options)


def _build(stage: Stage, args: DPOConfig) -> AudioDPOTrainer:
    """The trainer with its reference: a second model, the model without its adapters, or values computed once."""
    cfg, precomputed = stage.cfg, args.precompute_ref_log_probs
    num_batches = cfg.trainer.max_steps * cfg.trainer.batches_per_step
    note = single_pairs(cfg.dpo.loss_type, stage.batches, num_batches)
    if note and stage.run.is_main:
        say(note)
    reference = Reference(stage.run.dir / "reference", _facts(stage), is_main=stage.run.is_main)
    model = None
    cut = cfg.deepspeed.zero_stage == 3
    if cut if precomputed else stage.adapters is None:
        model, _ = build_model(cfg.model, seed=cfg.run.seed)
        if cfg.trainer.use_liger_kernel:
            use_liger_kernels(model)
        model.requires_grad_(False)
    trainer = AudioDPOTrainer(
        model=stage.model,
        # With adapters the reference is the model without them: TRL disables them, so no second copy is in memory.
        # A ZeRO-3 model runs only inside an engine, so a second engine runs it until training starts.
        ref_model=model,
        peft_config=stage.adapters.config if stage.adapters else None,
        args=args,
        train_dataset=stage.dataset,
        data_collator=stage.collator,
        # The tokenizer, not the processor: TRL takes a processor to mean vision data.
        processing_class=stage.processor.tokenizer,
    )
    if precomputed:
        assert isinstance(stage.batches, PreferenceBatches)
        first = stage.first_step * cfg.trainer.batches_per_step
        reference.fill(trainer, stage.batches, num_batches, cfg.data.tokens_per_batch, first=first)
        trainer.ref_model = None
    else:
        reference.pin()
    return trainer


def single_pairs(losses: Sequence[str], batches: Batches, num_batches: int) -> str | None:
    """A note for losses that sort the pairs of a micro-batch: with a single pair they are the plain sigmoid.

    Raises:
        ValueError: no sampled micro-batch has two pairs.
    """
    sorting = [name for name in losses if name in SORTED]
    if not sorting:
        return None
    looked_at = min(num_batches, LOOKED_AT)
    single = sum(len(batches.plan.batch(k)) < 2 for k in range(looked_at))
    what = (
        f"dpo.loss_type={sorting[0]} sorts the pairs of a micro-batch, and {single} of the first {looked_at} hold one "
        "pair alone, for which it is the plain sigmoid; a larger data.tokens_per_batch gives them more"
    )
    if single == looked_at:
        raise ValueError(f"{what}, or use dpo.loss_type=[sigmoid]")
    return what if single else None


def _facts(stage: Stage) -> dict[str, Any]:
    """The identity of the reference: the stage's initial model and the arithmetic it runs in."""
    cfg = stage.cfg
    if any(hasattr(weight, "ds_id") for weight in stage.model.parameters()):
        digest = weights_digest(stage.model, whole)
    else:
        # Every process holds the same weights: one of them hashes.
        digest = by_main(lambda: weights_digest(stage.model))
    return {
        "kind": cfg.dpo.reference,
        "weights_digest": digest,
        "dtype": cfg.model.dtype + (" in bfloat16 autocast" if cfg.trainer.bf16 else ""),
        "ld_alpha": cfg.dpo.ld_alpha,
    }
