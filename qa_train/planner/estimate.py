"""One estimate from one configuration; and, when it does not fit, the smallest change that does."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from qa_train.config import DeepspeedConfig, PlanConfig, StageConfig
from qa_train.model.flops import Flops, Regime, forward_flops, training_flops
from qa_train.model.layers.costs import Trained
from qa_train.planner.activations import activations
from qa_train.planner.gpus import Gpu, find_gpu
from qa_train.planner.measured import Pace, pace_of
from qa_train.planner.memory import GIB, Memory, memory, precision_of, trains_in_bfloat16
from qa_train.planner.sizes import Sizes, measure
from qa_train.planner.work import Load, declared, from_data

# Published bfloat16 training of 7B to 8B models on H100: torchtitan 33 to 39 %, llm-foundry 37 to 46 %, OLMo-core 43 %.
MFU = 0.40
MFU_SOURCE = "published bfloat16 runs of 7B-8B models on H100 (33 to 46 %); measure yours and give mfu="
_LLM_MODE, _ENCODER_MODE = "trainer.gradient_checkpointing.llm", "trainer.gradient_checkpointing.encoder"
# Where suggestions end.
_MOST_GPUS, _FEWEST_TOKENS = 1024, 4000


@dataclass(frozen=True)
class Estimate:
    """What one run needs. FLOPs are per optimizer step over all GPUs."""

    cfg: StageConfig
    options: PlanConfig
    gpu: Gpu
    sizes: Sizes
    load: Load
    memory: Memory
    useful: Flops
    reference_flops: float
    recomputed_flops: float
    suggestions: list[str] = field(default_factory=list)
    pace: Pace | None = None

    @property
    def fits(self) -> bool:
        """Whether the memory of one GPU is enough."""
        return self.memory.fits(self.gpu.memory_gib * GIB)

    @property
    def mfu(self) -> float:
        """The share of the peak that is assumed, or was given."""
        return MFU if self.options.mfu is None else self.options.mfu

    @property
    def step_flops(self) -> float:
        """Everything that is executed in a step."""
        return self.useful.total + self.reference_flops + self.recomputed_flops

    @property
    def step_s(self) -> float:
        """Seconds of one optimizer step."""
        if self.pace is not None:
            # The runs recomputed as much and asked the same reference: it is the pace of the useful operations.
            batches = self.cfg.trainer.batches_per_step
            return self.pace.batch(self.useful.total / batches) * batches / self.options.gpus
        return self.step_flops / (self.options.gpus * self.gpu.bf16_tflops * 1e12 * self.mfu)

    @property
    def wall_hours(self) -> float:
        """Hours of the whole run."""
        return self.step_s * self.cfg.trainer.max_steps / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours of the run times the number of GPUs."""
        return self.wall_hours * self.options.gpus


def estimate(cfg: StageConfig, options: PlanConfig, *, suggest: bool = True) -> Estimate:
    """Plan ``cfg`` on ``options``. ValueError: a number that cannot be, an unknown GPU or optimizer, useless runs."""
    gpu = find_gpu(options.gpu)
    if options.gpus < 1 or (options.mfu is not None and not 0 < options.mfu <= 1):
        raise ValueError(f"plan: gpus={options.gpus} mfu={options.mfu}: use at least one GPU, and 0 < mfu <= 1")
    cfg = with_offload(cfg, options.offload)
    if cfg.trainer.batches_per_step % options.gpus:
        raise ValueError(
            f"plan: trainer.batches_per_step={cfg.trainer.batches_per_step} cannot be shared by gpus={options.gpus}: "
            f"use a multiple of {options.gpus}"
        )
    sizes, load = measure(cfg.model), _load(cfg, options)
    made = _estimate(cfg, options, gpu, sizes, load)
    if options.measured is not None:
        folders = [options.measured] if isinstance(options.measured, str) else [str(each) for each in options.measured]
        made = replace(made, pace=pace_of(folders, cfg, options.gpus))
    if made.fits or not suggest:
        return made
    return replace(made, suggestions=_suggest(made))


def with_offload(cfg: StageConfig, offload: str | None) -> StageConfig:
    """``cfg`` with DeepSpeed's offloading on. ValueError where DeepSpeed could not do it."""
    if offload is None:
        return cfg
    stage = cfg.deepspeed.zero_stage
    if offload not in ("optimizer", "all") or not stage or (offload == "all" and stage < 3):
        raise ValueError(
            f"plan: offload={offload} with ZeRO-{stage}: use offload=optimizer with zero=1, 2 or 3, or all with 3"
        )
    cfg = deepcopy(cfg)
    zero = cfg.deepspeed.zero
    zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return cfg


def _trained(cfg: StageConfig) -> tuple[Trained, Trained]:
    """The trained parts, for the activations of encoder and LLM."""
    frozen, lora = set(cfg.model.freeze), set(cfg.model.lora.parts)
    regime = Regime.of(cfg.model)
    precision = precision_of(cfg)
    copy = 0
    if lora and not cfg.deepspeed.config:
        # Adapters are float32: they read a copy of what the layer itself reads, in bfloat16 under autocast.
        copy = 2 if trains_in_bfloat16(cfg) else 4 if precision.stream == 2 else 0
    rank = dict.fromkeys(lora, cfg.model.lora.r)
    encoder, llm = "encoder" not in frozen and not lora, "llm" not in frozen and not lora
    return (
        Trained(encoder, rank=rank.get("encoder", 0), adapter_copy=copy if "encoder" in lora else 0),
        Trained(
            llm,
            passes=regime.projector or regime.encoder,
            rank=rank.get("llm", 0),
            adapter_copy=copy if "llm" in lora else 0,
        ),
    )


def _load(cfg: StageConfig, options: PlanConfig) -> Load:
    try:
        return from_data(cfg)
    except (ValueError, OSError) as error:
        # The shards need not be on the machine that plans; the estimate reports why it did not use them.
        load = declared(cfg, options)
        problems = [*load.problems, f"shards not read: {str(error).splitlines()[0]}"]
        if cfg.trainer.epochs is not None:
            problems.append(f"trainer.epochs is counted from the shards; planned are {cfg.trainer.max_steps} steps")
        return replace(load, problems=problems)


def _estimate(cfg: StageConfig, options: PlanConfig, gpu: Gpu, sizes: Sizes, load: Load) -> Estimate:
    regime, (encoder, llm) = Regime.of(cfg.model), _trained(cfg)
    modes = (cfg.trainer.gradient_checkpointing.encoder, cfg.trainer.gradient_checkpointing.llm)
    kept = activations(sizes.shapes, load.work, precision_of(cfg), encoder, llm, modes)
    batches = cfg.trainer.batches_per_step
    forward, useful = forward_flops(sizes.shapes, load.work), training_flops(sizes.shapes, load.work, regime)
    # "selective" runs cheap operations twice, no products.
    again = forward.encoder + forward.encoder_attention if modes[0] == "full" and regime.encoder else 0.0
    again += forward.llm + forward.llm_attention if modes[1] == "full" else 0.0
    return Estimate(
        cfg,
        options,
        gpu,
        sizes,
        load,
        memory(cfg, sizes, options.gpus, kept),
        _times(useful, batches),
        forward.total * batches * cfg.kind.reference_forwards(cfg),
        again * batches,
    )


def _times(flops: Flops, factor: int) -> Flops:
    return Flops(**{name: value * factor for name, value in vars(flops).items()})


def _suggest(made: Estimate) -> list[str]:
    """The changes, cheapest first and added up, until the run fits; and how many such GPUs would do without them."""
    cfg, chosen, found = deepcopy(made.cfg), dict[str, Any](), list[str]()
    for change in _changes(made.cfg, made.options.gpus):
        chosen |= change
        for key, value in change.items():
            cfg = _changed(cfg, key, value)
        if _estimate(cfg, made.options, made.gpu, made.sizes, _load(cfg, made.options)).fits:
            found.append("it fits with " + " ".join(f"{key}={value}" for key, value in chosen.items()))
            break
    more = made.options.gpus
    while more < _MOST_GPUS and made.cfg.deepspeed.zero_stage:
        more *= 2
        if memory(made.cfg, made.sizes, more, made.memory.activations).fits(made.gpu.memory_gib * GIB):
            found.append(f"it fits unchanged on gpus={more} (trainer.batches_per_step: a multiple of {more})")
            break
    return found or ["nothing tried here makes it fit: use LoRA (model.lora.parts), or larger GPUs"]


def _changes(cfg: StageConfig, gpus: int) -> Iterator[dict[str, Any]]:
    """What can be changed without changing what is learned, in the order of its price in time."""
    stage, modes = cfg.deepspeed.zero_stage, cfg.trainer.gradient_checkpointing
    if modes.llm == "none":
        yield {_LLM_MODE: "selective"}
    if gpus > 1 and stage < 2:
        yield {"zero": 2}
    if gpus > 1 and stage < 3:
        yield {"zero": 3}
    if modes.llm != "full":
        yield {_LLM_MODE: "full"}
    if modes.encoder != "full" and "encoder" not in cfg.model.freeze:
        yield {_ENCODER_MODE: "full"}
    tokens, batches = cfg.data.tokens_per_batch, cfg.trainer.batches_per_step
    while tokens >= _FEWEST_TOKENS:
        # The step keeps its size: half as many tokens at a time, twice as often.
        tokens, batches = tokens // 2, batches * 2
        yield {"data.tokens_per_batch": tokens, "trainer.batches_per_step": batches}
    if (stage or gpus > 1) and "offload_optimizer" not in cfg.deepspeed.zero:
        yield {"offload": "optimizer"}


def _changed(cfg: StageConfig, key: str, value: Any) -> StageConfig:
    """``cfg`` with one of the changes above made."""
    if key == "offload":
        return with_offload(cfg, value)
    if key == "zero":
        zero = {**cfg.deepspeed.zero, "stage": value, "overlap_comm": True}
        config = {**cfg.deepspeed.config, "zero_optimization": zero}
        return replace(cfg, deepspeed=DeepspeedConfig(name=f"zero{value}", config=config))
    *sections, name = key.split(".")
    target: Any = cfg
    for section in sections:
        target = getattr(target, section)
    setattr(target, name, value)
    return cfg
