"""Checks of the settings that keep a run alive, and of DeepSpeed's settings against the trainer's."""

from __future__ import annotations

from typing import Any

from qa_train.config.checks.refusal import require
from qa_train.config.settings.sections import StageConfig

# DeepSpeed's own settings that the trainer decides, and where.
_DECIDED = {
    "train_batch_size": "trainer.batches_per_step and data.tokens_per_batch",
    "optimizer": "trainer.optim, trainer.learning_rate and their neighbours",
    "scheduler": "trainer.lr_scheduler_type and trainer.warmup_steps",
    "activation_checkpointing": "trainer.gradient_checkpointing",
    "fp16": "trainer.bf16 (this model trains in float32 or bfloat16)",
    "amp": "trainer.bf16",
    "torch_autocast": "trainer.bf16",
    "checkpoint": "the resume itself",
    "compile": "trainer.compile_layers",
    "data_efficiency": "data.*",
    "curriculum_learning": "data.*",
    "eigenvalue": "nothing here",
    "progressive_layer_drop": "nothing here",
}
# Settings that must stay "auto" or repeat the trainer's value.
_AUTO = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
# Top-level settings that have an effect on this training; DeepSpeed silently ignores unknown ones.
_KNOWN = {
    *_AUTO, "bf16", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "communication_data_type", "data_types", "prescale_gradients", "gradient_predivide_factor", "aio",
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger", "flops_profiler",
    "disable_allgather",
}  # fmt: skip


def check_reliability(cfg: StageConfig) -> None:
    """Policies and limits of ``trainer.*`` that guard the run.

    Raises:
        ValueError: the first contradiction found, with the key to change.
    """
    trainer = cfg.trainer
    choices = {
        "on_nonfinite": ("stop", "skip", "rollback"),
        "on_loss_spike": ("off", "warn", "skip", "rollback"),
        "keep_best_is": ("smallest", "largest"),
    }
    for name, allowed in choices.items():
        value = getattr(trainer, name)
        require(value in allowed, f"trainer.{name}", value, f"{', '.join(allowed[:-1])} or {allowed[-1]}")
    for name in ("save_steps", "keep_checkpoints", "max_skipped_steps", "rollback_steps"):
        require(getattr(trainer, name) >= 1, f"trainer.{name}", getattr(trainer, name), "1 or more")
    rolls_back = "rollback" in (trainer.on_nonfinite, trainer.on_loss_spike)
    if rolls_back and trainer.rollback_steps > trainer.max_skipped_steps:
        raise ValueError(
            f"trainer.rollback_steps is {trainer.rollback_steps} and trainer.max_skipped_steps "
            f"{trainer.max_skipped_steps}: no roll-back could ever happen; raise the second or lower the first"
        )
    every, timeout_s = trainer.keep_every_steps, trainer.hang_timeout_s
    require(every is None or every >= 1, "trainer.keep_every_steps", every, "1 or more, or null")
    if every is not None and every % trainer.save_steps:
        raise ValueError(
            f"trainer.keep_every_steps={every} is not a multiple of trainer.save_steps={trainer.save_steps}: most of "
            "those checkpoints would never be saved"
        )
    require(timeout_s is None or timeout_s > 0, "trainer.hang_timeout_s", timeout_s, "seconds above 0, or null")
    if trainer.loss_spike_window < 20 or trainer.loss_spike_z <= 0:
        raise ValueError("trainer.loss_spike_window must be at least 20, and trainer.loss_spike_z above 0")
    if trainer.on_nonfinite == "skip" and cfg.deepspeed.zero.get("stage") == 3:
        raise ValueError(
            "trainer.on_nonfinite=skip has not been tested under ZeRO-3: use stop or rollback, or deepspeed=zero2"
        )
    if trainer.on_loss_spike == "skip" and cfg.deepspeed.config:
        raise ValueError(
            "trainer.on_loss_spike=skip cannot be kept under DeepSpeed, which updates the weights inside the backward "
            "pass: use warn or rollback, or deepspeed=none"
        )


def check_deepspeed(cfg: StageConfig) -> None:
    """DeepSpeed settings that contradict the trainer's or would have no effect.

    Raises:
        ValueError: names the setting and what to use instead.
    """
    config = cfg.deepspeed.config
    if not config:
        return
    for name in config:
        if name in _DECIDED:
            raise ValueError(f"deepspeed.config.{name} has no effect or contradicts: use {_DECIDED[name]}")
        if name not in _KNOWN:
            raise ValueError(f"deepspeed.config.{name} has no effect here: remove it, or correct its spelling")
    same = {"gradient_clipping": ("max_grad_norm", cfg.trainer.max_grad_norm)}
    for name in _AUTO:
        value = config.get(name, "auto")
        if value == "auto" or (name in same and value == same[name][1]):
            continue
        source = f"trainer.{same[name][0]}" if name in same else "trainer.batches_per_step"
        raise ValueError(f"deepspeed.config.{name}={value} contradicts {source}: set it to auto")
    enabled = config.get("bf16", {}).get("enabled", "auto")
    if enabled not in ("auto", cfg.trainer.bf16):
        raise ValueError(f"deepspeed.config.bf16.enabled={enabled} contradicts trainer.bf16: set it to auto")
    _check_zero(cfg.deepspeed.zero)


def _check_zero(zero: dict[str, Any]) -> None:
    """Settings of a ZeRO stage that is not the chosen one."""
    stage = zero.get("stage", 0)
    require(stage in (1, 2, 3), "deepspeed.config.zero_optimization.stage", stage, "1, 2 or 3, or deepspeed=none")
    only_3 = [key for key in zero if key.startswith("stage3_") or key in ("offload_param", "sub_group_size")]
    only_3 += [key for key in zero if key.startswith(("zero_hpz_", "zero_quantized_", "mics_"))]
    if stage != 3 and only_3:
        raise ValueError(
            f"deepspeed.config.zero_optimization.{only_3[0]} has no effect in ZeRO-{stage}: remove it, or use "
            "deepspeed=zero3"
        )
    for part in ("offload_param", "offload_optimizer"):
        if zero.get(part, {}).get("device") == "nvme" and "nvme_path" not in zero[part]:
            raise ValueError(f"deepspeed.config.zero_optimization.{part}.device=nvme also needs nvme_path")
