"""The arguments of a stage's trainer, and what must be settled in the process before they are made."""

from __future__ import annotations

import warnings
from dataclasses import asdict, fields
from typing import Any, TypeVar

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from qa_train.config import ReliabilityConfig, StageConfig
from qa_train.train.job.arithmetic import check_arithmetic, settle
from qa_train.train.job.distributed import accumulation_steps, deepspeed_options, name_accelerator
from qa_train.train.job.states import plain_states_only
from qa_train.utils.process import COMPILER_REMEDY, check_ranks_announced, keep_freed_memory, missing_compiler

Args = TypeVar("Args", bound=TrainingArguments)

# torch's own number of batches that a worker builds ahead.
_PREFETCH_FACTOR = 2
# Schedules that transformers builds without looking at trainer.lr_scheduler_kwargs.
_PLAIN_SCHEDULES = ("constant", "constant_with_warmup")
# TrainerConfig fields that are not TrainingArguments.
_OWN_FIELDS = (
    "batches_per_step",
    "epochs",
    # The libraries' own take padded logits and embeddings; the model does both for real tokens.
    "label_smoothing_factor",
    "neftune_noise_alpha",
    *(f.name for f in fields(ReliabilityConfig)),
    "cpu_threads",
    "muon_learning_rate",
    "parts",
    "gradient_checkpointing",
    "compile_layers",
    "use_liger_kernel",
)


def training_arguments(cfg: StageConfig, kind: type[Args], **more: Any) -> Args:
    """TrainingArguments (or TRL's subclass of them) for this configuration.

    Must be called before the model is loaded: under ZeRO-3 the arguments decide how it is partitioned.
    """
    settle(cfg)
    check_ranks_announced()
    check_arithmetic(bf16=cfg.trainer.bf16, gpu=torch.cuda.is_available())
    _check_compiler(cfg)
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
    rehearse_optimizer(args)
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs: start one process for each with torchrun --nproc-per-node "
            f"{args.n_gpu} -m qa_train ..., or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    return args


def _check_compiler(cfg: StageConfig) -> None:
    """ValueError where a run would end at its first step, because Triton finds no C compiler for its kernels."""
    kernels = {
        f"qa-train {cfg.stage}": cfg.kind.pairs,
        "trainer.use_liger_kernel": cfg.trainer.use_liger_kernel,
        "trainer.compile_layers": cfg.trainer.compile_layers,
    }
    asked = [name for name, needed in kernels.items() if needed]
    if asked and torch.cuda.is_available() and (missing := missing_compiler()):
        raise ValueError(
            f"{' and '.join(asked)} on a GPU needs a C compiler for its kernels, and {missing}: {COMPILER_REMEDY}"
        )


def rehearse_optimizer(args: TrainingArguments) -> None:
    """Build optimizer and schedule of ``args`` on a throw-away weight, and take one step with both.

    What cannot be built would otherwise end the run after its model was loaded.

    Raises:
        ValueError: names ``trainer.optim`` or ``trainer.lr_scheduler_type``, why it fails, and what to use.
    """
    # With enumerations as texts.
    said = args.to_dict()
    net: Any = torch.nn.Linear(1, 1).to(args.device)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, net)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise TypeError("it needs settings that are not given here")
        optimizer = kind(net.parameters(), **options)
        net(torch.ones(1, 1, device=args.device)).backward()
        optimizer.step()
    except Exception as error:
        raise ValueError(
            f"trainer.optim={said['optim']} cannot be built ({_line(error)}): install what it needs, or use "
            "trainer.optim=adamw_torch"
        ) from error
    schedule: str = said["lr_scheduler_type"]
    given: dict[str, Any] = said["lr_scheduler_kwargs"] or {}
    try:
        if given and schedule in _PLAIN_SCHEDULES:
            raise TypeError("it takes none of them")
        steps = args.max_steps
        scheduler = get_scheduler(schedule, optimizer, args.get_warmup_steps(steps), steps, given)
        optimizer.step()  # in torch's order, or it warns
        scheduler.step()
    except Exception as error:
        drop = ", ".join(f"'~trainer.lr_scheduler_kwargs.{key}'" for key in given)
        remedy = f"remove unknown arguments ({drop})" if given else "use another"
        raise ValueError(
            f"trainer.lr_scheduler_type={schedule} with trainer.lr_scheduler_kwargs={given} cannot be built "
            f"({_line(error)}): {remedy}, or add what it needs ('+trainer.lr_scheduler_kwargs.KEY=VALUE')"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def prefetch_factor(cfg: StageConfig) -> int | None:
    """How many batches each loader worker builds ahead: together they hold the next step while this one is computed.

    The trainer takes all micro-batches of a step before its first forward, to count what the loss is divided by. With
    less ahead, workers would stand still in a step with accumulation, and the device at the start of the next one.
    """
    workers, asked = cfg.data.num_workers, cfg.trainer.dataloader_prefetch_factor
    if asked is not None or not workers:
        return asked
    return max(_PREFETCH_FACTOR, -(-accumulation_steps(cfg.trainer) // workers))


def _optim(asked: str) -> str:
    """What auto is here. On a GPU AdamW by lists copies all weights and starts eight times as many kernels."""
    if asked != "auto":
        return asked
    return "adamw_torch_fused" if torch.cuda.is_available() else "adamw_torch"


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
        **options | {"dataloader_prefetch_factor": prefetch_factor(cfg), "optim": _optim(cfg.trainer.optim)},
        **more,
    )
