"""Training: the three stages, the trainer mixin, checkpoints, guards and metrics."""
