"""Which samples make up batch k: the mixture, epochs, shuffle windows, packing and resuming, as pure functions.

Imports of qa-train its own files and `stores.node_files`, by which the processes of a node plan once; torch only to
gather states over ranks (`seek`). From outside: `batch_plan.Plan`, the types of `shuffle_window`, `packing.Cost`,
`mixture` and `passes`.
"""
