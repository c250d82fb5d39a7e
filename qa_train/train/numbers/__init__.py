"""The metrics of a step: its contents, its speed, the loss by source, and where they are written.

Used by the trainer mixin and by the launch of a stage. `sinks` owns the trackers.
"""
