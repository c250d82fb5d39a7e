"""Settings that keep a run alive: what is kept, what is skipped, what stops it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ReliabilityConfig:
    """The part of ``trainer.*`` that is ours, not transformers'."""

    # Complete checkpoints kept; the newest is never deleted.
    keep_checkpoints: int = 2
    # Checkpoints whose step is a multiple of this are never deleted; null: only the newest keep_checkpoints stay.
    keep_every_steps: int | None = None
    # Also keep the checkpoint with the best mean of this metrics.jsonl value over the steps since the save before
    # it, e.g. loss or rewards/accuracies; null: none.
    keep_best: str | None = None
    # Which value of keep_best is the best: smallest or largest.
    keep_best_is: str = "smallest"
    # A loss or gradient norm that is not finite: stop the run, skip the step (no update) on all ranks, or rollback:
    # end with code 75; the next start (torchrun's is automatic) resumes from the newest checkpoint and skips the step
    # and the one before it, which RUN/left_out.json lists. Use rollback instead of skip with ZeRO-3, and for
    # on_loss_spike with any DeepSpeed.
    on_nonfinite: str = "stop"
    # A loss far above those of the last loss_spike_window steps: off, warn, skip or rollback, as above.
    on_loss_spike: str = "warn"
    # Distance from the median at which a loss is a spike, in robust standard deviations (1.4826 x median absolute
    # deviation).
    loss_spike_z: float = 20.0
    # Number of past steps that a loss is compared with.
    loss_spike_window: int = 100
    # Maximum number of skipped steps in a row; one more stops the run.
    max_skipped_steps: int = 10
    # Number of steps that a rollback skips, ending with the one that triggered it: the cause of a loss spike is often
    # the update before. The run stops instead when more than max_skipped_steps would be skipped.
    rollback_steps: int = 2
    # Seconds after which a rank without progress writes the stacks of its threads to RUN/logs and ends with code 1, so
    # that torchrun restarts the run. Must be longer than the longest save. null: never.
    hang_timeout_s: float | None = 1800.0
    # At the start, compare the ranks' clocks, versions and settings, check free disk space, and check that audio
    # reaches the model.
    self_check: bool = True
