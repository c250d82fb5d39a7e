"""What a run will need, from its configuration alone: parameters, memory, operations, time, money; no GPU is used.

`estimate.estimate` is the whole of it, and `output` prints it. Training takes the cost of a sample from `balance`, the
load of a batch from `work` and the data sheets from `gpus`.
"""
