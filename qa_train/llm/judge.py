"""A judge: a language model that rates answers. Temperature 0, cached on disk, replayed offline, priced before.

The cache is a JSONL file: one line per answered prompt under the hash of everything that decides the
answer (model, messages, temperature, limit). Calls that failed are not kept, so that the same command
again asks only for what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qa_train.llm.client import CallFailed, Endpoint, ItemRefused
from qa_train.utils.atomic import append_json_lines, read_appended

log = logging.getLogger(__name__)

# Characters of a token, for the estimate only: about 4 in English, near 1 in Chinese.
ASCII_PER_TOKEN = 4.0
OTHER_PER_TOKEN = 1.0
# So many requests refused before any was answered: the judge or its settings are wrong, not the items.
REFUSED_AT_FIRST = 8


@dataclass(frozen=True)
class Verdict:
    """The judge's reply to one prompt."""

    text: str = ""
    refused: bool = False
    # Why there is no answer after all retries.
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    # Cut at the limit right after a digit: the last number may be the head of another.
    cut: bool = False


@dataclass(frozen=True)
class Estimate:
    """What asking would cost."""

    prompts: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    # None: no price is known.
    cost: float | None

    def line(self) -> str:
        """For the user, before anything is asked."""
        price = "of unknown price (judge.price_in=, judge.price_out=, per million tokens)"
        if self.cost is not None:
            price = f"about {self.cost:.2f} at the given prices"
        return (
            f"judge: {self.prompts} prompts, {self.cached} of them cached; about {self.prompt_tokens:,} tokens in "
            f"and at most {self.completion_tokens:,} out, {price}"
        )


@dataclass
class Judge:
    """Rates prompts through an endpoint, or from the cache alone (``endpoint`` None: offline).

    Raises:
        ValueError: an endpoint of another model, or ``max_cost`` without a price to reckon with.
    """

    model: str
    cache: Path
    endpoint: Endpoint | None = None
    max_tokens: int = 16
    workers: int = 8
    # Per million tokens, in any currency.
    price_in: float = 0.0
    price_out: float = 0.0
    # Refuse to start above it.
    max_cost: float | None = None

    def __post_init__(self) -> None:
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise ValueError(
                f"judge.max_cost={self.max_cost:g} needs prices: give judge.price_in= and judge.price_out= "
                "(per million tokens)"
            )
        if self.endpoint is not None and self.endpoint.model != self.model:
            raise ValueError(
                f"the judge is {self.model!r} and its endpoint serves {self.endpoint.model!r}: they must be the same"
            )
        self._known = self._read()
        self._refused = 0
        self._lock = threading.Lock()

    def _read(self) -> dict[str, Verdict]:
        if not self.cache.is_file():
            return {}
        known = {}
        for found in read_appended(self.cache):
            row = found or {}
            try:
                key = row.pop("key")
                known[key] = Verdict(**row)
            except (KeyError, TypeError):
                # Its prompt is asked again.
                log.warning("%s: a damaged line is skipped", self.cache)
        return known

    def _key(self, prompt: str) -> str:
        parts = [self.model, prompt, 0.0, self.max_tokens]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()

    def estimate(self, prompts: Sequence[str]) -> Estimate:
        """The size and price of what is not cached yet."""
        missing = {self._key(p): p for p in prompts if self._key(p) not in self._known}
        tokens = sum(_tokens(prompt) for prompt in missing.values())
        out = len(missing) * self.max_tokens
        cost = (tokens * self.price_in + out * self.price_out) / 1e6 if self.price_in or self.price_out else None
        return Estimate(len(prompts), sum(self._key(p) in self._known for p in prompts), tokens, out, cost)

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError when asking all of these would cost more than ``max_cost``."""
        estimate = self.estimate(prompts)
        if self.max_cost is not None and (estimate.cost or 0.0) > self.max_cost:
            raise ValueError(f"{estimate.line()}: more than judge.max_cost={self.max_cost}")

    def ask(self, prompts: Sequence[str]) -> list[Verdict]:
        """The verdict on every prompt, in order; failed calls have an ``error``.

        Raises:
            ValueError: the estimate is above ``max_cost``; offline with prompts that are not cached; or all is refused.
        """
        missing = {self._key(p): p for p in prompts if self._key(p) not in self._known}
        if missing and self.endpoint is None:
            raise ValueError(
                f"the judge is offline and {len(missing)} of {len(prompts)} prompts are not in {self.cache}; "
                "give judge.url, or the cache of the run to replay"
            )
        self.check(prompts)
        failed: dict[str, Verdict] = {}
        if missing:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            _end_last_line(self.cache)
            with ThreadPoolExecutor(self.workers) as pool:
                for key, verdict in zip(missing, pool.map(self._call, missing.values()), strict=True):
                    if verdict.error is not None:
                        failed[key] = verdict
        return [self._known.get(self._key(p)) or failed[self._key(p)] for p in prompts]

    def _call(self, prompt: str) -> Verdict:
        assert self.endpoint is not None
        try:
            done = self.endpoint.complete(
                [{"role": "user", "content": prompt}], temperature=0.0, max_tokens=self.max_tokens
            )
        except CallFailed as error:
            return Verdict(error=str(error))
        except ItemRefused as error:
            with self._lock:
                self._refused += 1
                if not self._known and self._refused >= REFUSED_AT_FIRST:
                    raise  # It is not about the item.
            return Verdict(error=str(error))
        cut = done.finish == "length" and done.text[-1:].isdigit()
        verdict = Verdict(done.text, done.refused, None, done.prompt_tokens, done.completion_tokens, cut)
        key = self._key(prompt)
        with self._lock:
            self._known[key] = verdict
            append_json_lines(self.cache, [{"key": key, **asdict(verdict)}])
        return verdict

    def facts(self, template: str) -> dict[str, Any]:
        """The description of the judge in a result."""
        return {
            "judge": self.model,
            "judge_temperature": 0.0,
            "judge_max_tokens": self.max_tokens,
            "judge_prompt_sha256": hashlib.sha256(template.encode()).hexdigest(),
        }


def _tokens(text: str) -> int:
    plain = sum(character.isascii() for character in text)
    return round(plain / ASCII_PER_TOKEN + (len(text) - plain) / OTHER_PER_TOKEN)


def _end_last_line(path: Path) -> None:
    """A line cut off by a kill must not swallow the next one."""
    if path.is_file() and (raw := path.read_bytes()) and not raw.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
