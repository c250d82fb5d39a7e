"""The model: assembled, loaded, made unpadded, hashed and frozen here."""

from __future__ import annotations

import torch

from qa_train.model.build import (
    build_model,
    find_checkpoint,
    load_answering_model,
    load_model,
    load_model_config,
    load_model_tokenizer,
)
from qa_train.model.stored.weights import encoder_hash, freeze, load_weights, weights_digest
from qa_train.model.tokenizers import load_tokenizer, train_nano_tokenizer
from qa_train.model.unpadded import UnpaddedQwen2AudioForConditionalGeneration

__all__ = [
    "UnpaddedQwen2AudioForConditionalGeneration",
    "build_model",
    "encoder_hash",
    "encoder_states",
    "find_checkpoint",
    "freeze",
    "load_answering_model",
    "load_model",
    "load_model_config",
    "load_model_tokenizer",
    "load_tokenizer",
    "load_weights",
    "train_nano_tokenizer",
    "weights_digest",
]


@torch.no_grad()
def encoder_states(
    model: UnpaddedQwen2AudioForConditionalGeneration, input_features: torch.Tensor, feature_lengths: torch.Tensor
) -> torch.Tensor:
    """What the encoder makes of joined segments: mel [M, P] and lengths [S] -> [audio tokens, E], before the projector.

    These are the ``audio_states`` that the forward takes instead of mels when the encoder is frozen.
    """
    return model.model.audio_tower(input_features, feature_lengths).last_hidden_state
