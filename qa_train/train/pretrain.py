"""Stage 1: multi-task pretraining with natural-language prompts."""

from __future__ import annotations

from transformers import Trainer, TrainingArguments

from qa_train.config import StageConfig
from qa_train.train.common import Evaluation, go, open_stage, training_arguments
from qa_train.train.mixin import AudioTrainerMixin


class PretrainTrainer(AudioTrainerMixin, Trainer):
    """transformers' Trainer on audio batches."""


def pretrain(cfg: StageConfig, *, evaluation: Evaluation | None = None) -> int:
    """Run the stage; returns the process's exit code (0 finished, 75 stopped by a signal)."""
    args = training_arguments(cfg, TrainingArguments)
    stage = open_stage(cfg, args)
    if stage is None:
        return 0
    trainer = PretrainTrainer(
        model=stage.trained_model,
        args=args,
        train_dataset=stage.dataset,
        data_collator=stage.collator,
        processing_class=stage.processor,
    )
    return go(trainer, stage, evaluation)
