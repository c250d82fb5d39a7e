"""The one piece of trainer code of our own, mixed into transformers' and TRL's trainers.

It adds what audio and exactness need, and nothing else:

1. data: the dataset is a list of batch numbers, read in order; the collator builds batch k;
2. loss: a sum over supervised tokens divided by their number in the whole optimizer step;
3. checkpoints: committed with a manifest, restored with a check of the weights;
4. guards: a loss or gradient that is not finite stops the run before it is used further;
5. numbers: every step's tokens, clips, seconds of audio and waiting time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from qa_train.config import PartsConfig, TrainerConfig
from qa_train.data.batches import Batches
from qa_train.model import load_weights, weights_digest
from qa_train.model.lora import Adapters, write_base
from qa_train.train import checkpoints
from qa_train.train.distributed import optimizer_layout
from qa_train.train.groups import PartRates
from qa_train.train.metrics import MetricsWriter
from qa_train.train.optimizers import muon_with_adamw
from qa_train.train.run import RunFolder

# 100 mel frames are one second (hop 160 at 16 kHz), 25 audio tokens are one second.
_FRAMES_PER_SECOND = 100
_AUDIO_TOKENS_PER_SECOND = 25


class StopRun(RuntimeError):
    """The run must not go on; the message says why and what to do."""


class AudioTrainerMixin:
    """See the module docstring. Set up by :meth:`attach` right after construction."""

    def attach(
        self,
        *,
        batches: Batches,
        run: RunFolder,
        writer: MetricsWriter,
        options: TrainerConfig,
        adapters: Adapters | None = None,
    ) -> None:
        """Hand over what the stock constructors have no place for."""
        self.batches = batches
        self.run = run
        self.writer = writer
        self.options = options
        self.adapters = adapters
        self._step_numbers: dict[str, float] = {}
        self._checkpoint_s = 0.0

    # --- 1. data -------------------------------------------------------------------------------

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL tokenizes text columns here; our batches are built by the collator."""
        return dataset

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Fetch the micro-batches of one step, count what they hold, and time the wait."""
        started = time.perf_counter()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        waited = time.perf_counter() - started
        if not self._step_numbers:
            # The first step's time begins here: loading the model and the checkpoint is not part of it.
            self._step_started = started
        numbers = sum((_count(batch) for batch in batches), torch.zeros(7, dtype=torch.float64))
        numbers[6] = sum(self.batches.skipped.values())
        if self.args.world_size > 1:  # type: ignore[attr-defined]
            numbers = self.accelerator.reduce(numbers.float().to(device), "sum").double().cpu()  # type: ignore[attr-defined]
        names = ("tokens", "padded_tokens", "supervised_tokens", "rows", "audio_s", "pairs", "skipped")
        self._step_numbers = dict(zip(names, numbers.tolist(), strict=True))
        self._step_numbers |= {"data_wait_s": waited, "checkpoint_s": self._checkpoint_s}
        self._checkpoint_s = 0.0
        return batches, num_items

    # --- 2. loss -------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy over supervised tokens / their number in the whole step (all ranks, all micro-batches).

        DDP and DeepSpeed average gradients over ranks, hence the factor world size.
        """
        if num_items_in_batch is not None:
            # Nothing is supervised in a step whose samples were all skipped: its loss is 0, not 0 / 0.
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
        outputs = model(**inputs, use_cache=False, num_items_in_batch=num_items_in_batch)
        loss = outputs.loss
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # type: ignore[attr-defined]
        self.check_finite(loss)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        """Muon for the hidden matrices if asked for, else the stock optimizer; rates by part if they differ."""
        rate = self.options.muon_learning_rate
        apart = self.options.parts != PartsConfig()
        if (rate is None and not apart) or getattr(self, "optimizer", None) is not None:
            return super().create_optimizer(model)  # type: ignore[misc]
        net = self.model if model is None else model  # type: ignore[attr-defined]
        rates = PartRates(net, self.options.parts, self.options.learning_rate) if apart else None
        if rate is None:
            assert rates is not None
            return self._stock_optimizer(net, rates)
        optimizer = muon_with_adamw(
            net,
            muon_learning_rate=rate,
            learning_rate=self.options.learning_rate,
            betas=(self.options.adam_beta1, self.options.adam_beta2),
            epsilon=self.options.adam_epsilon,
            weight_decay=self.options.weight_decay,
            rates=rates,
        )
        setattr(self, "optimizer", optimizer)  # noqa: B010 (the stock class declares it)
        return optimizer

    def _stock_optimizer(self, net: Any, rates: PartRates) -> Any:
        """The optimizer that trainer.optim names, on groups with rates of their own."""
        kind, options = Trainer.get_optimizer_cls_and_kwargs(self.args, net)  # type: ignore[attr-defined]
        decayed = set(self.get_decay_parameter_names(net))  # type: ignore[attr-defined]
        trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for n, p in trained if n in decayed], "weight_decay": self.options.weight_decay},
            {"params": [p for n, p in trained if n not in decayed], "weight_decay": 0.0},
        ]
        setattr(self, "optimizer", kind(rates.split(groups), **options))  # noqa: B010 (declared by the stock class)
        return self.optimizer  # type: ignore[attr-defined]

    # --- 3. checkpoints ------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint with the stock code, then commit it."""
        started = time.perf_counter()
        folder = self.run.checkpoints / f"checkpoint-{self.state.global_step}"  # type: ignore[attr-defined]
        if self.run.is_main:
            # What an interrupted save of this step left behind must not become part of the new one.
            checkpoints.remove(folder)
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]
        # metrics.jsonl has it all; a copy in every checkpoint would grow with the run.
        self.state.log_history.clear()  # type: ignore[attr-defined]
        # Past TRL's override, which writes a model card and may ask a hub about it.
        Trainer._save_checkpoint(self, model, trial)  # type: ignore[arg-type]
        state = self.state  # type: ignore[attr-defined]
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]
        if self.run.is_main:
            # A pickle of the arguments that nothing here reads back.
            (folder / "training_args.bin").unlink(missing_ok=True)
            if self.adapters is not None:
                write_base(folder, self.adapters)
            next_batch = state.global_step * self.batches_per_step
            checkpoints.commit(
                folder,
                {
                    "step": state.global_step,
                    "next_batch": next_batch,
                    "plan_hint": list(self.batches.plan.seek_hint(next_batch)),
                    "plan_fingerprint": self.batches.plan.fingerprint,
                    "optimizer": optimizer_layout(self.args.deepspeed),  # type: ignore[attr-defined]
                    "weights_digest": None if self.is_deepspeed_enabled else weights_digest(self.model),  # type: ignore[attr-defined]
                },
            )
            checkpoints.prune(self.run.checkpoints, self.options.keep_checkpoints)
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined]
        self._checkpoint_s = time.perf_counter() - started

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Restore the weights through the model's own name mapping, and prove that they arrived."""
        target = model if model is not None else self.model  # type: ignore[attr-defined]
        folder = Path(resume_from_checkpoint)
        load_weights(target, folder)
        expected = checkpoints.read_manifest(folder).get("weights_digest")
        found = weights_digest(target)
        if expected is not None and found != expected:
            raise StopRun(
                f"the weights restored from {folder} are not those that were saved "
                f"(digest {found}, manifest {expected}): delete this checkpoint to resume from an older one"
            )

    # --- 4. guards -----------------------------------------------------------------------------

    def check_finite(self, loss: torch.Tensor) -> None:
        """Stop before a loss that is not finite reaches the weights.

        Raises:
            StopRun: names the step and its samples.
        """
        value = loss.detach().float().item()
        if not math.isfinite(value):
            raise StopRun(self._describe_step(f"the loss is {value}; the weights were not updated"))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        value = float(norm) if norm is not None else 0.0
        if not math.isfinite(value):
            # DeepSpeed steps inside backward, before it tells the norm.
            weights = "spoilt in memory, not on disk" if self.is_deepspeed_enabled else "not updated"  # type: ignore[attr-defined]
            raise StopRun(self._describe_step(f"the gradient norm is {value}; the weights were {weights}"))
        return norm

    def _describe_step(self, problem: str) -> str:
        step = self.state.global_step  # type: ignore[attr-defined]
        first = step * self.batches_per_step
        keys = [key for k in range(first, first + self.batches_per_step) for key in self.batches.keys(k)]
        shown = ", ".join(keys[:20]) + (f" and {len(keys) - 20} more" if len(keys) > 20 else "")
        return (
            f"step {step + 1}: {problem}. Samples of this step: {shown}. "
            "Look at them, lower trainer.learning_rate, or resume from the last checkpoint"
        )

    # --- 5. numbers ----------------------------------------------------------------------------

    @property
    def batches_per_step(self) -> int:
        """Micro-batches of one optimizer step over all ranks."""
        return int(self.args.gradient_accumulation_steps * self.args.world_size)  # type: ignore[attr-defined]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete the step's record with counts and rates, and write it."""
        if "loss" in logs and self.model.training:  # type: ignore[attr-defined]
            now = time.perf_counter()
            seconds, self._step_started = now - self._step_started, now
            logs.update(_rates(self._step_numbers, seconds))
        super().log(logs, start_time)  # type: ignore[misc]
        if "loss" in logs:
            self.writer.write(self.state.global_step, logs)  # type: ignore[attr-defined]


def _count(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Tokens, padded tokens, supervised tokens, rows, audio seconds, pairs of one micro-batch and a 0, as a tensor."""
    mask = batch["attention_mask"]
    if "labels" in batch:
        supervised, pairs = batch["labels"][:, 1:].ne(-100).sum(), 0
    else:
        supervised, pairs = batch["completion_mask"][:, 1:].sum(), mask.shape[0] // 2
    if "audio_states" in batch:
        audio_s = batch["audio_states"].shape[0] / _AUDIO_TOKENS_PER_SECOND
    elif "feature_lengths" in batch:
        audio_s = int(batch["feature_lengths"].sum()) / _FRAMES_PER_SECOND
    else:
        audio_s = 0.0
    values = [int(mask.sum()), mask.numel(), int(supervised), mask.shape[0], audio_s, pairs, 0]
    return torch.tensor(values, dtype=torch.float64)


def _rates(numbers: dict[str, float], seconds: float) -> dict[str, float]:
    """Counts of a step and what they mean per second."""
    if not numbers:
        return {"seconds": seconds}
    rows = numbers["pairs"] or numbers["rows"]
    record = {
        "supervised_tokens": int(numbers["supervised_tokens"]),
        "tokens": int(numbers["tokens"]),
        "samples": int(rows),
        "audio_s": round(numbers["audio_s"], 2),
        "seconds": seconds,
        "data_wait_s": numbers["data_wait_s"],
        "tokens_per_s": numbers["tokens"] / seconds,
        "samples_per_s": rows / seconds,
        "audio_s_per_s": numbers["audio_s"] / seconds,
        "skipped_samples": int(numbers["skipped"]),
    }
    if numbers["checkpoint_s"]:
        # The save after the step before; "seconds" holds it too.
        record["checkpoint_s"] = numbers["checkpoint_s"]
    return record
