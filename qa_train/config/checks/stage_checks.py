"""Checks that look across sections; each error names the key to change."""

from __future__ import annotations

from glob import glob
from importlib.util import find_spec
from pathlib import Path

from qa_train.config.checks.reliability_checks import check_deepspeed, check_reliability
from qa_train.config.settings.evaluation import check_evaluation
from qa_train.config.settings.sections import (
    AugmentConfig,
    PartConfig,
    SourceConfig,
    StageConfig,
)
from qa_train.config.settings.stages import STAGES


def require_root(cfg: StageConfig) -> None:
    """Check that the files a configuration expects under ``data.root`` exist; called when a stage opens.

    Raises:
        ValueError: a checkpoint or shards are missing; the message tells how to make them.
    """
    root = cfg.data.root
    if root is None:
        return
    wanted = [cfg.model.checkpoint or "", *(shard for each in cfg.data.sources.values() for shard in each.shards)]
    for path in wanted:
        if path.startswith(f"{root.rstrip('/')}/") and not (Path(path).exists() or glob(path)):
            raise ValueError(
                f"{path} is missing (data.root={root}): run scripts/quickstart.sh first, which makes it; or set "
                "data.root=FOLDER to the folder that has it"
            )


def check(cfg: StageConfig) -> None:
    """Cross-field checks, in one place; each error names the key to change.

    Raises:
        ValueError: the first contradiction found.
    """
    if not cfg.run.dir.strip():
        raise ValueError("run.dir is empty: name the folder where the run lives, e.g. run.dir=runs/first")
    if not cfg.data.sources:
        raise ValueError("data.sources is empty: choose a data group (data=...) or list at least one source")
    for name, source in cfg.data.sources.items():
        if source.template not in ("base", "chat"):
            raise ValueError(f"data.sources.{name}.template is {source.template!r}: use base or chat")
        if not source.shards:
            raise ValueError(f"data.sources.{name}.shards is empty: give paths, globs or URLs of .tar shards")
        if source.weight < 0:
            raise ValueError(f"data.sources.{name}.weight is {source.weight}: use 0 or more (0 skips the source)")
        for option in ("max_samples", "max_epochs"):
            value = getattr(source, option)
            if value is not None and value < 1:
                raise ValueError(f"data.sources.{name}.{option} is {value}: use 1 or more (weight: 0 skips the source)")
        _check_learning(cfg.kind.pairs, name, source)
    if all(source.weight == 0 for source in cfg.data.sources.values()):
        raise ValueError("every source has weight 0: nothing to train on")
    parts = {"encoder", "projector", "llm"}
    unknown = set(cfg.model.freeze) - parts
    if unknown:
        raise ValueError(f"model.freeze holds {sorted(unknown)}: use any of {sorted(parts)}")
    if set(cfg.model.freeze) == parts:
        raise ValueError("model.freeze holds every part: nothing would train; unfreeze at least one")
    if cfg.data.encoder_cache and "encoder" not in cfg.model.freeze:
        raise ValueError(
            "data.encoder_cache is set but the encoder trains, so cached outputs would be stale: "
            "add encoder to model.freeze, or set data.encoder_cache=null"
        )
    if cfg.data.time_mask and not cfg.data.encoder_cache:
        raise ValueError("data.time_mask masks cached encoder outputs: set data.encoder_cache, or data.time_mask=0")
    if not 0 <= cfg.data.time_mask <= 0.5:
        raise ValueError(f"data.time_mask is {cfg.data.time_mask}: use a share between 0 and 0.5")
    noises = {"data.target_noise": cfg.data.target_noise}
    noises |= {f"data.sources.{name}.target_noise": each.target_noise or 0.0 for name, each in cfg.data.sources.items()}
    for key, noise in noises.items():
        if not 0 <= noise <= 0.5:
            raise ValueError(f"{key} is {noise}: use a share between 0 and 0.5")
        if noise and cfg.kind.pairs:
            raise ValueError(f"{key}={noise} has no effect on preference pairs: remove it")
    _check_sections(cfg)
    _check_parts(cfg)
    check_reliability(cfg)
    check_deepspeed(cfg)
    check_evaluation(cfg)
    if cfg.data.encoder_cache and cfg.data.augment != AugmentConfig():
        raise ValueError(
            "data.augment changes the audio, which data.encoder_cache no longer reads: set data.encoder_cache=null, "
            "or remove data.augment and use data.time_mask"
        )
    _check_trainer(cfg)
    _check_tracking(cfg)
    # With adapters, only the projector can train in full; both are then kept in float32.
    if cfg.model.dtype != "float32" and not cfg.deepspeed.config and not cfg.model.lora.parts:
        raise ValueError(
            f"model.dtype={cfg.model.dtype} without DeepSpeed would train weights that have no float32 copy, and "
            "small updates would vanish: use model.dtype=float32, or deepspeed=zero2, with trainer.bf16=true"
        )
    if cfg.trainer.muon_learning_rate is not None and cfg.deepspeed.config:
        raise ValueError(
            "trainer.muon_learning_rate needs whole matrices, which DeepSpeed partitions: "
            "set deepspeed=none, or trainer.muon_learning_rate=null"
        )
    if cfg.kind.pairs and any(source.template != "chat" for source in cfg.data.sources.values()):
        raise ValueError(f"{cfg.stage} sources must have template: chat (preference pairs are chats)")
    cfg.kind.check_section(cfg)


# Sinks of tracking.report_to -> the extra that installs them, by the name of their package.
_SINKS = {"wandb": "tracking", "tensorboard": "tensorboard", "mlflow": "mlflow", "trackio": "trackio"}


def _check_tracking(cfg: StageConfig) -> None:
    if cfg.tracking.wandb in ("online", "offline") and "wandb" not in cfg.tracking.report_to:
        raise ValueError(f"tracking.wandb={cfg.tracking.wandb} has no effect: add wandb to tracking.report_to")
    for name in cfg.tracking.report_to:
        if name not in _SINKS:
            raise ValueError(f"tracking.report_to has {name!r}: use a list of {', '.join(_SINKS)}")
        # W&B is the default, not a demand.
        if find_spec(name) is None and (name != "wandb" or cfg.tracking.wandb not in (None, "disabled")):
            raise ValueError(f"tracking needs {name}, which is not installed: pip install 'qa-train[{_SINKS[name]}]'")


def _check_trainer(cfg: StageConfig) -> None:
    """Values of the trainer's options, each by itself."""
    if cfg.trainer.bf16 not in (True, False, "auto"):
        raise ValueError(f"trainer.bf16 is {cfg.trainer.bf16!r}: use auto, true or false")
    for name in ("batches_per_step", "max_steps"):
        if (value := getattr(cfg.trainer, name)) < 1:
            raise ValueError(f"trainer.{name} is {value}: use 1 or more")
    if cfg.trainer.epochs is not None and not 0 < cfg.trainer.epochs < float("inf"):
        raise ValueError(f"trainer.epochs is {cfg.trainer.epochs}: use a number above 0, or null for trainer.max_steps")
    if not 0 <= cfg.trainer.label_smoothing_factor < 1:
        raise ValueError(f"trainer.label_smoothing_factor is {cfg.trainer.label_smoothing_factor}: use 0 to below 1")
    if cfg.kind.pairs and cfg.trainer.label_smoothing_factor:
        raise ValueError("trainer.label_smoothing_factor has no effect on preference pairs: use dpo.label_smoothing")
    if (cfg.trainer.neftune_noise_alpha or 0) < 0:
        raise ValueError(f"trainer.neftune_noise_alpha is {cfg.trainer.neftune_noise_alpha}: use 0 or more, e.g. 5")


def _check_learning(pairs: bool, name: str, source: SourceConfig) -> None:
    """What of a source is learned, and how strongly."""
    if not 0 < source.loss_weight < float("inf"):
        raise ValueError(f"data.sources.{name}.loss_weight is {source.loss_weight}: use a factor above 0")
    if source.last_turn_only and source.template != "chat":
        raise ValueError(f"data.sources.{name}.last_turn_only has no effect on template {source.template}: remove it")
    if pairs and (source.last_turn_only or source.loss_weight != 1):
        raise ValueError(
            f"data.sources.{name}: last_turn_only and loss_weight have no effect on preference pairs: remove them "
            "(weight sets how often a source is drawn)"
        )


def _check_sections(cfg: StageConfig) -> None:
    """Settings of another stage's own section would be ignored."""
    for kind in STAGES.values():
        if kind.section is None or kind.section == cfg.kind.section:
            continue
        section = getattr(cfg, kind.section)
        unset = type(section)()
        given = [f"{kind.section}.{name}" for name, value in vars(section).items() if value != getattr(unset, name)]
        if given:
            raise ValueError(f"{', '.join(given)}: read by {kind.name} only; {cfg.stage} would ignore it")


def _check_parts(cfg: StageConfig) -> None:
    """Per part of the model: whether it trains, its learning rate and its memory."""
    lora, frozen = set(cfg.model.lora.parts), set(cfg.model.freeze)
    if wrong := lora - {"encoder", "llm"}:
        raise ValueError(f"model.lora.parts holds {sorted(wrong)}: use encoder, llm or both")
    if both := lora & frozen:
        raise ValueError(f"{sorted(both)} is in model.lora.parts and in model.freeze: remove it from one of them")
    if lora and (whole := {"encoder", "llm"} - lora - frozen):
        raise ValueError(
            f"model.lora.parts is {sorted(lora)}, and {sorted(whole)} would train in full: add it to "
            "model.lora.parts or model.freeze"
        )
    if lora and cfg.model.lora.r < 1:
        raise ValueError(f"model.lora.r is {cfg.model.lora.r}: use 1 or more")
    if lora and not 0 <= cfg.model.lora.dropout < 1:
        raise ValueError(f"model.lora.dropout is {cfg.model.lora.dropout}: use 0 to below 1")
    for part in frozen:
        if getattr(cfg.trainer.parts, part) != PartConfig():
            raise ValueError(f"trainer.parts.{part} has no effect: {part} is in model.freeze; remove one of the two")
    if cfg.trainer.parts.projector.layer_decay is not None:
        raise ValueError("trainer.parts.projector.layer_decay has no effect: the projector is one layer; remove it")
    for part in ("encoder", "llm"):
        if (kind := getattr(cfg.trainer.gradient_checkpointing, part)) not in ("none", "selective", "full"):
            raise ValueError(f"trainer.gradient_checkpointing.{part} is {kind!r}: use none, selective or full")
        if cfg.trainer.compile_layers and kind != "none":
            raise ValueError(
                f"trainer.compile_layers does not go with trainer.gradient_checkpointing.{part}={kind}: torch runs a "
                "layer again as plain code, where other tensors are saved than in compiled code: use none"
            )
    if cfg.trainer.use_liger_kernel and cfg.trainer.gradient_checkpointing.llm == "selective":
        raise ValueError(
            "trainer.use_liger_kernel and trainer.gradient_checkpointing.llm=selective both replace the LLM's MLP: use "
            "none or full"
        )
    if cfg.trainer.use_liger_kernel and cfg.trainer.compile_layers:
        raise ValueError(
            "trainer.use_liger_kernel and trainer.compile_layers fuse the same operations: use one of the two"
        )
