"""What the rest of the project asks of an audio encoder.

Its network is a ``PreTrainedModel`` that takes joined mel frames with the lengths of their segments and gives one state
for each audio token that the front end counts; its configuration has ``d_model`` (the width of a state),
``num_mel_bins`` and ``max_source_positions`` (half the mel frames of a segment), as that of Qwen2-Audio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from qa_train.config import EncoderConfig
from qa_train.model.layers.costs import EncoderFlops, Kept, Precision, Trained


class EncoderCosts(Protocol):
    """What an encoder of given sizes costs. Segments are given by their mel frames."""

    @property
    def width(self) -> int:
        """Of one state."""

    @property
    def layers(self) -> int:
        """Their number."""

    @property
    def weights(self) -> int:
        """Weights of the linear layers, all layers."""

    def frames(self, segments: Sequence[int]) -> int:
        """Positions of every layer."""

    def flops(self, segments: Sequence[int], *, trains: bool = False) -> EncoderFlops:
        """Those of a forward, and of a backward pass too if the encoder trains."""

    def kept(self, segments: Sequence[int], precision: Precision, trained: Trained, mode: str) -> Kept:
        """Bytes for the backward pass; ``mode``: gradient checkpointing (none, selective or full)."""


@dataclass
class EncoderSource:
    """An encoder's configuration and weights; weights None: random, completed by ``start``."""

    config: Any
    weights: dict[str, torch.Tensor] | None
    start: Callable[[Any], None]

    def fill(self, encoder: nn.Module) -> None:
        """Write the weights into ``encoder``."""
        if self.weights is None:
            self.start(encoder)
        else:
            encoder.load_state_dict(self.weights)


@dataclass(frozen=True)
class EncoderKind:
    """One encoder.

    Attributes:
        names: model types of the configurations that it reads, its own first, and names of packages with its weights.
        network: the class, made by ``_from_config``.
        costs: the costs of a configuration.
        open: (settings, folder with its configuration, or None twice for a package or random weights, whether weights
            are wanted) -> source; ValueError if it is absent or disagrees with the settings.
    """

    names: tuple[str, ...]
    network: type[Any]
    costs: Callable[[Any], EncoderCosts]
    open: Callable[[EncoderConfig, Path | None, Any, bool], EncoderSource]
