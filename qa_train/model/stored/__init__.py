"""Stored models: the one reader of model folders, strict restore and hashes of weights, and creation under ZeRO-3.

Everything that is read of a model folder is read by `loading`. `weights` matches names and shapes. `manifest` says
whether a checkpoint is complete and as it was saved; it needs no torch.
"""
