"""Corpora and foreign formats: one small reader each, by kind in `spoken`, `sounds` and `formats`.

The files here are what every reader is made of: `base` (description and items), `tree` (files and archives),
`recordings` (audio by reference). `data_pipelines.importing.catalogue` lists the readers by name.
"""
