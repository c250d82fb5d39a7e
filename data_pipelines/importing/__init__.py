"""An import: the catalogue of corpora, what must stay out, one shard of it, and its report.

`data_pipelines.importers` is the command that joins them.
"""
