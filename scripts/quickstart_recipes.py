"""What the quickstart does and how much of it: its parts in order, and its recipes in one table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

from qa_train.config import StageConfig, compose_stage, config_dir

STAGES = ("pretrain", "sft", "dpo")
PARTS = (
    "data",
    "untrained model",
    "evaluate before",
    "pretrain",
    "evaluate pretrain",
    "sft",
    "evaluate sft",
    "preference pairs",
    "dpo",
    "evaluate dpo",
    "export",
)
# Sentences, texts of the recordings' words, spoken questions and notes of the full recipe's data.
SIZES = {"num_sentences": 8000, "num_domain": 2400, "num_questions": 2000, "num_notes": 1000}
# Clips of the data that every recipe has: the recordings' texts again, pairs, held-out ones.
FIXED_CLIPS = 5600
# Items of an evaluation set of the full recipe, on average.
ITEMS = 82
PAIR_CLIPS = 500


@dataclass(frozen=True)
class Recipe:
    """How much of everything. What is not given is as in the experiments and in ``scripts.quickstart_data.build``.

    steps: optimizer steps by stage; sizes: of the synthetic data; items: most of an evaluation set;
    pair_clips: recordings that the SFT model answers for preference pairs; save_steps: steps between checkpoints;
    encoded_once: the stages that keep the encoder's output on disk, which takes longer than a few steps without it.
    """

    name: str
    note: str = ""
    steps: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    items: int | None = None
    pair_clips: int = PAIR_CLIPS
    save_steps: int | None = None
    encoded_once: tuple[str, ...] = STAGES

    def overrides(self, stage: str) -> list[str]:
        """The settings of a stage that differ from its experiment's."""
        found = [f"trainer.max_steps={self.steps[stage]}"] if stage in self.steps else []
        found += [f"trainer.save_steps={self.save_steps}"] if self.save_steps else []
        # Time masks belong to what was encoded once.
        return found + ([] if stage in self.encoded_once else ["data.encoder_cache=null", "data.time_mask=0"])

    def share(self, part: str, unit: str) -> float:
        """How much of the full recipe's work in ``part`` this one does; ``unit`` of the probe: what it consists of."""
        if unit == "step":
            return self.steps[part] / settings(part)["max_steps"] if part in self.steps else 1.0
        if part == "data" or unit == "encoder":
            return (FIXED_CLIPS + sum((SIZES | self.sizes).values())) / (FIXED_CLIPS + sum(SIZES.values()))
        if part == "preference pairs":
            return self.pair_clips / PAIR_CLIPS
        return min(1.0, (self.items or ITEMS) / ITEMS) if part.startswith("evaluate") else 1.0


RECIPES = {
    "full": Recipe("full"),
    "short": Recipe(
        "short",
        "The short recipe: about a third of the data, steps and held-out items of the full one. It shows that the "
        "model learns, against the untrained model and with intervals; the targets of the full recipe are not claimed.",
        steps={"pretrain": 190, "sft": 150, "dpo": 50},
        sizes={"num_sentences": 2200, "num_domain": 800, "num_questions": 800, "num_notes": 300},
        items=40,
        pair_clips=150,
    ),
    "smoke": Recipe(
        "smoke",
        "A smoke test: a few steps of everything. It proves that the parts work, not that anything is learned.",
        steps={"pretrain": 4, "sft": 4, "dpo": 4},
        sizes={"num_sentences": 200, "num_domain": 100, "num_questions": 100, "num_notes": 50},
        items=4,
        pair_clips=8,
        save_steps=2,
        encoded_once=("sft",),
    ),
}


def experiment(stage: str, *words: str) -> StageConfig:
    """The configuration of a stage's experiment, with other settings."""
    return compose_stage(stage, [f"experiment=quickstart_{stage}", *words])


def settings(stage: str) -> dict[str, Any]:
    """The trainer section of a stage's experiment."""
    path = config_dir() / "experiment" / f"quickstart_{stage}.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["trainer"])
