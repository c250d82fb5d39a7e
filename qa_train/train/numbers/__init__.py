"""The numbers of a step: what it held, how fast it was, what each source taught, and where they are written.

Used by the trainer mixin and by the launch of a stage. `metrics` owns wandb.
"""
