"""A stage ready to be given a trainer: what the trainers, the first screen and the callbacks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow
import torch

from qa_train.config import StageConfig
from qa_train.data.batches import Batches
from qa_train.data.loader import Collator
from qa_train.model.lora import Adapters, add_adapters
from qa_train.train.job import checkpoints
from qa_train.train.job.run import RunFolder
from qa_train.train.numbers.metrics import MetricsWriter


@dataclass
class Stage:
    """A stage ready to be given a trainer."""

    cfg: StageConfig
    run: RunFolder
    model: Any
    processor: Any
    batches: Batches
    writer: MetricsWriter
    resume: Any
    adapters: Adapters | None = None

    @property
    def first_step(self) -> int:
        """Steps that were done before this start: those of the checkpoint that it resumes from."""
        return checkpoints.step_of(self.resume) if self.resume else 0

    @property
    def dataset(self) -> datasets.Dataset:
        """The plan as TRL and accelerate want it: batch numbers, read in order."""
        total = self.cfg.trainer.max_steps * self.cfg.trainer.batches_per_step
        # From an array, and without a digest of it: millions of numbers take no time.
        table = pyarrow.table({"batch": np.arange(total)})
        return datasets.Dataset(table, fingerprint=f"batches-{total}")

    @property
    def trained_model(self) -> Any:
        """The model, with its adapters if the configuration has some."""
        if self.adapters is None:
            return self.model
        return add_adapters(self.model, self.adapters, float32=self.cfg.deepspeed.zero_stage != 3)

    @property
    def collator(self) -> Collator:
        """Builds batch k from its number, with mels in the type that the encoder's first convolution computes in."""
        return Collator(self.batches, torch.bfloat16 if self.cfg.trainer.bf16 else torch.float32)
