"""What a run will need, from its configuration alone: parameters, memory, operations, time, money; no GPU is used."""

from qa_train.config.planning import PlanConfig
from qa_train.planner.estimate import Estimate, estimate
from qa_train.planner.gpus import GPUS, Gpu
from qa_train.planner.output import as_text

__all__ = ["GPUS", "Estimate", "Gpu", "PlanConfig", "as_text", "estimate"]
