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
    # Name of the model at the endpoint.
    model: str = ""
    # Environment variable that holds the key.
    key_env: str = "OPENAI_API_KEY"
    # Price of an hour of audio at the endpoint, in any currency.
    price_per_hour: float = 0.0

    @property
    def name(self) -> str:
        """As records and messages have it."""
        return self.model if self.checkpoint is None else self.checkpoint


@dataclass
class LabelConfig(EngineOptions, Labeller):
    """Options of `qa-train data label`."""

    # Indexed shards (a pattern, or [A,B]) with one clip per record.
    shards: Any = MISSING
    # The folder for the new shards, or s3://, gs://; a shard keeps its name.
    out: str = MISSING
    # A task of the prompt bank: asr, asr_lid, lid, sound_caption, music_caption, translate ... The answer is stored in
    # the task's fields.
    task: str = "asr"
    # Prompt instead of the task's first wording that fits the record; may contain fields of the record: {language}.
    prompt: str | None = None
    # Prompt files (YAML) with further tasks.
    prompt_files: list[str] = field(default_factory=list)
    # "chat" for a model after SFT; "base" for a pretrained one, which takes audio + a prompt; null: as in the training
    # data of the checkpoint's run, "chat" for a checkpoint outside a run (an export in another folder, a hub id).
    template: str | None = None
    # Only records with this value, e.g. where.split=train.
    where: dict[str, Any] = field(default_factory=dict)
    # Set a field of every record before the model is asked: fields.language=de forces the language.
    fields: dict[str, Any] = field(default_factory=dict)
    # Also label records that already have the task's fields; otherwise they are copied unchanged.
    relabel: bool = False
    # A second opinion: second.checkpoint=, or second.url= and second.model=.
    second: Labeller = field(default_factory=Labeller)
    # Records are skipped if the two labels differ by more: wrong words per word of the longer transcript; for other
    # tasks 0 (same label) or 1.
    max_difference: float = 0.2
    # Longer clips are transcribed in windows of at most this many seconds, cut at the quietest place.
    window_s: float = 30.0
    # Seconds; longer clips are skipped.
    max_duration_s: float = 600.0
    # Clips with a larger share of silent 20 ms frames are skipped; in clips longer than window_s, the windows that are
    # entirely silent. null: no filter.
    max_silence: float | None = 0.95
    # Frames with a lower level count as silent; in dB relative to full scale.
    silence_db: float = -55.0
    # Answers that repeat a phrase of up to 8 words more often in a row are skipped; null: no filter.
    max_repeats: int | None = 5
    # Answers with a higher zlib compression ratio are skipped: 2.4 is Whisper's limit; null: no filter.
    max_compression: float | None = 2.4
    # Maximum tokens of an answer; records with a longer one are skipped.
    max_new_tokens: int = 256
    # With checkpoint=: maximum clips of a batch.
    batch_size: int = 32
    # With checkpoint=: maximum prompt + new tokens of a batch.
    token_budget: int = 16384
    # With checkpoint=: auto (a GPU if there is one, else the CPU), cpu, cuda or cuda:N.
    device: str = "auto"
    # Compare a checkpoint's files with the checksums in its manifest, if it has one.
    verify: bool = True
    # With url=: concurrent requests of each process.
    requests: int = 8
    # Processes of engine=local, each with its own model; 0: this one.
    workers: int = 1
    # With engine=ray: cores reserved for each shard in progress.
    cores: int = 1
    # With engine=ray: GPUs reserved for each shard in progress, e.g. gpus=1 for a checkpoint.
    gpus: float = 0.0
    # copy: new tars with the same bytes of audio. in_place: a link to the old tar, with the labels in an index of its
    # own (local shards).
    audio: str = "copy"
    # Maximum share of records with an unreadable clip or a refused request. One is always allowed, unless it is 0.
    error_budget: float = 0.01
    # Rebuild shards that have errors.
    retry_bad: bool = False
    # Date written into the labels; null: the day on which the command starts (UTC).
    date: str | None = None
    # Refuse to start if the price of all audio is higher.
    max_cost: float | None = None
    # Show the prompt, the amount of audio and its price, and stop.
    dry_run: bool = False
    # How remote shards are read: the keys of data.storage.
    storage: StorageConfig = field(default_factory=StorageConfig)
