"""The commands of `qa-train`, one file each (``data``: two files): options in, an exit code out.

A command parses its words, calls the packages that do the work and prints. `guard` ends a command, `device` checks its
device. `qa_train.command_line` loads only the command that was asked for, so that help stays fast; nothing else may
depend on one.
"""
