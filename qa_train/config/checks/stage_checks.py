"""Checks that look across sections; each error names the key to change."""

from __future__ import annotations

from glob import glob
from importlib.util import find_spec
from math import inf
from pathlib import Path

from qa_train.config.checks.evaluation_checks import check_evaluation
from qa_train.config.checks.refusal import check_where, require
from qa_train.config.checks.reliability_checks import check_deepspeed, check_reliability
from qa_train.config.settings.sections import AugmentConfig, PartConfig, SourceConfig, StageConfig
from qa_train.config.settings.stages import STAGES
from qa_train.utils.atomic import local


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
    if (cfg.run.dir.startswith("~") or "$" in cfg.run.dir) and not Path(cfg.run.dir).exists():
        # Of a shell, and not of YAML or of single quotes: a folder of that name would be made.
        raise ValueError(f"run.dir is {cfg.run.dir!r}: write it out, or ${{oc.env:HOME}}/runs/first")
    places = {
        "run.dir": cfg.run.dir,
        "data.encoder_cache": cfg.data.encoder_cache,
        "data.storage.cache_dir": cfg.data.storage.cache_dir,
    }
    for key, place in places.items():
        local(place or "", key)
    _check_sources(cfg)
    _check_encoder_cache(cfg)
    _check_sections(cfg)
    _check_parts(cfg)
    check_reliability(cfg)
    check_deepspeed(cfg)
    check_evaluation(cfg)
    _check_trainer(cfg)
    _check_tracking(cfg)
    cfg.kind.check_section(cfg)


def _check_sources(cfg: StageConfig) -> None:
    sources = cfg.data.sources
    if not sources:
        raise ValueError("data.sources is empty: choose a data group (data=...) or list at least one source")
    for name, source in sources.items():
        key = f"data.sources.{name}"
        require(source.template in ("base", "chat"), f"{key}.template", source.template, "base or chat")
        if not source.shards:
            raise ValueError(f"{key}.shards is empty: give paths, globs or URLs of .tar shards")
        check_where(key, source.where)
        require(source.weight >= 0, f"{key}.weight", source.weight, "0 or more (0 skips the source)")
        for option in ("max_samples", "max_epochs"):
            most = getattr(source, option)
            require(most is None or most >= 1, f"{key}.{option}", most, "1 or more (weight: 0 skips the source)")
        _check_learning(cfg.kind.pairs, key, source)
    if all(source.weight == 0 for source in sources.values()):
        raise ValueError("every source has weight 0: nothing to train on")
    noises = {"data.target_noise": cfg.data.target_noise}
    noises |= {f"data.sources.{name}.target_noise": each.target_noise or 0.0 for name, each in sources.items()}
    for key, noise in noises.items():
        require(0 <= noise <= 0.5, key, noise, "a share between 0 and 0.5")
        if noise and cfg.kind.pairs:
            raise ValueError(f"{key}={noise} has no effect on preference pairs: remove it")
    if cfg.kind.pairs and any(source.template != "chat" for source in sources.values()):
        raise ValueError(f"{cfg.stage} sources must have template: chat (preference pairs are chats)")


def _check_encoder_cache(cfg: StageConfig) -> None:
    """A cache holds what a frozen encoder made of audio that does not change."""
    cache, time_mask = cfg.data.encoder_cache, cfg.data.time_mask
    if cache and "encoder" not in cfg.model.freeze:
        raise ValueError(
            "data.encoder_cache is set but the encoder trains, so cached outputs would be stale: "
            "add encoder to model.freeze, or set data.encoder_cache=null"
        )
    if cache and cfg.data.augment != AugmentConfig():
        raise ValueError(
            "data.augment changes the audio, which data.encoder_cache no longer reads: set data.encoder_cache=null, "
            "or remove data.augment and use data.time_mask"
        )
    if time_mask and not cache:
        raise ValueError("data.time_mask masks cached encoder outputs: set data.encoder_cache, or data.time_mask=0")
    require(0 <= time_mask <= 0.5, "data.time_mask", time_mask, "a share between 0 and 0.5")


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
    """Values of the trainer's options, and the precision of the weights that it trains."""
    bf16, epochs, smoothing = cfg.trainer.bf16, cfg.trainer.epochs, cfg.trainer.label_smoothing_factor
    noise = cfg.trainer.neftune_noise_alpha
    require(bf16 in (True, False, "auto"), "trainer.bf16", bf16, "auto, true or false")
    for name in ("batches_per_step", "max_steps"):
        count = getattr(cfg.trainer, name)
        require(count >= 1, f"trainer.{name}", count, "1 or more")
    _check_rates(cfg)
    positive = epochs is None or 0 < epochs < inf
    require(positive, "trainer.epochs", epochs, "a number above 0, or null for trainer.max_steps")
    require(0 <= smoothing < 1, "trainer.label_smoothing_factor", smoothing, "0 to below 1")
    if cfg.kind.pairs and smoothing:
        raise ValueError("trainer.label_smoothing_factor has no effect on preference pairs: use dpo.label_smoothing")
    require((noise or 0) >= 0, "trainer.neftune_noise_alpha", noise, "0 or more, e.g. 5")
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


def _check_rates(cfg: StageConfig) -> None:
    """Numbers that an optimizer would multiply every weight by; NaN compares as false."""
    parts = {part: getattr(cfg.trainer.parts, part) for part in ("encoder", "projector", "llm")}
    places = {"trainer": cfg.trainer} | {f"trainer.parts.{part}": options for part, options in parts.items()}
    for place, options in places.items():
        for name in ("learning_rate", "muon_learning_rate", "weight_decay", "adam_epsilon"):
            rate = getattr(options, name, None)
            require(rate is None or 0 <= rate < inf, f"{place}.{name}", rate, "a number of 0 or more")
    for name in ("adam_beta1", "adam_beta2"):
        beta = getattr(cfg.trainer, name)
        require(0 <= beta < 1, f"trainer.{name}", beta, "0 to below 1")


def _check_learning(pairs: bool, key: str, source: SourceConfig) -> None:
    """What of a source is learned, and how strongly."""
    require(0 < source.loss_weight < inf, f"{key}.loss_weight", source.loss_weight, "a factor above 0")
    if source.last_turn_only and source.template != "chat":
        raise ValueError(f"{key}.last_turn_only has no effect on template {source.template}: remove it")
    if pairs and (source.last_turn_only or source.loss_weight != 1):
        raise ValueError(
            f"{key}: last_turn_only and loss_weight have no effect on preference pairs: remove them "
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
    parts, lora, frozen = {"encoder", "projector", "llm"}, set(cfg.model.lora.parts), set(cfg.model.freeze)
    if unknown := frozen - parts:
        raise ValueError(f"model.freeze holds {sorted(unknown)}: use any of {sorted(parts)}")
    if frozen == parts:
        raise ValueError("model.freeze holds every part: nothing would train; unfreeze at least one")
    if wrong := lora - {"encoder", "llm"}:
        raise ValueError(f"model.lora.parts holds {sorted(wrong)}: use encoder, llm or both")
    if both := lora & frozen:
        raise ValueError(f"{sorted(both)} is in model.lora.parts and in model.freeze: remove it from one of them")
    if lora and (whole := {"encoder", "llm"} - lora - frozen):
        raise ValueError(
            f"model.lora.parts is {sorted(lora)}, and {sorted(whole)} would train in full: add it to "
            "model.lora.parts or model.freeze"
        )
    if lora:
        require(cfg.model.lora.r >= 1, "model.lora.r", cfg.model.lora.r, "1 or more")
        require(0 <= cfg.model.lora.dropout < 1, "model.lora.dropout", cfg.model.lora.dropout, "0 to below 1")
    for part in frozen:
        if getattr(cfg.trainer.parts, part) != PartConfig():
            raise ValueError(f"trainer.parts.{part} has no effect: {part} is in model.freeze; remove one of the two")
    if cfg.trainer.parts.projector.layer_decay is not None:
        raise ValueError("trainer.parts.projector.layer_decay has no effect: the projector is one layer; remove it")
    for part in ("encoder", "llm"):
        kind, modes = getattr(cfg.trainer.gradient_checkpointing, part), ("none", "selective", "full")
        require(kind in modes, f"trainer.gradient_checkpointing.{part}", kind, "none, selective or full")
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
