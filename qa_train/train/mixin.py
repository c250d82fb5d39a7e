"""Our only trainer code, mixed into transformers' and TRL's trainers.

It adds only what audio and exactness need:

1. data: the dataset is a list of batch numbers, read in order; the collator builds batch k;
2. loss: a sum over supervised tokens divided by their number in the whole optimizer step;
3. checkpoints: committed with a manifest, restored with a check of the weights;
4. guards: a loss or gradient that is not finite, or a loss that jumps, stops the run or skips the step;
5. numbers: every step's tokens, clips, seconds of audio and waiting time, and the loss by source.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from qa_train.config import DeepspeedConfig, PartsConfig, TrainerConfig
from qa_train.model.layers.on_cpu import OnCpu
from qa_train.model.precision import train_in_float32
from qa_train.model.stored.weights import load_weights, weights_digest
from qa_train.train.job import checkpoints
from qa_train.train.job.distributed import by_main, optimizer_layout
from qa_train.train.job.run import RunFolder
from qa_train.train.job.watchdog import Watchdog
from qa_train.train.numbers.metrics import MetricsWriter
from qa_train.train.numbers.tally import Tally, token_curves
from qa_train.train.optimizer.groups import PartRates, learning_rates
from qa_train.train.optimizer.muon import muon_with_adamw
from qa_train.train.safety import rollback, saving
from qa_train.train.safety.guards import Guards, StopRun
from qa_train.train.safety.selfcheck import probe_audio
from qa_train.utils.progress import say

logger = logging.getLogger(__name__)


if TYPE_CHECKING:
    from qa_train.data.batches import Batches
    from qa_train.model.lora import Adapters
    from qa_train.train.numbers.throughput import Throughput

    # The class it is mixed into, for the type checker only: TRL's trainers have another base class in between.
    _Base = Trainer
else:
    _Base = object


class AudioTrainerMixin(_Base):
    """See the module docstring. Set up by `attach` right after construction."""

    # The trainers declare it as perhaps none; here it always is.
    model: Any
    watchdog: Watchdog | None = None
    # Sums by source: see qa_train.train.numbers.tally.
    tallied: tuple[str, ...] = ("loss",)
    # Results of the start-up checks so far; the probe of the first step completes and prints it. None: disabled.
    self_check: list[str] | None = None

    def attach(
        self,
        *,
        batches: Batches,
        run: RunFolder,
        writer: MetricsWriter,
        options: TrainerConfig,
        throughput: Throughput,
        adapters: Adapters | None = None,
    ) -> None:
        """Set what the stock constructors do not accept."""
        self.batches = batches
        self.run = run
        self.writer = writer
        self.options = options
        self.throughput = throughput
        self.adapters = adapters
        if adapters is not None and not self.is_deepspeed_enabled:
            # DeepSpeed keeps float32 copies itself.
            train_in_float32(self.model)
        # Here, because by now the layers have their adapters, which TRL adds in DPO.
        self.model.set_recompute(**asdict(options.gradient_checkpointing))
        self.guards = Guards(options)
        self.tally = Tally([source.name for source in batches.sources], batches.plan.used, self.tallied)
        self._step_numbers: dict[str, Any] = {}
        # Steps that a rollback skips, with reasons.
        self.skipped_steps: dict[int, str] = {}
        self._checkpoint_s = 0.0
        # Scores of the step that ends, for its record.
        self._scores: dict[str, Any] = {}

    # --- 1. data -------------------------------------------------------------------------------

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL tokenizes text columns here; our batches are built by the collator."""
        return dataset

    def get_train_dataloader(self) -> Any:
        """As the stock one, but its batches stay on the CPU, where they are counted before they go to the device."""
        placed, self.accelerator.device_placement = self.accelerator.device_placement, False
        try:
            return super().get_train_dataloader()
        finally:
            self.accelerator.device_placement = placed

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch on the device, with copies of what places are found in, so that no kernel is waited for.

        Not the stock one: under DeepSpeed it would round log-probabilities of the reference and weights of rows to
        half precision. The encoder takes its input in the type of its weights by itself.
        """
        if "on_cpu" in inputs:
            return inputs
        moved = {name: value.to(self.args.device, non_blocking=True) for name, value in inputs.items()}
        return moved | {"on_cpu": OnCpu.of(inputs)}

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Fetch the micro-batches of one step, count what they hold, and time the wait."""
        started = time.perf_counter()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        waited = time.perf_counter() - started
        self.tally.begin(batches)
        if not self._step_numbers:
            # The first step's time begins here: loading the model and the checkpoint is not part of it.
            self._step_started = started
        names = self.throughput.NAMES
        counts = sum(map(self.throughput.count, batches), torch.zeros(len(names), dtype=torch.float64))
        reasons = self.batches.skip_reasons
        skipped = torch.tensor([self.batches.skipped[reason] for reason in reasons], dtype=torch.float64)
        numbers = torch.cat([counts, skipped])
        if self.args.world_size > 1:
            numbers = self.accelerator.reduce(numbers.float().to(device), "sum").double().cpu()
        self._step_numbers = dict(zip(names, numbers.tolist()[: len(names)], strict=True))
        self._step_numbers["skipped"] = dict(zip(reasons, map(int, numbers.tolist()[len(names) :]), strict=True))
        self._step_numbers |= {"data_wait_s": waited, "checkpoint_s": self._checkpoint_s}
        self._checkpoint_s = 0.0
        return batches, num_items

    # --- 2. loss -------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch forward and backward; notifies the watchdog, and probes the first batch of every start."""
        self.beat()
        if self.state.global_step + 1 in self.skipped_steps:
            # As the stock step does: what is logged depends on it, and this may be the first step after a resume.
            model.train()
            return torch.zeros((), device=self.args.device)
        if self.self_check is not None:
            if self.options.compile_layers or is_deepspeed_zero3_enabled():
                # ZeRO-3 follows the order of modules in every step, and forwards without a backward upset it in DPO.
                found = "audio not probed (trainer.compile_layers or ZeRO-3)"
            else:
                found = probe_audio(model, self._prepare_inputs(inputs))
            if self.run.is_main:
                # Above the bar that is on the screen by now.
                say("self-check: " + "; ".join([*self.self_check, found]))
            self.self_check = None
        loss = super().training_step(model, inputs, num_items_in_batch)
        # The sum of a run's losses must not become NaN by a step that was skipped.
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)

    def beat(self) -> None:
        """Notify the watchdog of progress."""
        if self.watchdog is not None:
            self.watchdog.beat()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy over supervised tokens / their number in the whole step (all ranks, all micro-batches).

        DDP and DeepSpeed average gradients over ranks, hence the factor world size.
        """
        if num_items_in_batch is not None:
            # Nothing is supervised in a step whose samples were all skipped: its loss is 0, not 0 / 0.
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
        options = {"use_cache": False, "return_row_losses": True, "smoothing": self.options.label_smoothing_factor}
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch, **options)
        self.tally.add(outputs.row_losses[:, None])
        loss = outputs.loss
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        self.check_finite(loss)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        """Muon for the hidden matrices if asked for, else the stock optimizer; rates by part if they differ."""
        rate = self.options.muon_learning_rate
        apart = self.options.parts != PartsConfig()
        if (rate is None and not apart) or getattr(self, "optimizer", None) is not None:
            return super().create_optimizer(model)
        net = self.model if model is None else model
        rates = PartRates(net, self.options.parts, self.options.learning_rate) if apart else None
        optimizer: torch.optim.Optimizer
        if rate is not None:
            dtype = torch.bfloat16 if self.args.bf16 else torch.float32
            optimizer = muon_with_adamw(net, self.options, dtype=dtype, rates=rates)
        else:
            assert rates is not None
            optimizer = self._stock_optimizer(net, rates)
        setattr(self, "optimizer", optimizer)  # noqa: B010 (the stock class declares it)
        return optimizer

    def _stock_optimizer(self, net: Any, rates: PartRates) -> torch.optim.Optimizer:
        """The optimizer named by trainer.optim, with a learning rate per group."""
        kind, options = Trainer.get_optimizer_cls_and_kwargs(self.args, net)
        decayed = set(self.get_decay_parameter_names(net))
        trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for n, p in trained if n in decayed], "weight_decay": self.options.weight_decay},
            {"params": [p for n, p in trained if n not in decayed], "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer = kind(rates.split(groups), **options)
        return optimizer

    # --- 3. checkpoints ------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint with the stock code, then commit it."""
        started = time.perf_counter()
        self.beat()
        folder = self.run.checkpoints / f"checkpoint-{self.state.global_step}"
        saving.written(folder, lambda: self._write_and_commit(folder, model, trial))
        self.beat()
        self._checkpoint_s = time.perf_counter() - started

    def _write_and_commit(self, folder: Path, model: Any, trial: Any) -> None:
        args, state = self.args, self.state
        if self.run.is_main:
            # What an interrupted save of this step left behind must not become part of the new one.
            checkpoints.remove(folder)
        self.accelerator.wait_for_everyone()
        # metrics.jsonl has it all; a copy in every checkpoint would grow with the run.
        state.log_history.clear()
        # Past TRL's override, which writes a model card and may ask a hub about it.
        Trainer._save_checkpoint(self, model, trial)
        if self.run.is_main:
            # A pickle of the arguments that is never read back.
            (folder / "training_args.bin").unlink(missing_ok=True)
            if self.adapters is not None:
                self.adapters.write_base(folder)
        self.accelerator.wait_for_everyone()
        sums = saving.flush_on_all_ranks(folder, args.process_index, args.world_size)
        if self.run.is_main:
            next_batch = state.global_step * self.batches_per_step
            deepspeed = DeepspeedConfig(config=cast("dict[str, Any] | None", args.deepspeed) or {})
            manifest = {
                "step": state.global_step,
                "next_batch": next_batch,
                "plan_hint": list(self.batches.plan.seek_hint(next_batch)),
                "plan_fingerprint": self.batches.plan.fingerprint,
                "optimizer": optimizer_layout(deepspeed),
                "param_groups": saving.group_settings(self.optimizer),
                "weights_digest": None if deepspeed.zero_stage == 3 else weights_digest(self.model),
                "best_value": self.writer.mean_since_save(self.options.keep_best),
            }
            checkpoints.commit(folder, manifest, sums)
            saving.prune(self.run.checkpoints, self.options)
        self.accelerator.wait_for_everyone()

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock one, but trainer.save_steps of now counts and not the one that the checkpoint remembers."""
        found = super()._init_training_state(*args, **kwargs)
        self.state.compute_steps(self.args, self.state.max_steps)
        return found

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise StopRun(
                f"the optimizer and schedule in {checkpoint} do not fit this run ({type(error).__name__}: {error}): "
                "use the previous trainer.optim and trainer.parts, or delete this folder to resume from an older one"
            ) from error
        deepspeed = getattr(self.args, "hf_deepspeed_config", None)
        if checkpoint is None or deepspeed is None:
            return
        zero: Any = getattr(self.optimizer, "optimizer", None)
        if zero is not None and hasattr(zero, "clip_grad"):
            # ZeRO-1 and ZeRO-2 take it from the checkpoint.
            zero.clip_grad = self.args.max_grad_norm
        # DeepSpeed has loaded the weights and the optimizer by now.
        if "checkpoint" in deepspeed.config:
            settings = checkpoints.read_manifest(Path(checkpoint))["param_groups"]
            saving.restore_group_settings(self.optimizer, settings)
            saving.separate_steps(self.optimizer)
        self._compare_digest(Path(checkpoint), self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Restore the weights through the model's own name mapping, and prove that they arrived."""
        target = model if model is not None else self.model
        folder = Path(resume_from_checkpoint)
        load_weights(target, folder)
        self._compare_digest(folder, target)

    def _compare_digest(self, folder: Path, model: Any) -> None:
        """Prove that the weights in memory are those that were saved (ZeRO-3 cuts them: its files are checked)."""
        expected = checkpoints.read_manifest(folder).get("weights_digest")
        found = weights_digest(model) if expected is not None else None
        if found != expected:
            raise StopRun(
                f"the weights restored from {folder} are not those that were saved "
                f"(digest {found}, manifest {expected}): delete this checkpoint to resume from an older one"
            )

    # --- 4. guards -----------------------------------------------------------------------------

    def check_finite(self, loss: torch.Tensor) -> None:
        """Stop before a loss that is not finite reaches the weights, or remember to skip its step.

        Raises:
            StopRun: names the step and its samples.
        """
        problem = self.guards.check_loss(loss)
        if problem is not None:
            raise StopRun(self._describe_step(f"{problem}; the weights were not updated"))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        skipped = self.skipped_steps.get(self.state.global_step + 1)
        if skipped is not None:
            self.guards.count_skip(skipped)
            return 0.0
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.beat()
        reason = self.guards.verdict(float(norm) if norm is not None else 0.0, self._tr_loss)
        if reason is None:
            return norm
        if (self.options.on_nonfinite if self.guards.nonfinite else self.options.on_loss_spike) == "rollback":
            self._roll_back(reason)
        # DeepSpeed steps inside backward, before it returns the norm; ZeRO-1 and ZeRO-2 skip a norm that is not finite.
        updated = self.is_deepspeed_enabled and not self.accelerator.optimizer_step_was_skipped
        if updated or (self.guards.nonfinite and self.options.on_nonfinite == "stop"):
            weights = "spoilt in memory, not on disk" if updated else "not updated"
            raise StopRun(self._describe_step(f"{reason}; the weights were {weights}"))
        self.guards.skip(reason, self._describe_step(reason))
        for parameter in model.parameters():
            # Without a gradient the optimizer does not change a parameter or its moments.
            parameter.grad = None
        return norm

    def _roll_back(self, reason: str) -> None:
        """Record what the next start skips, and end this one; every rank calls it.

        Raises:
            RollBack: always, unless too many steps would be skipped (StopRun).
        """
        step, number = self.state.global_step + 1, self.options.rollback_steps
        told = self._describe_step(reason)
        if len(self.skipped_steps) + number > self.options.max_skipped_steps:
            raise StopRun(f"{told}; {len(self.skipped_steps)} steps are already skipped (trainer.max_skipped_steps)")

        def remove_spoilt() -> list[str]:
            first = rollback.add_skips(self.run.dir, step, number, reason)
            return rollback.remove_spoilt(self.run.checkpoints, first)

        try:
            removed = by_main(remove_spoilt)
        except StopRun as error:
            raise StopRun(f"{told}; {error}") from error
        if removed and self.run.is_main:
            logger.warning("%s deleted: they contain updates that are skipped", ", ".join(removed))
        raise rollback.RollBack(f"{told}. The same command does so and skips the steps in {rollback.FILE}")

    def _describe_step(self, problem: str, *, done: bool = False) -> str:
        """The problem with the step's number and samples; ``done``: the step is already counted."""
        step = self.state.global_step - int(done)
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
        return int(self.args.gradient_accumulation_steps * self.args.world_size)

    def report(self, scores: dict[str, Any], *, own_record: bool = False) -> None:
        """Put an evaluation's scores into the record of the current step, or into a separate one."""
        if own_record:
            self.writer.write(self.state.global_step, scores)
        else:
            self._scores = scores

    def curves(self) -> dict[str, float]:
        """The step's record by source; a collective call."""
        return token_curves(self.tally.record(self.accelerator))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete the step's record with counts and rates, and write it."""
        if "loss" in logs and self.model.training:
            now = time.perf_counter()
            # Evaluation is not part of the step's time.
            seconds, self._step_started = now - self._step_started - self._scores.get("eval_s", 0.0), now
            # A skipped step has no losses.
            curves = {} if self.state.global_step in self.skipped_steps else self.curves()
            logs.update(self.throughput.rates(self._step_numbers, seconds) | curves | self._scores)
            logs.update(learning_rates(logs["learning_rate"], self.lr_scheduler, self.options))
            self._scores = {}
            warning = self.guards.logged(logs)
            if warning is not None and self.run.is_main:
                logger.warning("%s", self._describe_step(warning, done=True))
        super().log(logs, start_time)
        if "loss" in logs:
            self.writer.write(self.state.global_step, logs)
