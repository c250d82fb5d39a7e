"""The sections of a stage's configuration and the table of stages: typed fields, defaults, and nothing that acts.

`sections`, `evaluation` and `reliability` hold dataclasses, `stages` one entry for each stage. What the outside needs
is imported from `qa_train.config`.
"""
