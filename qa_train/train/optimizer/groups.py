"""Optimizer groups: learning rate, weight decay and layer-wise decay for encoder, projector and LLM separately.

Layer k of a part with n layers trains at the part's rate times ``layer_decay ** (n + 1 - k)``: k = 0 is what comes
before the layers (convolutions, embeddings), k = n + 1 what comes after (last norm, head). The formula is that of
BEiT (arXiv 2106.08254, after ELECTRA, arXiv 2003.10555).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qa_train.config import PartConfig, PartsConfig, TrainerConfig
from qa_train.model.layers.parts import BEFORE_THE_LAYERS, PARTS, part_of

_LAYER = re.compile(r"\.layers\.(\d+)\.")

Group = dict[str, Any]


@dataclass
class PartRates:
    """Splits parameter groups so that every part of ``model`` gets the rates of ``parts``.

    learning_rate: the trainer's own, which a part's rate is compared with.
    """

    model: nn.Module
    parts: PartsConfig
    learning_rate: float
    _place: dict[int, tuple[str, int]] = field(init=False)
    _layers: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """ValueError if a part has settings but is frozen."""
        named = list(self.model.named_parameters())
        self._layers = {part: _count(name for name, _ in named if part_of(name) == part) for part in PARTS}
        self._place = {id(p): self._locate(name) for name, p in named if p.requires_grad}
        trained = {part for part, _ in self._place.values()}
        for part in PARTS:
            if self._options(part) != PartConfig() and part not in trained:
                raise ValueError(f"trainer.parts.{part} has no effect: the {part} is frozen; remove it")

    def split(self, groups: Iterable[Group], *, learning_rate: float | None = None) -> list[Group]:
        """``groups`` (of "params", "weight_decay" and perhaps more), each cut by rate and decay.

        learning_rate: the rate of these groups before the parts' own (Muon's), if not ``self.learning_rate``.
        A part's weight decay replaces one that is not zero: biases and norms stay without.
        """
        base = self.learning_rate if learning_rate is None else learning_rate
        found: list[Group] = []
        for group in groups:
            cut: dict[tuple[float, float], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                part, depth = self._place[id(parameter)]
                options = self._options(part)
                decay = group["weight_decay"]
                if decay and options.weight_decay is not None:
                    decay = options.weight_decay
                cut.setdefault((base * self._scale(part, depth), decay), []).append(parameter)
            found += [{**group, "params": ps, "lr": lr, "weight_decay": wd} for (lr, wd), ps in cut.items()]
        return found

    def _scale(self, part: str, depth: int) -> float:
        """The rate of a parameter as a multiple of the trainer's."""
        options = self._options(part)
        rate = self.learning_rate if options.learning_rate is None else options.learning_rate
        decay = 1.0 if options.layer_decay is None else options.layer_decay
        return float(rate / self.learning_rate * decay ** (self._layers[part] + 1 - depth))

    def _options(self, part: str) -> PartConfig:
        found: PartConfig = getattr(self.parts, part)
        return found

    def _locate(self, name: str) -> tuple[str, int]:
        """The part that a parameter belongs to, and its depth there: 0, 1 to n, or n + 1."""
        part = part_of(name)
        if layer := _LAYER.search(name):
            return part, int(layer[1]) + 1
        return part, 0 if any(word in name for word in BEFORE_THE_LAYERS) else self._layers[part] + 1


def learning_rates(first: float, scheduler: Any, options: TrainerConfig) -> dict[str, float]:
    """``learning_rate/PART``: of the part's last layer, where parts differ; else nothing.

    first: the rate of the optimizer's first group in this step.
    """
    bases = getattr(scheduler, "base_lrs", None)
    if options.parts == PartsConfig() or not bases or not bases[0]:
        return {}
    # Every group follows the same schedule.
    factor = first / bases[0]
    rates = {name: getattr(options.parts, name).learning_rate for name in PARTS}
    return {
        f"learning_rate/{name}": factor * (options.learning_rate if rate is None else rate)
        for name, rate in rates.items()
    }


def _count(names: Iterable[str]) -> int:
    """The number of layers among parameter names."""
    return max((int(found[1]) + 1 for name in names if (found := _LAYER.search(name))), default=0)
