"""What the three stages share: arguments, data, the encoder cache, and the start and end of a run."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import align_special_tokens
from transformers.utils.logging import disable_progress_bar

from qa_train.config import ReliabilityConfig, StageConfig, written
from qa_train.config.checks import require_root
from qa_train.data.audio.encoder_cache import EncoderCache, cache_writer
from qa_train.data.batches import Batches, open_data
from qa_train.data.workers import explained_worker_death
from qa_train.model import build_model, encoder_hash, encoder_states, freeze
from qa_train.model.flops import Shapes
from qa_train.model.layers.kernels import use_liger_kernels
from qa_train.model.layers.recompute import compile_layers
from qa_train.model.lora import plan_adapters
from qa_train.planner.balance import cost_of
from qa_train.train.first_screen import first_screen
from qa_train.train.forecast import rehearse
from qa_train.train.job import checkpoints
from qa_train.train.job.arithmetic import settle
from qa_train.train.job.distributed import (
    accumulation_steps,
    deepspeed_options,
    from_main,
    is_main,
    name_accelerator,
    optimizer_layout,
)
from qa_train.train.job.reshape import read_in_another_shape
from qa_train.train.job.run import RunFolder
from qa_train.train.job.states import plain_states_only
from qa_train.train.job.watchdog import Watchdog
from qa_train.train.numbers.metrics import EXIT_STOPPED, MetricsWriter, Progress, StopOnRequest
from qa_train.train.numbers.throughput import UsefulWork
from qa_train.train.safety.guards import read_tail
from qa_train.train.safety.rollback import FILE as LEFT_OUT
from qa_train.train.safety.rollback import left_out
from qa_train.train.safety.selfcheck import check_ranks, check_storage, require_optimizer
from qa_train.train.stage import Stage
from qa_train.utils.allocator import keep_freed_memory
from qa_train.utils.atomic import write_json
from qa_train.utils.launch import check_arithmetic, check_ranks_announced
from qa_train.utils.progress import duration, progress, say

logger = logging.getLogger(__name__)
Args = TypeVar("Args", bound=TrainingArguments)

# TrainerConfig fields that are not TrainingArguments.
_OWN_FIELDS = (
    "batches_per_step",
    *(f.name for f in fields(ReliabilityConfig)),
    "cpu_threads",
    "muon_learning_rate",
    "parts",
    "gradient_checkpointing",
    "compile_layers",
    "use_liger_kernel",
)
# Clips encoded at a time when the encoder cache is filled, in seconds of audio.
_CACHE_BATCH_S = 60.0
# After so long the encoding says how long it will take.
_LOOK_S = 5.0


# (stage, trainer) -> the callback of evaluation during training.
Evaluation = Callable[[Any, Any], TrainerCallback]


def training_arguments(cfg: StageConfig, kind: type[Args], **more: Any) -> Args:
    """TrainingArguments (or TRL's subclass of them) for this configuration.

    Must be called before the model is loaded: under ZeRO-3 the arguments decide how it is partitioned.
    """
    require_optimizer(cfg.trainer.optim)
    settle(cfg)
    check_ranks_announced()
    check_arithmetic(bf16=cfg.trainer.bf16, gpu=torch.cuda.is_available())
    options = {k: v for k, v in asdict(cfg.trainer).items() if k not in _OWN_FIELDS}
    on_cpu = not torch.cuda.is_available()
    name_accelerator()
    deepspeed = deepspeed_options(cfg.deepspeed)
    plain_states_only()
    if on_cpu:
        keep_freed_memory()
        if cfg.trainer.cpu_threads:
            torch.set_num_threads(cfg.trainer.cpu_threads)
    with warnings.catch_warnings():
        # TRL turns checkpointing on under the old name, so the old name is the one to set.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
        args = _construct(kind, cfg, options, deepspeed, on_cpu, more)
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs: start one process for each with torchrun --nproc-per-node "
            f"{args.n_gpu} -m qa_train ..., or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    return args


def _construct(
    kind: type[Args], cfg: StageConfig, options: dict[str, Any], deepspeed: Any, on_cpu: bool, more: dict[str, Any]
) -> Args:
    return kind(
        output_dir=f"{cfg.run.dir}/checkpoints",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation_steps(cfg.trainer),
        # The model does it itself, part by part; TRL's own default would be all layers.
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        # Old checkpoints are deleted after the new one is committed, not before.
        save_total_limit=None,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=cfg.data.num_workers,
        dataloader_pin_memory=not on_cpu,
        seed=cfg.run.seed,
        # accelerate has no DeepSpeed branch for CPU processes (see distributed.py).
        use_cpu=on_cpu and deepspeed is None,
        deepspeed=deepspeed,
        **options,
        **more,
    )


def open_stage(cfg: StageConfig, args: TrainingArguments) -> Stage | None:
    """Open the run folder, the model and the data; None when the run is already finished.

    Raises:
        ValueError: the run folder or the data do not fit the configuration.
    """
    run = RunFolder(cfg, is_main=is_main())
    done = run.take(cfg.trainer.max_steps)
    if done is not None:
        differs = run.other_settings()
        if run.is_main:
            print(
                f"{run.dir}: finished after {done} steps; nothing to do{differs}. Choose another run.dir to train anew."
            )
        return None
    require_root(cfg)
    set_seed(cfg.run.seed)
    model, processor = build_model(cfg.model, seed=cfg.run.seed)
    _silence_libraries(model, processor)
    freeze(model, cfg.model.freeze)
    model.set_recompute(**asdict(cfg.trainer.gradient_checkpointing))
    if cfg.trainer.use_liger_kernel:
        use_liger_kernels(model)
    if cfg.trainer.compile_layers:
        compile_layers(model)
    resume = run.start()
    data = open_data(
        cfg.data,
        processor.tokenizer,
        int(processor.feature_extractor.feature_size),
        seed=cfg.data.seed,
        batches_per_step=cfg.trainer.batches_per_step,
        preference=cfg.stage == "dpo",
        cost=cost_of(cfg, Shapes.of(model.config)),
    )
    writer = MetricsWriter(run.metrics, is_main=run.is_main)
    adapters = plan_adapters(model, cfg.model, seed=cfg.run.seed)
    stage = Stage(cfg, run, model, processor, data, writer, resume, adapters)
    # Before hours of encoding.
    _check_resume(stage, args)
    if cfg.data.encoder_cache:
        _use_encoder_cache(cfg.data.encoder_cache, model, data, args)
    return stage


def _silence_libraries(model: Any, processor: Any) -> None:
    """Do quietly what the trainers would announce in every run; no bars for files that are written."""
    disable_progress_bar()
    # TRL asks under a name that transformers is about to drop.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    # The trainer counts the batches of a step itself and tells accelerate of one; DeepSpeed knows them all.
    logging.getLogger("accelerate.accelerator").addFilter(_no_accumulation_mismatch)
    library = logging.getLogger("transformers.trainer_utils")
    level = library.level
    library.setLevel(logging.ERROR)
    align_special_tokens(model, processor)
    library.setLevel(level)


def _no_accumulation_mismatch(record: logging.LogRecord) -> bool:
    return "Gradient accumulation steps mismatch" not in record.getMessage()


def go(trainer: Any, stage: Stage, evaluation: Evaluation | None = None) -> int:
    """Train to the end (or to a signal) and return the process's exit code.

    ``evaluation(stage, trainer)`` makes the callback that answers ``evaluation.sets``; it is handed in, because
    training knows nothing of questions and scores.
    """
    stop = StopOnRequest(stage.run.dir, is_main=stage.run.is_main)
    trainer.add_callback(stop)
    trainer.add_callback(Progress(stage.run, stage=stage.cfg.stage))
    trainer.remove_callback(PrinterCallback)
    trainer.attach(
        batches=stage.batches,
        run=stage.run,
        writer=stage.writer,
        options=stage.cfg.trainer,
        work=UsefulWork(stage.cfg, stage.model.config),
        adapters=stage.adapters,
    )
    # A fresh start also forgets an evaluation of step 0: it may have been of another model.
    stage.writer.rewind(checkpoints.step_of(stage.resume) if stage.resume else -1)
    if stage.cfg.evaluation.every and evaluation is not None:
        # After the callback that hears of a stop: saving goes first.
        trainer.add_callback(evaluation(stage, trainer))
    window = stage.cfg.trainer.loss_spike_window
    trainer.guards.restore(from_main(read_tail(stage.run.metrics, window) if stage.run.is_main else None))
    trainer.left_out = from_main(left_out(stage.run.dir) if stage.run.is_main else None)
    if trainer.left_out and stage.run.is_main:
        steps = ", ".join(map(str, trainer.left_out))
        logger.warning("this run leaves steps out, as %s says: %s", stage.run.dir / LEFT_OUT, steps)
    if stage.cfg.trainer.self_check:
        trainer.self_check = [check_ranks(stage.cfg), check_storage(stage.run.dir, stage.model)]
    mixture = stage.batches.table()
    stage.writer.track(stage.cfg, written(stage.cfg) | {"mixture": {row["source"]: row["share"] for row in mixture}})
    rehearsal = rehearse(trainer, stage)
    if stage.run.is_main:
        (stage.run.dir / "data.txt").write_text(stage.batches.describe() + "\n")
        write_json(stage.run.dir / "mixture.json", mixture, durable=True)
        print(first_screen(stage, trainer.model, rehearsal), flush=True)
    stage.run.record(stage.resume)
    trainer.watchdog = Watchdog(stage.run.dir / "logs", trainer.args.process_index, stage.cfg.trainer.hang_timeout_s)
    trainer.watchdog.start()
    try:
        with explained_worker_death():
            trainer.train(resume_from_checkpoint=str(stage.resume) if stage.resume else None)
    finally:
        trainer.watchdog.stop()
    stop.close()
    stage.writer.close()
    if stop.stopped_by:
        if stage.run.is_main:
            by, step = stop.stopped_by, trainer.state.global_step
            print(f"stopped by {by} at step {step}; saved. The same command continues.")
        return EXIT_STOPPED
    stage.run.finish(trainer.state.global_step)
    if stage.run.is_main:
        print(f"finished: {trainer.state.global_step} steps, model in {stage.run.checkpoints}")
    return 0


def _check_resume(stage: Stage, args: TrainingArguments) -> None:
    """Refuse to go on with other shards than the run began with; take the plan's shortcut."""
    if stage.resume is None:
        return
    manifest = checkpoints.read_manifest(stage.resume)
    layout = optimizer_layout(stage.cfg.deepspeed.config)
    if manifest.get("optimizer", layout) != layout:
        read_in_another_shape(stage.resume, manifest["optimizer"], layout, args)
    if manifest["plan_fingerprint"] != stage.batches.plan.fingerprint and not stage.cfg.run.allow_data_change:
        raise ValueError(
            f"the data differ from those {stage.run.dir} was trained on, or the order of their samples does (plan "
            f"fingerprint {stage.batches.plan.fingerprint}, checkpoint {manifest['plan_fingerprint']}). The order also "
            "hangs on the version of qa-train, on what trains, and on whether data.encoder_cache is set: restore what "
            "changed, or continue in the new order with run.allow_data_change=true. Sources whose records, filters or "
            "prompts changed then begin their next epoch, and what was left of this one is not seen; the others go on "
            "where they were, with at most a chapter seen twice"
        )
    stage.batches.plan.seek(*manifest["plan_hint"])


def _use_encoder_cache(folder: str, model: Any, data: Batches, args: TrainingArguments) -> None:
    """Encode every clip of the data once, and let the batches carry the outputs instead of mels.

    Every process encodes its share, on its own device.
    """
    key = f"{encoder_hash(model)[:16]}-{data.reader.num_mel_bins}" + ("-bf16" if args.bf16 else "")
    missing = data.clips_not_in(folder, key)
    # Nobody may write before everybody has seen what is missing: the shares would differ.
    PartialState().wait_for_everyone()
    # They are sorted by length, so that every share takes the same time.
    share = missing[args.process_index :: args.world_size]
    if missing:
        total_s = sum(clip.duration_s for clip in missing)
        if args.process_index == 0:
            print(f"encoding {total_s / 60:.0f} minutes of audio once (the encoder is frozen)", flush=True)
        encoder = model.model.audio_tower.to(args.device)
        with torch.inference_mode(), torch.autocast(args.device.type, dtype=torch.bfloat16, enabled=args.bf16):
            _fill_encoder_cache(folder, key, model, data, share)
        encoder.to("cpu")
        PartialState().wait_for_everyone()
    data.use_encoder_cache(EncoderCache.open(folder, key))


def _fill_encoder_cache(folder: str, key: str, model: Any, data: Batches, clips: list[Any]) -> None:
    width = model.config.audio_config.d_model
    total_s = round(sum(clip.duration_s for clip in clips))
    started, said, done = time.monotonic(), not is_main(), 0.0
    with (
        cache_writer(folder, key, width) as writer,
        progress(total=total_s, desc="encoding", unit="s of audio", disable=not is_main()) as bar,
    ):
        for group in _groups(clips):
            mels = data.read_mels(group)
            if mels.clips:
                states = encoder_states(model, mels.input_features, mels.feature_lengths)
                for clip, part in zip(mels.clips, states.split(mels.clip_tokens), strict=True):
                    writer.write(clip.id, part)
            seconds = sum(clip.duration_s for clip in group)
            bar.update(round(seconds))
            done += seconds
            # The first groups also prepare.
            if not said and (took := time.monotonic() - started) > _LOOK_S:
                said = True
                say(f"encoding takes about {duration(took / done * (total_s - done))} more here; then training begins")


def _groups(clips: list[Any]) -> list[list[Any]]:
    """Clips in groups of at most ``_CACHE_BATCH_S`` seconds (one clip at least)."""
    groups: list[list[Any]] = []
    filled = 0.0
    for clip in clips:
        if not groups or filled + clip.duration_s > _CACHE_BATCH_S:
            groups.append([])
            filled = 0.0
        groups[-1].append(clip)
        filled += clip.duration_s
    return groups
