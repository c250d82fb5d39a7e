"""The stages of the recipe, one entry each: all that the rest of the project asks of a stage before it trains.

A further stage is an entry here, a file in `qa_train/train/` with its function, and `configs/NAME.yaml`. The command
line, completion, checks, planner, evaluation during training, report and dashboard follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class StageKind:
    """One stage.

    Attributes:
        name: the command, and the name of its file in ``configs/``.
        about: what it does, as ``qa-train --help`` lists it.
        run: ``module:function`` that trains; it takes the configuration and ``callbacks`` and returns an exit code.
        template: default of held-out questions: "base" or "chat".
        pairs: whether a sample is a preference pair, which has two documents, or one conversation.
        section: the section of the configuration that this stage alone reads.
        check: ``module:function`` that judges that section; it takes the configuration and raises ValueError.
        reference: the key that is "live" when a second model also runs forward on every batch.
        against_drift: what helps when a model forgets in this stage, for the message that ends such a run.
    """

    name: str
    about: str
    run: str
    template: str = "chat"
    pairs: bool = False
    section: str | None = None
    check: str | None = None
    reference: str | None = None
    against_drift: str = "or a mixture that includes the lost task"

    @property
    def rows(self) -> int:
        """Documents of a sample."""
        return 2 if self.pairs else 1

    def reference_forwards(self, cfg: Any) -> int:
        """Forward passes of a reference model for every micro-batch of this configuration."""
        return int(self.reference is not None and self.reference_of(cfg) == {self.reference: "live"})

    def reference_of(self, cfg: Any) -> dict[str, Any]:
        """The key of ``reference`` with its value; empty for a stage without one."""
        if self.reference is None:
            return {}
        section, _, name = self.reference.rpartition(".")
        return {self.reference: getattr(getattr(cfg, section), name)}

    def load(self) -> Callable[..., int]:
        """The function that trains."""
        function: Callable[..., int] = _named(self.run)
        return function

    def check_section(self, cfg: Any) -> None:
        """ValueError for a value of the stage's own section that cannot be."""
        if self.check is not None:
            _named(self.check)(cfg)


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


STAGES = {
    kind.name: kind
    for kind in (
        StageKind(
            "pretrain",
            "multi-task pretraining with natural-language prompts",
            "qa_train.train.pretrain:pretrain",
            template="base",
        ),
        StageKind("sft", "instruction tuning: voice chat and audio analysis together", "qa_train.train.sft:sft"),
        StageKind(
            "dpo",
            "preference optimization on pairs of a better and a worse answer",
            "qa_train.train.dpo:dpo",
            pairs=True,
            section="dpo",
            check="qa_train.config.checks.preference_checks:check_preferences",
            reference="dpo.reference",
            against_drift="a larger dpo.beta, or an SFT term (dpo.loss_type=[sigmoid,sft])",
        ),
    )
}
