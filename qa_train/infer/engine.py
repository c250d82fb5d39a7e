"""One thread that answers requests: those that wait together are answered together.

Requests for the same model with the same way of drawing tokens share a batch, up to ``batch_size`` rows and
``token_budget`` tokens (rows x longest prompt and answer). The batch that runs is finished before the next begins.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from qa_train.infer.generate import Answer, Decoding, Generator
from qa_train.infer.row_stream import Row

log = logging.getLogger(__name__)


def one_line(error: BaseException) -> str:
    """An error for the log."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


@dataclass(eq=False)
class Job:
    """One request on its way; ``on_end`` gets its answer or what went wrong, in the engine's thread.

    A job whose row is gone before its turn comes is dropped without a word.
    """

    model: str
    row: Row
    decoding: Decoding
    prompt_tokens: int
    on_end: Callable[[Answer | BaseException], None]
    # The seed does not matter to the client: the job may share the batch, and the seed, of others like it.
    any_seed: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def tokens(self) -> int:
        """Most tokens that the row can have."""
        return self.prompt_tokens + self.row.max_new_tokens

    @property
    def group(self) -> tuple[object, ...]:
        """Jobs of one group may share a batch."""
        draw = self.decoding
        if draw.temperature > 0 and not self.any_seed:
            # Draws of a seed depend on the other rows of the batch: such a job is answered alone.
            return (id(self),)
        return (self.model, draw.temperature, draw.top_p)


class Engine:
    """Answers jobs with the generators by name, in a separate thread."""

    def __init__(
        self,
        generators: dict[str, Generator],
        *,
        batch_size: int = 8,
        token_budget: int = 16384,
        gather_s: float = 0.01,
    ) -> None:
        """gather_s: how long the first of a batch waits for others, if it does not have to wait anyway."""
        self.generators = generators
        self.batch_size, self.token_budget, self.gather_s = batch_size, token_budget, gather_s
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.batches = 0
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; returns at once."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the batch that runs; waiting jobs fail."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify()
        for job in waiting:
            job.on_end(RuntimeError("the server is stopping"))
        self._thread.join(timeout=60)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                first = batch[0]
                answers = self.generators[first.model].stream_rows([job.row for job in batch], first.decoding)
            except Exception as error:
                log.error("a batch of %d requests failed: %s", len(batch), one_line(error))
                log.debug("where it failed", exc_info=True)
                for job in batch:
                    job.on_end(error)
                continue
            for job, answer in zip(batch, answers, strict=True):
                job.on_end(answer)

    def _next(self) -> list[Job] | None:
        """The next batch: the oldest job and others that fit; None when closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return None
                until = self._waiting[0].since + self.gather_s
                self._changed.wait_for(
                    lambda: self._closed or len(self._waiting) >= self.batch_size,
                    timeout=max(0.0, until - time.monotonic()),
                )
                if self._closed:
                    return None
                # Nobody waits for those that were stopped while they waited.
                self._waiting = deque(job for job in self._waiting if not job.row.gone())
                if self._waiting:
                    break
            first = self._waiting[0]
            batch, longest = [first], first.tokens
            for job in list(self._waiting)[1:]:
                widest = max(longest, job.tokens)
                fits = len(batch) < self.batch_size and (len(batch) + 1) * widest <= self.token_budget
                if fits and job.group == first.group:
                    batch.append(job)
                    longest = widest
            for job in batch:
                self._waiting.remove(job)
            self.batches += 1
            return batch
