"""The options of the commands that are not training stages."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from qa_train.config.nearest import explain, keys_of
from qa_train.config.settings.sections import StorageConfig
from qa_train.config.values import read_value
from qa_train.config.words import option_fields
from qa_train.utils.closest import did_you_mean


@dataclass
class JudgeConfig:
    """The language model that rates answers, for the benchmarks that need one (qa_train.llm.judge)."""

    # Name of the judge at the endpoint; it is written into the report.
    model: str | None = None
    # An OpenAI-compatible endpoint, without /chat/completions; null: only cached judgements are used.
    url: str | None = None
    # Environment variable that holds the key.
    key_env: str = "OPENAI_API_KEY"
    # The judge's cached replies; by default judge-cache.jsonl in out.
    cache: str | None = None
    # The evaluation folder of a fixed system, rated by the same judge for comparison.
    reference: str | None = None
    # Maximum tokens of one rating.
    max_tokens: int = 16
    # Concurrent requests.
    workers: int = 8
    # Time limit of one request, in seconds.
    timeout_s: float = 120.0
    # Price of a million input tokens, for the estimate that is printed before the first request.
    price_in: float = 0.0
    # Price of a million output tokens.
    price_out: float = 0.0
    # Refuse to start when the estimate is above this.
    max_cost: float | None = None


@dataclass(kw_only=True)
class CheckpointOptions:
    """How a checkpoint is read."""

    is_shared = True
    # Compare the checkpoint's files with the checksums in its manifest, if it has one.
    verify: bool = True
    # Weights that the checkpoint may lack, as patterns of their names (multi_modal_projector.*); they are initialized
    # randomly.
    allow_missing: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class AnsweringOptions(CheckpointOptions):
    """Where a checkpoint answers."""

    is_shared = True
    # auto (a GPU if there is one, else the CPU), cpu, cuda or cuda:N.
    device: str = "auto"


@dataclass
class EvalConfig(AnsweringOptions):
    """`qa-train eval`: answer benchmarks, or a file of questions about audio, and score the answers."""

    # The model that answers: a run folder (the run.dir of a training), one of its checkpoints, a Hugging Face folder or
    # a hub id.
    checkpoint: str | None = None
    # A JSONL file of questions (docs/evaluate.md) ...
    data: str | None = None
    # ... or benchmarks: names, suites (qwen2_audio) and YAML files of your own, e.g. benchmarks=[voicebench,my.yaml].
    benchmarks: Any = None
    # The folder that holds the benchmarks' data.
    data_root: str = "."
    # The folder for answers, scores and report. The same command again continues from the answers in it.
    out: str | None = None
    # all, predict (answer only) or score (read the predictions in out, no model needed).
    step: str = "all"
    # Two evaluation folders, compared item by item: compare=[A,B].
    compare: Any = None
    # Instead of a checkpoint, a model behind an OpenAI-compatible endpoint that takes audio.
    endpoint: str | None = None
    # Name of the model at the endpoint.
    endpoint_model: str | None = None
    # Environment variable that holds the key.
    endpoint_key_env: str = "OPENAI_API_KEY"
    # Maximum questions of a batch.
    batch_size: int = 32
    # Maximum prompt + new tokens of a batch.
    token_budget: int = 16384
    # Maximum answer length for a file of questions; benchmarks have their own limits.
    max_new_tokens: int = 256
    # Number of questions to ask again with silence and with another clip, to check that the model listens.
    probe: int = 32
    # Training shards (paths or patterns) to search for the test items: training=[a.tar,b.tar].
    training: Any = None
    # Packages whose code may run, for metrics of your own (docs/extend.md): plugins=[my_package].
    plugins: list[str] = field(default_factory=list)
    # Replace files in out that have the names of a report but come from no evaluation.
    overwrite: bool = False
    # How remote shards are read: the keys of data.storage.
    storage: StorageConfig = field(default_factory=StorageConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass
class ChatConfig(AnsweringOptions):
    """`qa-train chat`: talk to a checkpoint about audio files."""

    # A run folder (the run.dir of a training), one of its checkpoints, a Hugging Face folder or a hub id.
    checkpoint: str = MISSING
    # One file, or a list: audio=[a.wav,b.wav].
    audio: Any = None
    # The question about the audio; without it a conversation starts.
    text: str | None = None
    # "chat" for a model after SFT; "base" for a pretrained one, which takes audio + a prompt; null: as in the training
    # data of the checkpoint's run, "chat" for a checkpoint outside a run (an export in another folder, a hub id).
    template: str | None = None
    # Maximum tokens of an answer.
    max_new_tokens: int = 256
    # 0: always the most likely token; higher: sampling.
    temperature: float = 0.0


@dataclass
class ServeConfig(AnsweringOptions):
    """`qa-train serve`: an OpenAI-compatible server with a chat page."""

    # One checkpoint, a list [A,B], or names for them {first: A, second: B}: clients choose by "model".
    checkpoint: Any = MISSING
    # 127.0.0.1: this machine only. There is no login, so be careful when opening it to others.
    host: str = "127.0.0.1"
    # 0: any free port; the first line of output shows it.
    port: int = 8000
    # "chat" for models after SFT; "base" for pretrained ones; null: for each checkpoint as in the training data of its
    # run, "chat" for one outside a run (an export in another folder, a hub id).
    template: str | None = None
    # Maximum requests of a batch.
    batch_size: int = 8
    # Maximum tokens (prompts + answers) of a batch.
    token_budget: int = 16384
    # Maximum concurrent requests; further ones get status 429.
    max_requests: int = 32
    # Maximum concurrent requests from one address; null: half of max_requests.
    max_requests_per_client: int | None = None
    # Requests that are parsed at a time; the clips of each are decoded in a separate process.
    decode_workers: int = 2
    # Time limit of parsing and decoding one request, in seconds.
    decode_timeout_s: float = 60.0
    # Maximum size of a request, in MB.
    max_body_mb: float = 32.0
    # Maximum length of a clip, in seconds.
    max_duration_s: float = 120.0
    # Maximum length of all clips of a conversation, in seconds.
    max_audio_s: float = 300.0
    # Maximum number of clips of a conversation.
    max_clips: int = 16
    # Maximum tokens of an answer, and the default of requests that set no limit.
    max_new_tokens: int = 1024
    # Folder of example clips for the chat page.
    examples: str | None = None


@dataclass
class PairsConfig(AnsweringOptions):
    """`qa-train pairs`: preference pairs from a checkpoint's own answers, as shards for `qa-train dpo`."""

    # A run folder (the run.dir of a training), one of its checkpoints, a Hugging Face folder or a hub id.
    checkpoint: str = MISSING
    # Indexed shards of training clips: a path, a pattern, or a list.
    shards: Any = MISSING
    # Only records with these values, e.g. where.language=en.
    where: dict[str, Any] = field(default_factory=dict)
    # How remote shards are read: the keys of data.storage.
    storage: StorageConfig = field(default_factory=StorageConfig)
    # The folder for the new shards.
    out: str = MISSING
    # A task of the prompt bank, or "chat".
    task: str = "ask_transcript"
    # Prompt files (YAML) in addition to the built-in bank; package:FILE is one inside an installed package.
    prompt_files: list[str] = field(default_factory=list)
    # wer: word error rate against the transcript. label: whether the answer contains the label (task=ask_sound or
    # another that asks for one). judge: a language model that sees the reference. A metric, package.module:function for
    # one of your own: the answer with the best points against the one with the worst.
    by: str = "wer"
    # Balance lengths: keep equal numbers of pairs in which the longer and the shorter answer is better.
    balance: bool = False
    # Minimum difference between the two answers: in word error rate (0 to 1), or in points of the metric.
    margin: float = 0.15
    # Only for by=wer: the chosen answer is the transcript instead of the best answer.
    choose_transcript: bool = False
    # Answers sampled for each clip.
    samples: int = 4
    # Sampling temperature: higher values give more varied answers.
    temperature: float = 0.9
    # Maximum tokens of an answer.
    max_new_tokens: int = 64
    # Maximum number of clips; null: all.
    limit: int | None = None
    # Maximum answers of a batch.
    batch_size: int = 64
    # An OpenAI-compatible endpoint, up to and without /chat/completions; null: replay the cache.
    judge_url: str | None = None
    # The judge's name at the endpoint.
    judge_model: str = ""
    # Environment variable that holds the key.
    judge_key_env: str = "OPENAI_API_KEY"
    # Seed of the sampling.
    seed: int = 0
    # Packages whose code may run, for rewards of your own (docs/extend.md): plugins=[my_package].
    plugins: list[str] = field(default_factory=list)


@dataclass
class ExportConfig(CheckpointOptions):
    """`qa-train export`: a Hugging Face folder that stock transformers loads."""

    # A run folder (the run.dir of a training), one of its checkpoints, a Hugging Face folder or a hub id.
    checkpoint: str = MISSING
    # The folder to write; it must be new or empty.
    out: str = MISSING
    # Merge adapters into the weights. false: write the adapters alone, in peft's format; the base must be a model
    # folder or a hub id.
    merge: bool = True
    # For the model card: hub id of the base model, where training read it from a local copy. What is not given here and
    # below is taken from the card of the base, if the base is a local folder.
    base_model: str | None = None
    # For the model card: licence, e.g. apache-2.0.
    license: str | None = None
    # For the model card: languages, e.g. [en,zh].
    language: list[str] = field(default_factory=list)
    # For the model card: hub ids of the training data.
    datasets: list[str] = field(default_factory=list)
    # Upload the folder to the Hugging Face hub as owner/name, with the token of `hf auth login`.
    push: str | None = None
    # Whether a new repository is private.
    private: bool = True
    # Only list the files that push= would upload.
    dry_run: bool = False
    # For the model card: the folder of a qa-train eval of this checkpoint, or a quickstart's results.json.
    results: str | None = None


@dataclass
class ConvertConfig:
    """`qa-train convert`: join the ZeRO parts of a checkpoint, on any machine."""

    # A run folder (the run.dir of a training that is not running), or one of its checkpoints.
    checkpoint: str = MISSING
    # Join the optimizer's state too, so that any number of processes can resume; doubles the size of the checkpoint.
    # false: only the weights, if they are in parts.
    resume: bool = True


@dataclass
class PlanConfig:
    """Options of `qa-train plan STAGE`."""

    # GPU model: h200, h100, b200, a100-80, a100-40, l40s, a6000, 5090, 4090, 3090 or l4.
    gpu: str = "h100"
    # Number of GPUs on all machines together.
    gpus: int = 8
    # ZeRO stage 1, 2 or 3; 0: plain training; null: as in the configuration.
    zero: int | None = None
    # To host memory: optimizer (its states) or all (the weights too, with ZeRO-3).
    offload: str | None = None
    # Share of the card's bfloat16 peak that useful and recomputed operations reach, communication included.
    mfu: float | None = None
    # One or two run folders, measured=[runs/a,runs/b]: step time is predicted from theirs, for the same machine and
    # number of processes. Two with different data.tokens_per_batch give a better prediction.
    measured: Any = None
    # Instead of one run, compare the stage's experiments on these GPUs: which fit, and how many steps these hours
    # allow.
    budget_hours: float | None = None
    # Price of one GPU for one hour, in any currency.
    price: float | None = None
    # Average seconds of audio per sample, used if the shards are not available.
    clip_s: float = 10.0
    # Average text tokens per sample, all turns together, used if the shards are not available.
    text_tokens: int = 50
    # Average answer tokens per sample, used if the shards are not available.
    answer_tokens: int = 20
    # Hours of audio of each source, e.g. hours.asr=20000: for epochs, and for mixtures by temperature or epochs.
    hours: dict[str, float] = field(default_factory=dict)
    # Also write the estimate to this file.
    json: str | None = None


@dataclass
class OrderConfig:
    """`qa-train data order`: the order in which a run of this shape trains on the samples."""

    # Steps whose samples are hashed.
    steps: int = 10
    # Number of ranks. The digest must not depend on it.
    world_size: int = 1
    # Loader processes of each rank. The digest must not depend on it.
    num_workers: int = 0
    # pretrain, sft or dpo.
    stage: str = "pretrain"


@dataclass
class CleanConfig:
    """Limits of the filters; null turns a filter off. Shares are between 0 and 1."""

    # Seconds; records with a shorter clip are dropped.
    min_duration_s: float | None = 0.3
    # Seconds; records with a longer clip are dropped.
    max_duration_s: float | None = None
    # Maximum share of silent 20 ms frames.
    max_silence: float | None = 0.95
    # Frames with a lower level count as silent; in dB relative to full scale.
    silence_db: float = -55.0
    # Maximum share of samples at full scale.
    max_clipped: float | None = 0.01
    # Minimum sample rate in Hz; 8000 keeps telephone speech.
    min_sample_rate: int | None = 8000
    # Minimum share of the transcript's letters that belong to the script of its language.
    min_script: float | None = 0.5
    # Minimum letters and digits of the transcript per second of audio.
    min_chars_per_s: float | None = 0.3
    # Maximum of the same; halved for Chinese, Japanese and Korean.
    max_chars_per_s: float | None = 30.0
    # Maximum occurrences of the same audio in all shards; the first ones are kept.
    max_same_audio: int | None = 1
    # Maximum occurrences of the same text in all shards; the first ones are kept.
    max_same_text: int | None = None


def parse_options(kind: type[Any], words: list[str], command: str) -> Any:
    """Read ``key=value`` words into one of the small command dataclasses above.

    Raises:
        ValueError: a word without "=", an unknown key, a wrong type, or a missing required key.
    """
    known = f"options: {', '.join(f'{f.name}=' for f in option_fields(kind))}"
    if stray := [word for word in words if "=" not in word]:
        raise ValueError(f"{command}: {stray[0]!r} is not of the form key=value{_with_keys(kind, words)}; {known}")
    try:
        given = OmegaConf.create()
        for name, _, value in (word.partition("=") for word in words):
            try:
                OmegaConf.update(given, name, read_value(kind, name, value))
            except ValueError as error:
                raise ValueError(f"{command}: {error}") from error
        merged = OmegaConf.merge(OmegaConf.structured(kind), given)
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise ValueError(f"{command}: missing {', '.join(m + '=' for m in missing)}; {known}")
        return OmegaConf.to_object(merged)
    except (ConfigKeyError, ConfigAttributeError) as error:
        hint = did_you_mean(str(error.full_key), keys_of(kind), "{}=", 0.75)
        raise ValueError(f"{command}: there is no option {error.full_key}=; {hint}{known}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{command}: {explain(error)}; {known}") from error


def _with_keys(kind: type[Any], words: list[str]) -> str:
    """Words without keys, with those that a person left out: what is required, else the first option.

    Several files, as a shell makes them of a pattern, are all ``shards``; what exists is never offered as ``out``.
    """
    given = {word.partition("=")[0] for word in words if "=" in word}
    required = [f.name for f in option_fields(kind) if f.default == MISSING] or [option_fields(kind)[0].name]
    free = [name for name in required if name not in given]
    stray = [word for word in words if "=" not in word]
    # A word that begins with a dash is another thing.
    if any(word.startswith("-") for word in stray):
        return ""
    files = stray[free.index("shards") :] if "shards" in free else []
    if len(files) > 1 and all(map(os.path.lexists, files)):
        stray[-len(files) :] = [f"[{','.join(files)}]"]
    meant = dict(zip(free, stray))
    if len(stray) > len(free) or os.path.lexists(meant.get("out", "")):
        return ""
    return ": write " + " ".join(f"{name}={word}" for name, word in meant.items())
