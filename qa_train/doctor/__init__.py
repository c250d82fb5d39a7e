"""Examinations of a machine, a network, shards, checkpoints and run folders: each finding with what to do.

Used by `qa-train doctor` (`qa_train.commands.doctor`): every module has ``examine...`` functions that yield findings.
"""
