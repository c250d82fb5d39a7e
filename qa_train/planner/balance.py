"""The relative cost of a sample for the model of a run, used to pack batches of equal cost for all ranks.

A pure function of the configuration and of the model's shapes. Recomputation (``trainer.gradient_checkpointing``) is
ignored: it may change when a run is resumed, and the order of samples must not change with it.
"""

from __future__ import annotations

from typing import Any

from qa_train.config import StageConfig
from qa_train.data.batches import Batches, open_data
from qa_train.data.order.packing import Cost
from qa_train.model import load_model_config, load_model_tokenizer
from qa_train.model.flops import Flops, Regime, Shapes, Work, forward_flops, training_flops

# Four mel frames, which are one audio token; a document of one token, which sees itself; one scored row.
_UNIT = Work([4], [1], 1)


def cost_of(cfg: StageConfig, shapes: Shapes) -> Cost:
    """The cost of a sample by its lengths, in forward and backward passes of one LLM token.

    Counted as in ``qa_train.model.flops``: frozen parts have no backward pass for their weights, cached encoder outputs
    cost no encoder, and a live reference is one more forward.
    """
    parts = [training_flops(shapes, _UNIT, Regime.of(cfg.model))]
    parts += [forward_flops(shapes, _UNIT)] * cfg.kind.reference_forwards(cfg)
    heard = [Flops(projector=each.projector) for each in parts] if cfg.data.encoder_cache else parts
    # n tokens have n (n + 1) / 2 pairs: half a pair for each token, and half a pair for its square.
    half_a_pair = sum(each.llm_attention for each in parts) / 2
    token = sum(each.llm + each.adapters for each in parts) + half_a_pair
    return Cost(
        token_squared=_rounded(half_a_pair / token),
        audio=_rounded(sum(each.stem + each.encoder + each.projector for each in heard) / token),
        audio_squared=_rounded(sum(each.encoder_attention for each in heard) / token),
        scored=_rounded(sum(each.head for each in parts) / token),
    )


def open_run_data(
    cfg: StageConfig, tokenizer: Any, mel_bins: int, shapes: Shapes, *, share_windows: bool = True
) -> Batches:
    """The data of a run in its order; ``share_windows``: with the other processes of this machine.

    Raises ValueError or OSError if the shards cannot be opened.
    """
    return open_data(
        cfg.data,
        tokenizer,
        mel_bins,
        seed=cfg.data.seed,
        batches_per_step=cfg.trainer.batches_per_step,
        preference=cfg.kind.pairs,
        cost=cost_of(cfg, shapes),
        share_windows=share_windows,
    )


def open_planned(cfg: StageConfig) -> Batches:
    """The data of a run in its order, without its model: for commands that read no audio.

    Raises ValueError or OSError if the model's configuration, its tokenizer or the shards cannot be opened.
    """
    tokenizer, shapes = load_model_tokenizer(cfg.model), Shapes.of(load_model_config(cfg.model))
    # No audio is read, so the number of mel bins does not matter. How fast a process plans is part of what is shown.
    return open_run_data(cfg, tokenizer, 80, shapes, share_windows=False)


def _rounded(ratio: float) -> float:
    """Three significant digits: the order must not depend on the last bit of a float."""
    return float(f"{ratio:.3g}")
