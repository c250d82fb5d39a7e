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
    # Whether the best value of keep_best is the smallest or the largest.
    keep_best_is: str = "smallest"
    # A loss or gradient norm that is not finite: stop the run, skip the step (no update) on all ranks, or rollback:
    # end with code 75; the next start (torchrun's is automatic) resumes from the newest checkpoint and skips the step
    # and the one before it, which RUN/left_out.json lists. ZeRO-3 (and, for jumps, DeepSpeed) does not support skip:
    # use rollback there.
    on_nonfinite: str = "stop"
    # A loss far above those of the last loss_spike_window steps: off, warn, skip or rollback, as above.
    on_loss_spike: str = "warn"
    # How far: in robust standard deviations (1.4826 x median absolute deviation) above the median.
    loss_spike_z: float = 20.0
    loss_spike_window: int = 100
    # The run stops after so many skipped steps in a row.
    max_skipped_steps: int = 10
    # How many steps a rollback skips, ending with the one that triggered it: a loss often jumps because of the update
    # before. The run stops instead when more than max_skipped_steps would be skipped.
    rollback_steps: int = 2
    # A rank without progress for so long writes the stacks of its threads to RUN/logs and ends with code 1, so that
    # torchrun restarts the run; longer than the longest save. null: never.
    hang_timeout_s: float | None = 1800.0
    # Compare the ranks' clocks, versions and settings, look at free disk, and prove that audio reaches the model.
    self_check: bool = True
