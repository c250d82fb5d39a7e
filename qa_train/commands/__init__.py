"""The commands of `qa-train`: `command_table` lists them, `help` and `completion` show them, `guard` ends them.

Every other file is one command (``data``: two files): options in, an exit code out.

Only `qa_train.cli` imports from here, and only the command that was asked for, so that help stays fast. A command
parses its words, calls the packages that do the work and prints; nothing else may depend on one.
"""
