"""Layers that compute on joined rows without padding, and how their work is arranged.

The lowest layer of `qa_train.model`: attention inside documents, the LM head on supervised rows, the two forms of a
batch, lengths at each depth, activation checkpointing, fused kernels. Nothing here reads a file.
"""
