"""Stage 2: supervised fine-tuning on voice chat and audio analysis together."""

from __future__ import annotations

from collections.abc import Sequence

from trl import SFTConfig, SFTTrainer

from qa_train.config import StageConfig
from qa_train.train.flow import Callback, plain, train
from qa_train.train.mixin import AudioTrainerMixin


class AudioSFTTrainer(AudioTrainerMixin, SFTTrainer):
    """TRL's SFTTrainer on audio batches, whose labels are made in the data."""


def sft(cfg: StageConfig, *, callbacks: Sequence[Callback] = ()) -> int:
    """Run the stage; see `qa_train.train.flow.train`."""
    # No truncation here: the plan already bounds every batch.
    as_made = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return train(cfg, SFTConfig, plain(AudioSFTTrainer), callbacks, **as_made)
