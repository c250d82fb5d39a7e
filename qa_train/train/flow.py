"""What every stage does: arguments, an open stage, a trainer, and then training to the end or to a signal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainerCallback

from qa_train.config import StageConfig, written
from qa_train.train.arguments import Args, training_arguments
from qa_train.train.job.distributed import by_main
from qa_train.train.job.watchdog import Watchdog
from qa_train.train.numbers.metrics import Progress
from qa_train.train.safety.guards import StopRun, read_tail
from qa_train.train.safety.rollback import FILE as SKIPPED_FILE
from qa_train.train.safety.rollback import skipped_steps
from qa_train.train.safety.saving import storage_explained
from qa_train.train.safety.selfcheck import check_ranks, check_storage
from qa_train.utils.atomic import write_json
from qa_train.utils.progress import counted, say
from qa_train.utils.terminal import layout

if TYPE_CHECKING:
    from qa_train.train.stage import Stage

logger = logging.getLogger(__name__)

# (stage, trainer) -> a callback, such as evaluation during training.
Callback = Callable[[Any, Any], TrainerCallback]


def train(
    cfg: StageConfig,
    kind: type[Args],
    build: Callable[[Stage, Args], Any],
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> int:
    """Run a stage; returns the process's exit code (0 finished, 75 stopped by a signal).

    Args:
        cfg: its configuration.
        kind: of the trainer's arguments.
        build: makes the trainer of the opened stage: see `plain`.
        callbacks: see `go`.
        **options: arguments of ``kind`` that the configuration does not give.
    """
    # Here a model and its data come in: whoever only wants a stage's trainer class needs none of that.
    from qa_train.train.opening import open_stage

    args = training_arguments(cfg, kind, **options)
    with storage_explained(Path(cfg.run.dir)):
        stage = open_stage(cfg, args)
        return 0 if stage is None else go(build(stage, args), stage, callbacks)


def plain(trainer: Callable[..., Any]) -> Callable[[Stage, Any], Any]:
    """``build`` of a trainer that takes only the stage's model, batches and processor."""

    def build(stage: Stage, args: Any) -> Any:
        return trainer(
            model=stage.trained_model,
            args=args,
            train_dataset=stage.dataset,
            data_collator=stage.collator,
            processing_class=stage.processor,
        )

    return build


def go(trainer: Any, stage: Stage, callbacks: Sequence[Callback] = ()) -> int:
    """Train to the end (or to a signal) and return the process's exit code.

    Each of ``callbacks`` builds one from (stage, trainer). Evaluation is passed in, because training does not import
    it.
    """
    from qa_train.data.order.growth import write_record
    from qa_train.data.workers import WorkerDied, explained_worker_death
    from qa_train.train.first_screen import first_screen
    from qa_train.train.forecast import rehearse
    from qa_train.train.job.requests import EXIT_STOPPED, StopOnRequest

    stop = StopOnRequest(stage.run.dir, is_main=stage.run.is_main)
    trainer.add_callback(stop)
    _attach(trainer, stage)
    for make in callbacks:
        # After the callback that receives the stop: saving comes first.
        trainer.add_callback(make(stage, trainer))
    _recall(trainer, stage)
    mixture = stage.batches.table()
    settings = written(stage.cfg) | {"mixture": {row["source"]: row["share"] for row in mixture}}
    stage.writer.track(stage.cfg, settings, stage.first_step)
    rehearsal = rehearse(trainer, stage)
    if stage.run.is_main:
        write_record(stage.run.plans, stage.batches.plan.fingerprint, stage.batches.plan.record())
        (stage.run.dir / "data.txt").write_text(stage.batches.describe() + "\n")
        write_json(stage.run.dir / "mixture.json", mixture, durable=True)
        print(first_screen(stage, trainer.model, rehearsal, layout()), flush=True)
    stage.run.record(stage.resume)
    trainer.watchdog = Watchdog(stage.run.dir / "logs", trainer.args.process_index, stage.cfg.trainer.hang_timeout_s)
    trainer.watchdog.start()
    try:
        with explained_worker_death():
            trainer.train(resume_from_checkpoint=str(stage.resume) if stage.resume else None)
    except WorkerDied as error:
        raise StopRun(str(error)) from error
    finally:
        trainer.watchdog.stop()
    stop.close()
    stage.writer.close()
    if stop.stopped_by:
        if stage.run.is_main:
            by, step = stop.stopped_by, trainer.state.global_step
            say(f"stopped by {by} at step {step}; saved. The same command continues.")
        return EXIT_STOPPED
    stage.run.finish(trainer.state.global_step)
    if stage.run.is_main:
        say(f"finished: {counted(trainer.state.global_step, 'step')}, model in {stage.run.checkpoints}")
    return 0


def _attach(trainer: Any, stage: Stage) -> None:
    """Give the trainer what its constructor does not take."""
    from qa_train.train.numbers.throughput import Throughput

    trainer.add_callback(Progress(stage.run, stage=stage.cfg.stage))
    trainer.remove_callback(PrinterCallback)
    trainer.attach(
        batches=stage.batches,
        run=stage.run,
        writer=stage.writer,
        options=stage.cfg.trainer,
        throughput=Throughput(stage.cfg, stage.model.config, trainer.args.world_size),
        adapters=stage.adapters,
    )
    if stage.cfg.trainer.self_check:
        trainer.self_check = [check_ranks(stage.cfg), check_storage(stage.run.dir, stage.model)]


def _recall(trainer: Any, stage: Stage) -> None:
    """What the run's files say of its steps: those that are done again are forgotten, those to skip are known."""
    # A fresh start also forgets an evaluation of step 0: it may have been of another model.
    stage.writer.rewind(stage.first_step if stage.resume else -1)
    window = stage.cfg.trainer.loss_spike_window
    trainer.guards.restore(by_main(lambda: read_tail(stage.run.metrics, window)))
    trainer.skipped_steps = by_main(lambda: skipped_steps(stage.run.dir))
    if trainer.skipped_steps and stage.run.is_main:
        steps = ", ".join(map(str, trainer.skipped_steps))
        logger.warning("this run skips the steps listed in %s: %s", stage.run.dir / SKIPPED_FILE, steps)
