"""Examining and changing corpora: what `qa-train data validate, stats, clean, inspect, sample, ...` do.

The top floor of `qa_train.data`: training imports nothing from here, `qa_train.commands` and `data_pipelines` do.
"""
