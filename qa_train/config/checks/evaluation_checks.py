"""Checks of ``evaluation.*``."""

from __future__ import annotations

import re

from qa_train.config.checks.refusal import check_where, require
from qa_train.config.settings.evaluation import EvaluationConfig, StopConfig
from qa_train.config.settings.sections import StageConfig


def check_evaluation(cfg: StageConfig) -> None:
    """Held-out sets and their rules of drift, and the checkpoint that is kept as the best by one of them.

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
    require(options.every >= 1, "evaluation.every", options.every, "1 or more, or 0 for no evaluation")
    for name in ("max_new_tokens", "batch_size", "token_budget"):
        count = getattr(options, name)
        require(count >= 1, f"evaluation.{name}", count, "1 or more")
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
        key, template, limit = f"evaluation.sets.{name}", held_out.template, held_out.limit
        check_where(key, held_out.where)
        require(template in (None, "base", "chat"), f"{key}.template", template, "base or chat")
        require(limit is None or limit >= 1, f"{key}.limit", limit, "1 or more, or null for all")
    for name, rule in options.stop.items():
        _check_rule(options, name, rule)


def _check_rule(options: EvaluationConfig, name: str, rule: StopConfig) -> None:
    key = f"evaluation.stop.{name}"
    if name not in options.sets:
        raise ValueError(f"{key}: evaluation.sets has no such set ({', '.join(options.sets)})")
    require(rule.action in ("stop", "warn"), f"{key}.action", rule.action, "stop or warn")
    limits = (rule.rise, rule.fall, rule.length_ratio)
    if limits == (None, None, None):
        raise ValueError(f"{key} has no limit: give rise or fall (points), or length_ratio")
    if min(rule.rise or 0, rule.fall or 0) < 0 or (rule.length_ratio is not None and rule.length_ratio < 1):
        raise ValueError(f"{key} needs rise and fall of 0 or more, and a length_ratio of 1 or more")
