"""Assemble a model: from its parts (``build_model``) or from a checkpoint (``load_model``)."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2AudioConfig,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from qa_train.config import ModelConfig
from qa_train.data.audio.front_end import FRONT_END
from qa_train.model.encoders.interface import EncoderSource
from qa_train.model.encoders.kinds import open_encoder
from qa_train.model.language_model import LanguageModelSource, open_llm
from qa_train.model.layers.parts import model_name, module_of
from qa_train.model.lora import apply_adapters, has_adapters, merge_adapters, place_adapters, read_base
from qa_train.model.placement import choose_device
from qa_train.model.precision import compute_dtype
from qa_train.model.stored.loading import (
    DTYPES,
    check_sizes,
    on_meta,
    open_folder,
    read_config,
    read_model,
    read_processor,
    read_tokenizer,
)
from qa_train.model.stored.manifest import MANIFEST, list_folders
from qa_train.model.stored.sharded import made_once, shards_weights, whole_weights
from qa_train.model.stored.weights import ADAPTER, adapter_state, check_finite, freeze, match, weight_files
from qa_train.model.tokenizers import AUDIO, END_OF_TEXT, TURN_END, load_tokenizer, token_id
from qa_train.model.unpadded import UnpaddedQwen2AudioForConditionalGeneration
from qa_train.utils.process import keep_freed_memory

logger = logging.getLogger(__name__)
Model = UnpaddedQwen2AudioForConditionalGeneration

_TYPES = ("qwen2_audio",)
# Adapters on adapters on adapters: more is a loop.
_MOST_ADAPTERS = 8


def build_model(cfg: ModelConfig, *, seed: int = 0, meta: bool = False) -> tuple[Model, Qwen2AudioProcessor]:
    """The model that ``cfg`` describes, with ``cfg.freeze`` applied, and its processor.

    Random weights depend on ``seed`` alone. ``meta=True`` gives shapes without memory and reads no weights.
    ValueError if a source is absent, or a field is unknown or contradicts its source.
    """
    dtype = _dtype(cfg.dtype)

    def load() -> tuple[Model, Qwen2AudioProcessor]:
        assert cfg.checkpoint is not None
        model, processor = load_model(
            cfg.checkpoint, dtype=dtype, verify=cfg.verify, allow_missing=cfg.allow_missing, seed=seed
        )
        freeze(model, cfg.freeze)
        return model, processor

    if cfg.checkpoint is not None:
        if meta:
            return _on_meta(cfg, dtype)
        # Adapters are merged into whole weights.
        if not (is_deepspeed_zero3_enabled() and has_adapters(find_checkpoint(cfg.checkpoint))):
            return load()

    def make() -> tuple[Model, Qwen2AudioProcessor]:
        return load() if cfg.checkpoint is not None else _assemble(cfg, dtype, seed=seed, meta=meta)

    if not shards_weights() or meta:
        with whole_weights():
            return make()
    with made_once(make) as folder:
        model, processor = load_model(folder, dtype=dtype)
    freeze(model, cfg.freeze)
    return model, processor


def _assemble(cfg: ModelConfig, dtype: torch.dtype, *, seed: int, meta: bool) -> tuple[Model, Qwen2AudioProcessor]:
    """The model made of its parts."""
    encoder = open_encoder(cfg.encoder, weights=not meta)
    llm = open_llm(cfg.llm, weights=not meta)
    tokenizer = _tokenizer(cfg, llm)
    config = _config(encoder, llm, tokenizer)
    check_sizes(config, "the configuration of the model")
    with torch.random.fork_rng(), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(seed)
        model = Model._from_config(config, dtype=dtype)
    if not meta:
        encoder.fill(module_of(model, "encoder"))
        _fill_llm(model, llm, tokenizer)
    model.generation_config = _generation_config(tokenizer)
    freeze(model, cfg.freeze)
    return model, make_processor(tokenizer, config)


def load_model(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    verify: bool = True,
    allow_missing: Sequence[str] = (),
    seed: int = 0,
) -> tuple[Model, Qwen2AudioProcessor]:
    """A trained model and its processor, on ``device``, in ``dtype`` (default: as stored), in evaluation mode.

    Adapters are merged into their base.

    Args:
        source: a Hugging Face folder, a hub id, a checkpoint folder of a run, or the run's folder (its newest
            checkpoint).
        device: where the model goes.
        dtype: of its weights.
        verify: compare the files with the checksums of the run's manifest, if there is one.
        allow_missing: patterns (as of file names) of weights that may be missing; they are initialized randomly from
        ``seed``. seed: see there.

    Raises:
        ValueError: there is no complete checkpoint, or it contains code, was changed since it was saved, or its weights
        do not fit its configuration or are not finite.
    """
    place = find_checkpoint(source)
    model: Model
    if has_adapters(place):
        adapted, processor = load_adapted(place, verify=verify)
        merged: Model = merge_adapters(adapted)
        freeze(merged, [])
        merged.to(device=device, dtype=dtype)  # type: ignore[call-arg]
        return merged.eval(), processor
    folder = open_folder(place, verify=verify)
    config = read_config(folder, _TYPES)
    match(_skeleton(folder, config), weight_files(folder), model_name, str(folder), allow_missing=allow_missing)
    with torch.random.fork_rng(enabled=bool(allow_missing)):
        if allow_missing:
            torch.manual_seed(seed)
        model = read_model(Model, folder, config, dtype)
    check_finite(model.state_dict().items(), str(folder))
    freeze(model, [])
    processor = _load_processor(folder, model.config)
    if model.generation_config.pad_token_id is None:
        model.generation_config = _generation_config(processor.tokenizer)
    model.to(device)  # type: ignore[arg-type]
    return model.eval(), processor


def load_answering_model(
    source: str | Path,
    *,
    device: str = "auto",
    verify: bool = True,
    allow_missing: Sequence[str] = (),
) -> tuple[Model, Qwen2AudioProcessor]:
    """As `load_model`, on the device that `choose_device` gives, in the arithmetic that this device computes fast.

    Weights stored in half precision become float32 on a CPU without bfloat16 instructions, at twice the memory.
    """
    device = choose_device(device)
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    model, processor = load_model(source, device=device, verify=verify, allow_missing=allow_missing)
    dtype = compute_dtype(model.dtype, device)
    if dtype != model.dtype:
        logger.warning(
            "%s is stored in %s, which is slow on this device: loaded in %s, with twice the memory",
            source,
            model.dtype,
            dtype,
        )
        model.to(dtype=dtype)  # type: ignore[call-arg]
    return model, processor


def load_adapted(folder: str | Path, *, verify: bool = True) -> tuple[Any, Qwen2AudioProcessor]:
    """The adapters of a checkpoint on their base, not merged, in evaluation mode on the CPU; and the processor.

    ValueError if the base is missing, or is not the one that the adapters were trained on, or adapters are missing.
    """
    folder = open_folder(folder, verify=verify)
    cfg, seed, digest = _base_of(folder)
    base, processor = build_model(replace(cfg, verify=verify), seed=seed)
    return apply_adapters(base, folder, digest).eval(), processor


def check_checkpoint(source: str | Path, *, verify: bool = True) -> int:
    """Check everything that `load_model` would, except the values of the weights; returns the number of tensors.
    ValueError as there.
    """
    folder = open_folder(find_checkpoint(source), verify=verify)
    if not has_adapters(folder):
        config = read_config(folder, _TYPES)
        found = match(_skeleton(folder, config), weight_files(folder), model_name, str(folder))
        _load_processor(folder, config)
        return len(found)
    cfg, _, _ = _base_of(folder)
    config = load_model_config(replace(cfg, verify=verify))
    model = on_meta(lambda: place_adapters(Model(config), folder), str(folder))
    return len(match(adapter_state(model, folder), [folder / ADAPTER], str, str(folder)))


def load_model_tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that ``build_model(cfg)`` would return, without building the model."""
    if cfg.checkpoint is not None:
        folder = open_folder(find_checkpoint(cfg.checkpoint), weights=False, verify=cfg.verify)
        return read_tokenizer(folder)
    return _tokenizer(cfg, open_llm(cfg.llm, weights=False))


def load_model_config(cfg: ModelConfig) -> Qwen2AudioConfig:
    """The configuration of the model that ``build_model(cfg)`` would return; no weights are read."""
    if cfg.checkpoint is not None:
        folder = open_folder(find_checkpoint(cfg.checkpoint), weights=False, verify=cfg.verify)
        if has_adapters(folder):
            return load_model_config(replace(_base_of(folder)[0], verify=cfg.verify))
        return read_config(folder, _TYPES)
    llm = open_llm(cfg.llm, weights=False)
    config = _config(open_encoder(cfg.encoder, weights=False), llm, _tokenizer(cfg, llm))
    check_sizes(config, "the configuration of the model")
    return config


def _base_of(folder: Path) -> tuple[ModelConfig, int, str | None]:
    """`read_base`, once it is known that the adapters do not lead back to themselves."""
    seen: list[Path] = []
    here: str | Path = folder
    while has_adapters(here):
        if Path(here).resolve() in seen or len(seen) == _MOST_ADAPTERS:
            raise ValueError(
                f"{folder}: the base of these adapters is again these adapters, or more than {_MOST_ADAPTERS} lie on "
                "one another: correct base.json"
            )
        seen.append(Path(here).resolve())
        place = read_base(here)[0].checkpoint
        if place is None:
            break
        here = find_checkpoint(place)
    return read_base(folder)


def _skeleton(folder: Path, config: Qwen2AudioConfig) -> dict[str, torch.Tensor]:
    """The names and shapes of the weights that ``config`` asks for."""
    return on_meta(lambda: Model(config), f"{folder}/config.json").state_dict()


def find_checkpoint(source: str | Path) -> str:
    """The folder of the weights that ``source`` means, or ``source`` itself if it is a hub id."""
    path = Path(source)
    if not path.exists():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not str(source).startswith("."):
            return str(source)
        raise ValueError(
            f"{source} does not exist: give a folder with config.json, a run folder or a hub id (owner/name)"
        )
    if path.name != "checkpoints" and (path / "checkpoints").is_dir():
        path = path / "checkpoints"
    if path.name == "checkpoints":
        saved = list_folders(path)
        # A run writes the manifest last: without it the folder is a save that was interrupted.
        whole = [p for p in saved if (_has_weights(p) or has_adapters(p)) and (p / MANIFEST).is_file()]
        if not whole:
            hint = next((f": {_in_parts(p)}" for p in saved if (p / "latest").is_file()), "")
            raise ValueError(f"{path} has no finished checkpoint (checkpoint-N with weights and {MANIFEST}){hint}")
        path = whole[0]
    if not _has_weights(path) and not has_adapters(path):
        hint = f": {_in_parts(path)}" if (path / "latest").is_file() else ""
        raise ValueError(
            f"{path} is not a model folder: config.json or model.safetensors (or its index) is missing{hint}"
        )
    return str(path)


def _in_parts(folder: Path) -> str:
    """What to do with a checkpoint of DeepSpeed that has no whole weights (it names its parts in ``latest``)."""
    return f"{folder.name} has its weights in ZeRO's parts alone: qa-train convert checkpoint={folder} joins them"


def _has_weights(folder: Path) -> bool:
    weights = ("model.safetensors", "model.safetensors.index.json")
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in weights)


def make_processor(tokenizer: PreTrainedTokenizerBase, config: Any) -> Qwen2AudioProcessor:
    """The stock processor: Whisper's log-mel in the encoder's size, the tokenizer, the released chat template."""
    audio = config.audio_config
    extractor = WhisperFeatureExtractor(
        feature_size=audio.num_mel_bins, chunk_length=2 * audio.max_source_positions // FRONT_END.frames_per_second
    )
    processor = Qwen2AudioProcessor(extractor, tokenizer)
    # An LLM's own template has no audio and another system prompt.
    tokenizer.chat_template = processor.chat_template
    return processor


def _load_processor(folder: Path, config: Any) -> Qwen2AudioProcessor:
    """The stored processor, checked against the model."""
    processor = _read_processor(folder, config)
    found, expected = token_id(processor.tokenizer, AUDIO), config.audio_token_id
    if found != expected:
        raise ValueError(
            f"{folder}: {AUDIO} is token {found} of the tokenizer and {expected} of the model, so audio would be "
            "misplaced: use the tokenizer that the weights were trained with"
        )
    bins, expected = processor.feature_extractor.feature_size, config.audio_config.num_mel_bins
    if bins != expected:
        raise ValueError(
            f"{folder}: the feature extractor makes {bins} mel bins and the encoder takes {expected}: "
            "put the processor's files of this model next to the weights"
        )
    return processor


def _read_processor(folder: Path, config: Any) -> Qwen2AudioProcessor:
    """The stored processor, or one around the stored tokenizer (a trainer may save nothing more)."""
    if any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        return read_processor(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json: save the tokenizer next to the weights")
    return make_processor(read_tokenizer(folder), config)


def _tokenizer(cfg: ModelConfig, llm: LanguageModelSource) -> PreTrainedTokenizerBase:
    if cfg.tokenizer is not None:
        if llm.tokenizer is not None and cfg.tokenizer.startswith("builtin:"):
            raise ValueError(
                f"model.tokenizer is {cfg.tokenizer}, but {cfg.llm.source} was trained with its own: "
                "set model.tokenizer=null"
            )
        return load_tokenizer(cfg.tokenizer)
    if llm.tokenizer is None:
        raise ValueError("model.tokenizer is null and the LLM starts from random weights: set it, e.g. builtin:nano")
    return llm.tokenizer


def _config(encoder: EncoderSource, llm: LanguageModelSource, tokenizer: PreTrainedTokenizerBase) -> Qwen2AudioConfig:
    text = llm.config
    if llm.tokenizer is None and text.vocab_size < len(tokenizer):
        raise ValueError(
            f"model.llm.config.vocab_size is {text.vocab_size}, but the tokenizer has {len(tokenizer)} tokens: raise it"
        )
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    text.bos_token_id = token_id(tokenizer, END_OF_TEXT)
    text.eos_token_id = token_id(tokenizer, TURN_END)
    # A padding id would switch off the gradient of <|endoftext|>, which ends the base format's answers.
    text.pad_token_id = None
    # The class has an untied head; a file with another setting loses it in some releases of transformers.
    text.tie_word_embeddings = False
    config = Qwen2AudioConfig(
        audio_config=encoder.config, text_config=text, audio_token_index=token_id(tokenizer, AUDIO)
    )
    config.tie_word_embeddings = False
    return config


def _fill_llm(model: Model, llm: LanguageModelSource, tokenizer: PreTrainedTokenizerBase) -> None:
    """Load the LLM's weights; tokens that are new to it start as the mean of the ones it knows."""
    if llm.body is None or llm.head is None:
        return
    new = [token_id(tokenizer, token) for token in llm.new_tokens]
    embedding = _extended(llm.body["embed_tokens.weight"], new, model.lm_head.out_features)
    module_of(model, "llm").load_state_dict({**llm.body, "embed_tokens.weight": embedding})
    with torch.no_grad():
        model.lm_head.weight.copy_(_extended(llm.head, new, len(embedding)))


def _extended(rows: torch.Tensor, new: list[int], size: int) -> torch.Tensor:
    """[V, D] -> [size, D]: the rows, with their mean for ``new`` and added ones."""
    mean = rows[: min(new, default=len(rows))].mean(0, dtype=torch.float32).to(rows.dtype)
    extended = mean.repeat(size, 1)
    extended[: len(rows)] = rows
    extended[new] = mean
    return extended


def _generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    ends = [token_id(tokenizer, token) for token in (TURN_END, END_OF_TEXT)]
    return GenerationConfig(eos_token_id=ends, pad_token_id=ends[1], do_sample=False)


def _on_meta(cfg: ModelConfig, dtype: torch.dtype) -> tuple[Model, Qwen2AudioProcessor]:
    assert cfg.checkpoint is not None
    folder = open_folder(find_checkpoint(cfg.checkpoint), weights=False, verify=cfg.verify)
    config = load_model_config(cfg)
    model = on_meta(lambda: Model._from_config(config, dtype=dtype), str(folder))
    return model, _load_processor(folder, config)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"model.dtype is {name!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]
