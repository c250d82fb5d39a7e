"""Memory of one GPU by kind, for plain training and for DeepSpeed's ZeRO stages 1 to 3.

With N parameters, T of them trained, W GPUs and weights of b bytes:

 - plain: b N weights, b T gradients (once more in DDP's buckets when W > 1), AdamW's two states in the weights' type;
 - ZeRO-1: b N, b T, and 12 T / W (a float32 copy and AdamW's two states); ZeRO-2: gradients b T / W too;
   ZeRO-3: everything / W, and the weights that are gathered at one time;
 - the buckets in which gradients travel: ``reduce_bucket_size`` elements, twice with ``overlap_comm``;
 - DeepSpeed adds up gradients in the weights' type, unless ``data_types.grad_accum_dtype`` is fp32.

The formulas are those of the ZeRO paper (arXiv 1910.02054); the sizes of buckets are DeepSpeed's defaults and settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qa_train.config import StageConfig
from qa_train.model.layers.costs import Precision
from qa_train.planner.activations import Activations
from qa_train.planner.sizes import Sizes

GIB = 1024**3
# CUDA context, kernels of torch and NCCL: assumed, not measured.
OVERHEAD = 1.5 * GIB
# What torch's allocator holds more than its tensors: 1 to 9 % with expandable segments, replayed for four 7B recipes.
FRAGMENTATION = 0.05
# A run may fill so much of its card: batches differ in length, and drivers in what they keep.
USABLE = 0.95
_REDUCE_BUCKET = 500_000_000
_MAX_LIVE = 1_000_000_000
# Bytes of an optimizer's states per trained parameter, as a multiple of the size of one value.
_STATES = {"auto": 2.0, "adamw_torch": 2.0, "adamw_torch_fused": 2.0, "adafactor": 0.0, "sgd": 0.0, "rmsprop": 1.0}


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by kind; and on the host of eight such GPUs, when something is offloaded."""

    kinds: dict[str, float]
    activations: Activations
    step: float
    host: float = 0.0

    @property
    def tensors(self) -> float:
        """The larger of two moments: the start of the backward pass, and the optimizer's step."""
        return sum(self.kinds.values()) + max(self.activations.total, self.step)

    @property
    def fragmentation(self) -> float:
        """What the allocator holds and cannot use."""
        return FRAGMENTATION * self.tensors

    @property
    def total(self) -> float:
        """All that the card must have, the driver's part included."""
        return self.tensors + self.fragmentation + OVERHEAD

    def fits(self, card: float) -> bool:
        """Whether a card of so many bytes is enough, with a part of it to spare."""
        return self.total <= USABLE * card


def live_reference(cfg: StageConfig) -> bool:
    """Whether a second model is kept: with adapters the reference is the model without them."""
    return cfg.kind.reference_forwards(cfg) > 0 and not cfg.model.lora.parts


def trains_in_bfloat16(cfg: StageConfig) -> bool:
    """What trainer.bf16 means on a GPU: every one of the table multiplies bfloat16, so that auto is true."""
    return bool(cfg.trainer.bf16)


def precision_of(cfg: StageConfig) -> Precision:
    """Bytes per value while this configuration trains."""
    half = trains_in_bfloat16(cfg)
    if cfg.deepspeed.config:
        return Precision.of("bfloat16" if half else "float32")
    return Precision.of(cfg.model.dtype, autocast=half)


def memory(cfg: StageConfig, sizes: Sizes, gpus: int, kept: Activations) -> Memory:
    """Memory of one of ``gpus`` GPUs. ValueError for an optimizer whose states are not in the table."""
    stage, b = cfg.deepspeed.zero_stage, precision_of(cfg).weights
    total, trained = sizes.parameters, sizes.trained_parameters
    if not cfg.deepspeed.config:
        return _plain(cfg, sizes, gpus, kept)
    zero, share = cfg.deepspeed.zero, gpus if stage else 1
    g = 4 if cfg.deepspeed.config.get("data_types", {}).get("grad_accum_dtype") == "fp32" else b
    kinds = {
        "weights": b * total / (gpus if stage == 3 else 1),
        "gradients": g * trained / (gpus if stage >= 2 else 1),
        "optimizer states": (4 + 4 * _states(cfg)) * trained / share,
        "communication buffers": _buffers(zero, stage, b, sizes),
    }
    host = 0.0
    if zero.get("offload_optimizer", {}).get("device") == "cpu":
        # Gradients follow in float32, next to the states.
        host += kinds.pop("optimizer states") + 4 * trained / share
        kinds["optimizer states"] = 0.0
    if zero.get("offload_param", {}).get("device") == "cpu":
        host += kinds["weights"]
        kinds["weights"] = 0.0
    if live_reference(cfg):
        kinds["reference model"] = b * total / (gpus if stage == 3 else 1)
    # The optimizer takes a group's gradients joined, and once more in float32.
    step = 0.0 if host else (g + 4) * trained / share
    return Memory(kinds, kept, step, host * min(gpus, 8))


def _plain(cfg: StageConfig, sizes: Sizes, gpus: int, kept: Activations) -> Memory:
    """Without DeepSpeed: every GPU has everything. Adapters are float32 also with weights of half precision."""
    precision, total, trained = precision_of(cfg), sizes.parameters, sizes.trained_parameters
    b = 4 if cfg.model.lora.parts else precision.weights
    frozen = total - trained
    kinds = {
        "weights": precision.weights * frozen + b * trained,
        "gradients": float(b * trained),
        "optimizer states": b * _states(cfg) * trained,
        "communication buffers": float(b * trained if gpus > 1 else 0),
    }
    if precision.autocast:
        kinds["weights cast by autocast"] = 2.0 * (sizes.shapes.llm_weights + sizes.shapes.encoder.weights)
    if live_reference(cfg):
        kinds["reference model"] = float(precision.weights * total)
    return Memory(kinds, kept, 0.0)


def _states(cfg: StageConfig) -> float:
    """Optimizer states per trained parameter, in values of its own precision."""
    name = cfg.trainer.optim
    if name in _STATES:
        return _STATES[name]
    if name.endswith("8bit") and "adam" in name:
        return 0.5
    raise ValueError(f"plan: trainer.optim={name}: its memory is not known here; plan with one of {', '.join(_STATES)}")


def _buffers(zero: dict[str, Any], stage: int, b: int, sizes: Sizes) -> float:
    bucket = b * float(_number(zero, "reduce_bucket_size", _REDUCE_BUCKET))
    if stage < 3:
        return bucket * (2 if zero.get("overlap_comm") else 1)
    live = min(float(_number(zero, "stage3_max_live_parameters", _MAX_LIVE)), sizes.parameters)
    return bucket + b * max(live, sizes.largest)


def _number(options: dict[str, Any], key: str, default: float) -> float:
    value = options.get(key, default)
    return default if value == "auto" else float(value)
