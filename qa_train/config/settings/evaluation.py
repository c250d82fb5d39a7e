"""Evaluation during training: held-out sets that a run answers every few steps."""

from __future__ import annotations

import re
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


def check_evaluation(cfg: Any) -> None:
    """Cross-field checks of ``cfg.evaluation`` (of a StageConfig); each error names the key to change.

    Raises:
        ValueError: the first contradiction found.
    """
    options = cfg.evaluation
    best = cfg.trainer.keep_best or ""
    if best.startswith("eval/") and (not options.every or best.removeprefix("eval/") not in options.sets):
        raise ValueError(
            f"trainer.keep_best is {best!r}, which the run will not measure: set evaluation.every and evaluation.sets."
            f"{best.removeprefix('eval/')}"
        )
    if best.startswith("eval/") and cfg.trainer.save_steps % options.every:
        raise ValueError(
            f"trainer.keep_best={best} needs an evaluation before every save: make trainer.save_steps "
            f"({cfg.trainer.save_steps}) a multiple of evaluation.every ({options.every})"
        )
    if not options.every:
        if options.stop:
            raise ValueError("evaluation.stop judges evaluations during training: set evaluation.every")
        return
    for name in ("every", "max_new_tokens", "batch_size", "token_budget"):
        if (value := getattr(options, name)) < 1:
            raise ValueError(f"evaluation.{name} is {value}: use 1 or more")
    if options.samples < 0 or options.samples_mib < 0:
        raise ValueError("evaluation.samples and evaluation.samples_mib must not be negative; 0 keeps no clips")
    if not options.sets:
        raise ValueError("evaluation.every is set without evaluation.sets: name at least one, or use every=0")
    for name, held_out in options.sets.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(
                f"evaluation.sets: {name!r} is not a valid column name: use letters, digits, '_', '-', '.'"
            )
        if not held_out.shards:
            raise ValueError(f"evaluation.sets.{name}.shards is empty: give paths, globs or URLs of .tar shards")
        if held_out.template not in (None, "base", "chat"):
            raise ValueError(f"evaluation.sets.{name}.template is {held_out.template!r}: use base or chat")
        if held_out.limit is not None and held_out.limit < 1:
            raise ValueError(f"evaluation.sets.{name}.limit is {held_out.limit}: use 1 or more, or null for all")
    for name, rule in options.stop.items():
        key = f"evaluation.stop.{name}"
        if name not in options.sets:
            raise ValueError(f"{key}: evaluation.sets has no such set ({', '.join(options.sets)})")
        if rule.action not in ("stop", "warn"):
            raise ValueError(f"{key}.action is {rule.action!r}: use stop or warn")
        limits = (rule.rise, rule.fall, rule.length_ratio)
        if limits == (None, None, None):
            raise ValueError(f"{key} has no limit: give rise or fall (points), or length_ratio")
        if min(rule.rise or 0, rule.fall or 0) < 0 or (rule.length_ratio is not None and rule.length_ratio < 1):
            raise ValueError(f"{key} needs rise and fall of 0 or more, and a length_ratio of 1 or more")
