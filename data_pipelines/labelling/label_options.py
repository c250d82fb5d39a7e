"""Options of `qa-train data label`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from qa_train.config import StorageConfig
from qa_train.jobs.executor import EngineOptions


@dataclass
class Labeller:
    """Who labels: a checkpoint, or a model behind an endpoint."""

    # A run folder (the run.dir of a training), one of its checkpoints, a Hugging Face folder or a hub id.
    checkpoint: str | None = None
    # Instead of a checkpoint, an OpenAI-compatible endpoint that takes audio, up to and without /chat/completions.
    url: str | None = None
    # Its name at the endpoint.
    model: str = ""
    # Name of the environment variable that holds the key.
    key_env: str = "OPENAI_API_KEY"
    # Its price for an hour of audio, in any currency.
    price_per_hour: float = 0.0

    @property
    def name(self) -> str:
        """As records and messages have it."""
        return self.model if self.checkpoint is None else self.checkpoint


@dataclass
class LabelConfig(EngineOptions, Labeller):
    """Options of `qa-train data label`."""

    # Indexed shards (a pattern, or [A,B]) of one clip a record.
    shards: Any = MISSING
    # The folder for the new shards, or s3://, gs://; a shard keeps its name.
    out: str = MISSING
    # A task of the prompt bank: asr, asr_lid, lid, sound_caption, music_caption, translate ... Answers fill its fields.
    task: str = "asr"
    # Asked instead of the task's first wording that fits the record; may name its fields, as {language}.
    prompt: str | None = None
    # Further tasks (YAML).
    prompt_files: list[str] = field(default_factory=list)
    # chat, or base: a pretrained checkpoint, which takes audio + a prompt.
    template: str = "chat"
    # Only records with this value, e.g. where.split=train.
    where: dict[str, Any] = field(default_factory=dict)
    # Set a field of every record before it is asked about: fields.language=de is a forced language.
    fields: dict[str, Any] = field(default_factory=dict)
    # Ask also about records that have the fields already; otherwise they stay as they are.
    relabel: bool = False
    # A second opinion: second.checkpoint=, or second.url= and second.model=.
    second: Labeller = field(default_factory=Labeller)
    # Records of which the two differ by more are left out: wrong words per word of the longer transcript; of other
    # tasks 0 (the same label) or 1.
    max_difference: float = 0.2
    # Transcripts of longer clips are made in windows of at most so many seconds, cut where it is quietest.
    window_s: float = 30.0
    # Seconds; longer clips are left out.
    max_duration_s: float = 600.0
    # Clips with a larger share of silent 20 ms frames are not asked about; of longer clips, windows in which all
    # are. null: everything is asked about.
    max_silence: float | None = 0.95
    # dB below full scale; frames with a lower level are silent.
    silence_db: float = -55.0
    # Leave out answers that repeat one phrase (of up to 8 words) more often in a row.
    max_repeats: int | None = 5
    # And those whose UTF-8 zlib shrinks more: 2.4 is Whisper's limit.
    max_compression: float | None = 2.4
    # Most tokens of an answer; records whose answer would be longer are left out.
    max_new_tokens: int = 256
    # Checkpoint: most clips of a batch.
    batch_size: int = 32
    # Checkpoint: most prompt + new tokens of a batch.
    token_budget: int = 16384
    # Checkpoint: auto (a GPU where there is one, else the CPU), cpu, cuda or cuda:N.
    device: str = "auto"
    # Compare a checkpoint's files with the checksums in its manifest, if it has one.
    verify: bool = True
    # Endpoint: requests at a time of each process.
    requests: int = 8
    # Processes of engine=local, each with its own model; 0: this one.
    workers: int = 1
    # Of a node, for each shard that is worked on (engine=ray): cores ...
    cores: int = 1
    # ... and GPUs, e.g. gpus=1 for a checkpoint.
    gpus: float = 0.0
    # copy: new tars with the same bytes of audio. in_place: a link to the old tar, with the labels in an index of its
    # own (local shards).
    audio: str = "copy"
    # Unreadable clips and refused requests allowed, as a share of all records; one always is, unless it is 0.
    error_budget: float = 0.01
    # Make shards with errors again.
    retry_bad: bool = False
    # Of the labels; null: the day on which the command starts (UTC).
    date: str | None = None
    # Do not start above this price of all audio.
    max_cost: float | None = None
    # Show what would be asked, how much, and for what price, and stop.
    dry_run: bool = False
    # How remote shards are read: the keys of data.storage.
    storage: StorageConfig = field(default_factory=StorageConfig)
