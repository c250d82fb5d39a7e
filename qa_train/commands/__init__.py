"""The commands of `qa-train`: options in, an exit code out. Those that share their work share a file.

A command parses its words, calls the packages that do the work and prints. `guard` ends a command.
`qa_train.command_line` loads only the command that was asked for, so that help stays fast; nothing else may
depend on one.
"""
