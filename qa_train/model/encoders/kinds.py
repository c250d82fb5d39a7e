"""The table of encoders. A further one is a file with an `EncoderKind`, and its name in ``_KINDS``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qa_train.config import EncoderConfig
from qa_train.model.encoders.interface import EncoderKind, EncoderSource
from qa_train.model.encoders.whisper import WHISPER
from qa_train.model.stored.loading import open_folder, read_config

_KINDS = (WHISPER,)
ENCODERS: dict[str, EncoderKind] = {name: kind for kind in _KINDS for name in kind.names}


def kind_of(config: Any) -> EncoderKind:
    """The encoder of a configuration (``audio_config`` of a model); ValueError if it is none of the table."""
    return _kind(config.model_type)


def open_encoder(cfg: EncoderConfig, *, weights: bool = True) -> EncoderSource:
    """Read the encoder that ``cfg`` names; ``weights=False`` reads its shape only.

    Raises:
        ValueError: no such encoder, or its source is absent or disagrees with ``cfg.config``.
    """
    given = dict(cfg.config)
    name, folder, found = given.pop("model_type", _KINDS[0].names[0]), None, None
    if cfg.source is not None and cfg.source.startswith("package:"):
        name = cfg.source
    elif cfg.source is not None:
        folder = open_folder(cfg.source, key="model.encoder.source", weights=weights)
        found = read_config(folder)
        found = getattr(found, "audio_config", found)
        name = found.model_type
    return _kind(name).open(replace(cfg, config=given), folder, found, weights)


def _kind(name: str) -> EncoderKind:
    if name not in ENCODERS:
        raise ValueError(
            f"model.encoder: no encoder of type {name}; there are {', '.join(ENCODERS)}: another one has other layers "
            "and another rate of audio tokens, and cannot be joined"
        )
    return ENCODERS[name]
