"""The command line: `command_table` lists the commands of `qa-train`, `help` and `completion` show them.

Only `qa_train.cli` imports from here. The table names the function of each command and imports it on first use.
"""
