"""Evaluation during training: held-out sets that a run answers every few steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EvalSetConfig:
    """Held-out records of shards, asked as one task."""

    # Paths, globs or URLs of indexed .tar shards.
    shards: list[str] = field(default_factory=list)
    # A task of the prompt bank (configs/prompts), or "chat": the record's own messages.
    task: str = "asr"
    # "base" or "chat"; null: base in pretraining, chat after it.
    template: str | None = None
    # Keep only records whose metadata equal these values (or one of a list of values), e.g. {split: test}.
    where: dict[str, Any] = field(default_factory=dict)
    # wer, cer, bleu, chrf, cp_wer, word_times, accuracy, contains, ..., or one's own package.module:function, with
    # plugins=[package] on the command line; null: by the task.
    metric: str | None = None
    # Asked instead of a wording of the prompt bank; "{language}" becomes the record's code.
    prompt: str | None = None
    # Skip records with fewer words of text.
    min_words: int = 0
    # Maximum number of records: the same ones every time, chosen by a hash of their keys; null: all.
    limit: int | None = 100
    # Allow records that the run trains on, to measure memorization.
    seen_in_training: bool = False


@dataclass
class StopConfig:
    """How far a set may move from the run's first evaluation. A start has no step behind it: it is not judged."""

    # Points by which an error rate (wer, cer, cp_wer) may rise; null: any number.
    rise: float | None = None
    # Points by which any other score (accuracy, bleu, chrf, ...) may fall; null: any number.
    fall: float | None = None
    # How many times longer, or shorter, answers may become, in words; null: any number.
    length_ratio: float | None = None
    # stop (without saving the step) or warn.
    action: str = "stop"


@dataclass
class EvaluationConfig:
    """A small suite answered during training; off while ``every`` is 0."""

    # Steps between two evaluations. The start and the last step are evaluated too.
    every: int = 0
    # By name, each an EvalSetConfig: +evaluation.sets.asr_en={shards: [...], task: asr, where: {split: test}}.
    sets: dict[str, Any] = field(default_factory=dict)
    # By name of a set, each a StopConfig: +evaluation.stop.asr_en={rise: 1.0} ends a run whose word error rate rises.
    stop: dict[str, Any] = field(default_factory=dict)
    # Maximum tokens of an answer; truncated answers are counted.
    max_new_tokens: int = 96
    # Maximum answers in a batch.
    batch_size: int = 32
    # Maximum prompt + new tokens of a batch.
    token_budget: int = 16384
    # Questions of each set whose clips are kept (RUN/held_out/clips), for tables with players in the dashboard and W&B.
    samples: int = 8
    # Maximum MiB of these clips.
    samples_mib: float = 8.0
