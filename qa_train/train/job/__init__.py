"""A run as a job: its folder and owner, its processes and devices, its checkpoints and their states.

The lowest layer of `qa_train.train`: nothing here depends on a loss. The stages use `run.RunFolder`, `checkpoints` and
`distributed`; `owner` and `watchdog` guard a run against a second start and against hanging, `requests` ends it when
asked.
"""
