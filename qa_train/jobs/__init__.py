"""Jobs that do not depend on each other, on the processes of this machine or of a Ray cluster.

From outside: `executor.each`, and `executor.EngineOptions` for a command's options.
"""
