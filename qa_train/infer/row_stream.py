"""Rows of a batch that is being answered: each emits its text as it appears, and ends by itself. Rows of one batch may
have separate limits, and one may be given up (its reader has gone) while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from qa_train.data.text.sample import Sample


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the texts ``stop`` in it; all of it if it holds none."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]


def without_half_stop(text: str, stop: Sequence[str]) -> str:
    """The text without an end that may become one of the texts ``stop``."""
    half = (n for each in stop for n in range(min(len(each) - 1, len(text)), 0, -1) if text.endswith(each[:n]))
    return text[: len(text) - max(half, default=0)]


@dataclass(eq=False)
class Row:
    """One answer in the making; ``write`` gets its text in pieces whose sum is the whole text, stripped (on the left
    only if the answer begins here: the space before the first word continues a begun one).

    ``max_new_tokens`` counts the end token. ``gone`` is asked at every token: True ends the row at once. The first of
    the texts ``stop`` ends the answer; nothing of it is written.
    """

    sample: Sample
    waves: tuple[Any, ...]
    write: Callable[[str], None]
    max_new_tokens: int
    gone: Callable[[], bool] = lambda: False
    stop: Sequence[str] = ()
    ids: list[int] = field(default_factory=list, init=False)
    ended: bool = field(default=False, init=False)
    # The limit came before an end token.
    truncated: bool = field(default=False, init=False)
    _sent: str = field(default="", init=False)

    def take(self, token: int, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        """Add one token of the answer and hand on what is now certain of its text."""
        if self.ended:
            return
        if self.gone():
            self.ended = self.truncated = True
            return
        if token in stop_ids:
            self.ended = True
        else:
            self.ids.append(token)
            self.truncated = self.ended = len(self.ids) >= self.max_new_tokens
        text = tokenizer.decode(self.ids, skip_special_tokens=True)
        begun = bool(self.sample.messages) and self.sample.messages[-1].unfinished
        text = text if begun else text.lstrip()
        kept = before_stop(text, self.stop)
        if len(kept) < len(text):
            self.ended, self.truncated = True, False
        # Until the end, a broken character may be completed, half a stop too, and spaces may turn out to be the last.
        sure = kept.rstrip() if self.ended else without_half_stop(kept.rstrip("\ufffd"), self.stop).rstrip()
        if sure.startswith(self._sent) and len(sure) > len(self._sent):
            self.write(sure[len(self._sent) :])
            self._sent = sure


class RowsStreamer(BaseStreamer):
    """transformers' streamer for several rows at once: prompts [R, L] first, then the next tokens [R]."""

    def __init__(self, rows: Sequence[Row], tokenizer: Any, stop_ids: Sequence[int]) -> None:
        self.rows, self.tokenizer, self.stop_ids = rows, tokenizer, stop_ids
        self._prompts_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Take the next token of every row (the first call brings the prompts)."""
        if not self._prompts_seen:
            self._prompts_seen = True
            return
        for row, token in zip(self.rows, value.tolist(), strict=True):
            row.take(token, self.tokenizer, self.stop_ids)

    def end(self) -> None:
        """Nothing is held back at the end: every row has ended by its last token."""


class RowsEnded(StoppingCriteria):
    """Ends the rows that have reached their own limit or lost their reader."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """bool [R]: which rows are done."""
        return torch.tensor([row.ended for row in self.rows], device=input_ids.device)


class Numbers(LogitsProcessor):
    """Ends an answer whose scores [R, V] are no numbers: the likeliest of them would be an empty text."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """The unchanged scores; ValueError when one is NaN."""
        if torch.isnan(scores).any():
            raise ValueError(
                "the model's scores are not numbers (NaN): its weights are damaged, or overflow in their precision; "
                "use another checkpoint, or float32"
            )
        return scores
