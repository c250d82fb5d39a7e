"""Training: the stages, the trainer mixin that all of them use, and the start of a run.

The files here are the flow of a stage from configuration to exit code; below them are `job` (folder, processes,
checkpoints), `safety` (guards, rollback, checks), `numbers` (metrics) and `optimizer`.
"""
