"""Examining and changing corpora: the work of `qa-train data validate, stats, clean, inspect, sample, ...`. The top
layer of `qa_train.data`: training imports nothing from here, `qa_train.commands` and `data_pipelines` do.
"""
