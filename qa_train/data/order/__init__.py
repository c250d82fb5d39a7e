"""Which samples make up batch k: the mixture, epochs, shuffle windows, packing and resuming, as pure functions.

Imports only its own files of qa-train, and no audio; torch only to gather states over ranks (`seek`). From
outside: `batch_plan.Plan`, the types of `shuffle_window`, `packing.Cost`, `mixture` and `passes`.
"""
