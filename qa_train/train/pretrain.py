"""Stage 1: multi-task pretraining with natural-language prompts."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Trainer, TrainingArguments

from qa_train.config import StageConfig
from qa_train.train.flow import Callback, plain, train
from qa_train.train.mixin import AudioTrainerMixin


class PretrainTrainer(AudioTrainerMixin, Trainer):
    """transformers' Trainer on audio batches."""


def pretrain(cfg: StageConfig, *, callbacks: Sequence[Callback] = ()) -> int:
    """Run the stage; see `qa_train.train.flow.train`."""
    return train(cfg, TrainingArguments, plain(PretrainTrainer), callbacks)
