"""Checks of ``dpo.*``: losses of TRL and what each of them reads, and the reference."""

from __future__ import annotations

from math import inf

from qa_train.config.checks.refusal import require
from qa_train.config.settings.sections import AugmentConfig, DpoConfig, StageConfig
from qa_train.utils.closest import did_you_mean

LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
# Losses of the difference between chosen and rejected, in which the divergence's constant cancels.
_OF_DIFFERENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
_SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
# Losses that do not return one value per pair.
_NOT_BY_PAIR = {"aot", "aot_unpaired", "sft"}


def check_preferences(cfg: StageConfig) -> None:
    """Options of ``dpo.*`` that are out of range, contradict each other, or would be ignored.

    Raises:
        ValueError: the first one found, with the key to change.
    """
    _check_losses(cfg.dpo)
    _check_ranges(cfg.dpo)
    _check_reference(cfg)
    _check_sync(cfg)


def _check_losses(dpo: DpoConfig) -> None:
    losses = dpo.loss_type
    if unknown := [name for name in losses if name not in LOSSES] or ([""] if not losses else []):
        hint = did_you_mean(unknown[0], LOSSES)
        raise ValueError(f"dpo.loss_type={losses}: {hint}use a list of {', '.join(LOSSES)}")
    weights = dpo.loss_weights
    # OmegaConf lets lists pass as numbers.
    fits = all(isinstance(weight, int | float) and 0 <= weight < inf for weight in weights or ())
    if weights is not None and (len(weights) != len(losses) or not fits):
        raise ValueError(f"dpo.loss_weights={weights} for {losses}: give one weight of 0 or more for each")
    if weights is not None and not any(weights):
        raise ValueError(f"dpo.loss_weights={weights}: the loss would always be 0; give at least one a weight above 0")
    smoothed = [name for name in losses if name in _SMOOTHED]
    require(0 <= dpo.label_smoothing < 0.5, "dpo.label_smoothing", dpo.label_smoothing, "0 or more, below 0.5")
    if dpo.label_smoothing and not smoothed:
        raise ValueError(
            f"dpo.label_smoothing={dpo.label_smoothing} has no effect on dpo.loss_type={losses}: set it to 0, or use "
            f"{', '.join(sorted(_SMOOTHED))}"
        )
    if "exo_pair" in smoothed and not dpo.label_smoothing:
        raise ValueError("dpo.loss_type=exo_pair needs dpo.label_smoothing above 0, e.g. 0.001")
    if dpo.use_weighting and (apart := sorted({*losses} & _NOT_BY_PAIR)):
        raise ValueError(
            f"dpo.use_weighting weighs single pairs, but {apart[0]} has no loss per pair: set it to false, or use "
            "another dpo.loss_type"
        )
    kind = dpo.f_divergence_type
    require(kind in _DIVERGENCES, "dpo.f_divergence_type", kind, ", ".join(_DIVERGENCES))
    if dpo.f_divergence_type != "reverse_kl" and (other := sorted({*losses} - _OF_DIFFERENCE)):
        raise ValueError(
            f"dpo.f_divergence_type={dpo.f_divergence_type} is not defined for {other[0]}: use reverse_kl, or "
            f"{', '.join(sorted(_OF_DIFFERENCE))}"
        )


def _check_ranges(dpo: DpoConfig) -> None:
    require(0 < dpo.beta < inf, "dpo.beta", dpo.beta, "a number above 0, e.g. 0.1")
    require(0 <= (dpo.ld_alpha or 0) <= 1, "dpo.ld_alpha", dpo.ld_alpha, "a weight between 0 and 1, or null")
    require(0 < dpo.discopop_tau < inf, "dpo.discopop_tau", dpo.discopop_tau, "a number above 0, e.g. 0.05")
    unset = DpoConfig()
    # (option, what must be so for it to be read)
    needs = {
        "discopop_tau": ("discopop" in dpo.loss_type, "dpo.loss_type=[discopop]"),
        "f_alpha_divergence_coef": (
            dpo.f_divergence_type == "alpha_divergence", "dpo.f_divergence_type=alpha_divergence",
        ),
        "ref_model_mixup_alpha": (dpo.sync_ref_model, "dpo.sync_ref_model=true"),
        "ref_model_sync_steps": (dpo.sync_ref_model, "dpo.sync_ref_model=true"),
    }  # fmt: skip
    for name, (used, what) in needs.items():
        if not used and getattr(dpo, name) != getattr(unset, name):
            raise ValueError(f"dpo.{name}={getattr(dpo, name)} has no effect without {what}: remove it")


def _check_sync(cfg: StageConfig) -> None:
    """A moving reference is a full second model and is stored in the checkpoints."""
    dpo = cfg.dpo
    if not dpo.sync_ref_model:
        return
    if dpo.reference != "live" or cfg.model.lora.parts or cfg.deepspeed.config:
        raise ValueError(
            "dpo.sync_ref_model moves a whole second model: it needs dpo.reference=live, no model.lora and "
            "deepspeed=none"
        )
    if not 0 < dpo.ref_model_mixup_alpha <= 1 or dpo.ref_model_sync_steps < 1:
        raise ValueError(
            f"dpo.ref_model_mixup_alpha={dpo.ref_model_mixup_alpha} "
            f"dpo.ref_model_sync_steps={dpo.ref_model_sync_steps}: use a share above 0 and up to 1, and 1 step or more"
        )


def _check_reference(cfg: StageConfig) -> None:
    """A precomputed reference is valid only for pairs that do not change."""
    require(cfg.dpo.reference in ("live", "precomputed"), "dpo.reference", cfg.dpo.reference, "live or precomputed")
    if cfg.dpo.reference == "live":
        return
    if cfg.data.augment != AugmentConfig() or cfg.data.time_mask:
        raise ValueError(
            "dpo.reference=precomputed needs clips that do not change: leave data.augment and data.time_mask "
            "out, or use dpo.reference=live"
        )
