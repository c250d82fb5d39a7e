"""The input of a score, and the score itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """One answer with its references."""

    text: str
    # Accepted answers; several only for labels ("contains", "accuracy" and "map").
    references: tuple[str, ...]
    language: str | None = None
    # All labels of the same question, in the order of the options.
    choices: tuple[str, ...] = ()
    truncated: bool = False
    # Why there is no answer (unreadable clip, ...); the item is then scored as an empty answer.
    error: str | None = None


class NoReferenceWords(ValueError):
    """Items whose references hold no word, as those of recordings without speech: an error rate has no denominator."""

    def __init__(self, metric: str, items: int, inserted: Sequence[int]) -> None:
        said = sum(count > 0 for count in inserted)
        super().__init__(
            f"{metric}: no reference has any word left after normalisation ({items} items); {said} answers say "
            f"something, {sum(inserted)} words or characters in all. Where speech was recorded, check the gt field of "
            "the data"
        )


@dataclass(frozen=True)
class Score:
    """A score over ``n`` items with a 95 % confidence interval and the counts of odd answers."""

    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    empty: int = 0
    truncated: int = 0
    failed: int = 0
    # Answers in which no label or option of the question was found. They count as wrong.
    unparsed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, numbers rounded to two decimals."""
        return {k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(self).items()}


def answer_of(prediction: Prediction) -> str:
    """The answer to score: empty if it is missing."""
    return "" if prediction.error is not None else prediction.text
