"""Rows of a batch that is being answered: each emits its text as it appears, and ends by itself. Rows of one batch may
have separate limits, and one may be given up (its reader has gone) while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from qa_train.data.text.sample import Sample


class Row:
    """One answer in the making; ``write`` gets its text in pieces whose sum is the whole text, stripped.

    ``max_new_tokens`` counts the end token. ``gone`` is asked at every token: True ends the row at once.
    """

    def __init__(
        self,
        sample: Sample,
        waves: tuple[Any, ...],
        write: Callable[[str], None],
        max_new_tokens: int,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.sample, self.waves = sample, waves
        self.write = write
        self.max_new_tokens = max_new_tokens
        self.gone = gone
        self.ids: list[int] = []
        self.ended = False
        # The limit came before an end token.
        self.truncated = False
        self._sent = ""

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
        text = tokenizer.decode(self.ids, skip_special_tokens=True).lstrip()
        # Until the end, a broken character may be completed and spaces may turn out to be the last ones.
        sure = text.rstrip() if self.ended else text.rstrip("\ufffd").rstrip()
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
