"""Opening a stage: its run folder, model and data, and whether it may go on where it stopped."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import align_special_tokens
from transformers.utils.logging import disable_progress_bar

from qa_train.config import StageConfig, require_root
from qa_train.data.mixture_report import steps_of_epochs
from qa_train.data.order.growth import Records
from qa_train.data.workers import raise_file_limit
from qa_train.model import build_model, freeze
from qa_train.model.flops import Shapes
from qa_train.model.layers.kernels import use_liger_kernels
from qa_train.model.layers.recompute import compile_layers
from qa_train.model.lora import plan_adapters
from qa_train.planner.balance import open_run_data
from qa_train.train.encode_once import use_encoder_cache
from qa_train.train.job import checkpoints
from qa_train.train.job.distributed import is_main, optimizer_layout
from qa_train.train.job.reshape import read_in_another_shape
from qa_train.train.job.run import RunFolder
from qa_train.train.numbers.metrics import MetricsWriter
from qa_train.train.stage import Stage
from qa_train.utils.progress import say

logger = logging.getLogger(__name__)


def open_stage(cfg: StageConfig, args: TrainingArguments) -> Stage | None:
    """Open the run folder, the model and the data; None when the run is already finished.

    Raises:
        ValueError: the run folder or the data do not fit the configuration.
    """
    raise_file_limit(args.dataloader_num_workers, args.dataloader_prefetch_factor)
    run = RunFolder(cfg, is_main=is_main())
    done = run.take(cfg.trainer.max_steps if cfg.trainer.epochs is None else run.steps_of(cfg.trainer.epochs))
    if done is not None:
        differs = run.other_settings()
        if run.is_main:
            say(
                f"{run.dir}: finished after {done} steps; nothing to do{differs}. Choose another run.dir for a new run."
            )
        return None
    require_root(cfg)
    set_seed(cfg.run.seed)
    model, processor = build_model(cfg.model, seed=cfg.run.seed)
    _silence_libraries(model, processor)
    freeze(model, cfg.model.freeze)
    model.model.neftune_noise_alpha = cfg.trainer.neftune_noise_alpha
    if cfg.trainer.use_liger_kernel:
        use_liger_kernels(model)
    if cfg.trainer.compile_layers:
        compile_layers(model)
    if run.is_main:
        _warn_of_window(model, cfg.data.tokens_per_batch)
    resume = run.start()
    mel_bins = int(processor.feature_extractor.feature_size)
    data = open_run_data(cfg, processor.tokenizer, mel_bins, Shapes.of(model.config))
    if cfg.trainer.epochs is not None:
        args.max_steps = cfg.trainer.max_steps = steps_of_epochs(data.plan, data.sources, cfg.trainer.epochs)
    writer = MetricsWriter(run.metrics, is_main=run.is_main)
    adapters = plan_adapters(model, cfg.model, seed=cfg.run.seed)
    stage = Stage(cfg, run, model, processor, data, writer, resume, adapters)
    # Before hours of encoding.
    _check_resume(stage, args)
    if cfg.data.encoder_cache:
        use_encoder_cache(cfg.data.encoder_cache, model, data, args)
    return stage


def _warn_of_window(model: nn.Module, tokens_per_batch: int) -> None:
    """Say at the start that a long sample would end the run: unpadded attention has no sliding window."""
    windows = [window for module in model.modules() if (window := getattr(module, "sliding_window", None))]
    if windows and min(windows) < tokens_per_batch:
        logger.warning(
            "the LLM has a sliding window of %d tokens, and data.tokens_per_batch=%d admits longer samples: the first "
            "of them ends the run. data.tokens_per_batch=%d skips and counts them instead",
            min(windows), tokens_per_batch, min(windows),
        )  # fmt: skip


def _silence_libraries(model: Any, processor: Any) -> None:
    """Silence what the trainers announce in every run, and progress bars of written files."""
    disable_progress_bar()
    # The trainer counts the batches of a step itself and tells accelerate of one; DeepSpeed needs the true number.
    logging.getLogger("accelerate.accelerator").addFilter(_no_accumulation_mismatch)
    library = logging.getLogger("transformers.trainer_utils")
    level = library.level
    library.setLevel(logging.ERROR)
    align_special_tokens(model, processor)
    library.setLevel(level)


def _no_accumulation_mismatch(record: logging.LogRecord) -> bool:
    return "Gradient accumulation steps mismatch" not in record.getMessage()


def _check_resume(stage: Stage, args: TrainingArguments) -> None:
    """Refuse to go on with other shards than the run began with; take the plan's shortcut."""
    if stage.resume is None:
        return
    manifest = checkpoints.read_manifest(stage.resume)
    layout = optimizer_layout(stage.cfg.deepspeed)
    if manifest.get("optimizer", layout) != layout:
        read_in_another_shape(stage.resume, manifest["optimizer"], layout, args)
    if manifest["plan_fingerprint"] != stage.batches.plan.fingerprint and not stage.cfg.run.allow_data_change:
        raise ValueError(
            f"the data differ from those {stage.run.dir} was trained on, or the order of their samples does (plan "
            f"fingerprint {stage.batches.plan.fingerprint}, checkpoint {manifest['plan_fingerprint']}). The order "
            "also depends on the qa-train version, the frozen parts and data.encoder_cache: restore what "
            "changed, or continue with run.allow_data_change=true: new sources and new shards then join after the "
            "current shuffle window. Sources with changed records, filters or prompts start their next epoch"
        )
    for line in stage.batches.plan.seek(*manifest["plan_hint"], records=Records.read(stage.run.plans)):
        if stage.run.is_main:
            logger.warning("the data have changed: %s", line)
