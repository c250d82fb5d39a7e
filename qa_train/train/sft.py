"""Stage 2: supervised fine-tuning on voice chat and audio analysis together."""

from __future__ import annotations

from trl import SFTConfig, SFTTrainer

from qa_train.config import StageConfig
from qa_train.train.common import Evaluation, go, open_stage, training_arguments
from qa_train.train.mixin import AudioTrainerMixin


class AudioSFTTrainer(AudioTrainerMixin, SFTTrainer):
    """TRL's SFTTrainer on audio batches, whose labels are made in the data."""


def sft(cfg: StageConfig, *, evaluation: Evaluation | None = None) -> int:
    """Run the stage; returns the process's exit code (0 finished, 75 stopped by a signal)."""
    # max_length: nothing is cut here, the plan already bounds every batch.
    args = training_arguments(cfg, SFTConfig, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    stage = open_stage(cfg, args)
    if stage is None:
        return 0
    trainer = AudioSFTTrainer(
        model=stage.trained_model,
        args=args,
        train_dataset=stage.dataset,
        data_collator=stage.collator,
        processing_class=stage.processor,
    )
    return go(trainer, stage, evaluation)
