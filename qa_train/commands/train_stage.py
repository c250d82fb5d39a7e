"""The commands that train: compose the configuration of a stage with Hydra, and run it."""

from __future__ import annotations

import os
import sys
from typing import Any

from qa_train.commands.guard import guarded, refused, show_warnings
from qa_train.config import STAGES
from qa_train.utils import plugins


def train(settings: list[str], name: str) -> int:
    """Compose the configuration of a stage, and train.

    Raises:
        ValueError: an experiment, a sweep or settings that the stage cannot be trained with.
    """
    import hydra

    from qa_train.config import config_dir, register, to_stage_config
    from qa_train.config.guide import check_experiment
    from qa_train.config.sweep import check_sweep, is_sweep, objective

    register()
    settings, packages = plugins.taken_from(settings)
    check_experiment(settings)
    check_sweep(settings)
    if "--resolve" in settings and not {"-p", "--package"} & set(settings):
        from qa_train.commands.plan import print_resolved

        return print_resolved(name, settings)
    # Make Hydra raise its errors instead of printing them and exiting; `guarded` prints them in one line.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    codes: list[int] = []
    results: dict[str, float] = {}

    def task(raw: Any) -> float | None:
        # A launcher may run this in another process, on another machine.
        register()
        # Hydra's setup takes the handlers away and switches loggers off: skipped samples and steps would go unsaid.
        show_warnings()
        # Hydra would shorten the trace of any error; errors are handled here instead.
        codes.append(guarded(name, lambda: _run_stage(name, to_stage_config(raw), packages)))
        if not is_sweep(settings):
            return None
        if codes[-1]:
            raise ValueError(f"the job with run.dir={raw.run.dir} ended with code {codes[-1]} (its message is above)")
        results[raw.run.dir] = objective(raw.run.dir, raw.run.objective)
        return results[raw.run.dir]

    sys.argv = [f"qa-train {name}", *settings_first(settings)]
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=name)(task)()
    for folder, value in sorted(results.items(), key=lambda result: result[1]):
        print(f"{folder}: run.objective {value:.4g}")
    return max(codes, default=0)


def settings_first(words: list[str]) -> list[str]:
    """Settings before flags: argparse takes settings in one piece, one after a flag would be unknown to it."""
    settings = [word for word in words if word.startswith(("~", "+")) or ("=" in word and not word.startswith("-"))]
    return [*settings, *(word for word in words if word not in settings)]


def _run_stage(stage: str, cfg: Any, packages: list[str]) -> int:
    from qa_train.train.job.owner import EXIT_OWNED, Owned, release
    from qa_train.train.safety.rollback import RollBack, StopRun

    plugins.allow(packages)
    callbacks: list[Any] = []
    if cfg.evaluation.every:
        from qa_train.callbacks.held_out import HeldOut

        callbacks.append(HeldOut)
    try:
        return STAGES[stage].load()(cfg, callbacks=callbacks)
    except StopRun as error:
        refused(stage, str(error))
        return 75 if isinstance(error, RollBack) else 1
    except Owned as error:
        refused(stage, str(error))
        return EXIT_OWNED
    finally:
        release()
