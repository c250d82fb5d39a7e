"""A small client of OpenAI-compatible chat endpoints: one call, tried again with growing waits.

Retried: no connection, time-outs, 408, 409, 429 and 5xx, and answers that are not the JSON expected. Not retried:
other 4xx, which mean that the key or the model is wrong, or (400, 413, 422) perhaps this one request. The key comes
from an environment variable and is never written anywhere.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qa_train.utils.retry import TryAgain, retried

log = logging.getLogger(__name__)

RETRIED_CODES = frozenset({408, 409, 425, 429})
# About what is in the request: a clip that is too long, words that a filter refuses.
REFUSED_CODES = frozenset({400, 413, 422})


class ItemRefused(ValueError):
    """The endpoint refuses this request; others may pass."""


class CallFailed(Exception):
    """A call that failed after all retries; the text has the causes, last one first."""


@dataclass(frozen=True)
class Completion:
    """The endpoint's reply."""

    text: str
    # "stop", "length", "content_filter", ...
    finish: str = "stop"
    # The endpoint declined; ``text`` is its reply.
    refused: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Endpoint:
    """Where to send calls and how long to try. ``url`` ends before /chat/completions."""

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    timeout_s: float = 120.0
    # Calls in all, the first included.
    attempts: int = 6
    # First wait; it doubles each time, up to a minute.
    pause_s: float = 1.0

    def complete(self, messages: Sequence[dict[str, Any]], *, temperature: float, max_tokens: int) -> Completion:
        """One chat completion.

        Raises:
            CallFailed: all attempts failed for reasons that may pass.
            ItemRefused: the endpoint refuses what is in this request.
            ValueError: the endpoint refuses the request itself (wrong key, model or form).
        """
        body = {
            "model": self.model,
            "messages": list(messages),
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        try:
            return retried(
                lambda: _completion(self._post(body)),
                may_pass=lambda error: isinstance(error, TryAgain),
                attempts=self.attempts,
                first_wait_s=self.pause_s,
                longest_wait_s=60.0,
                what=f"call to {self.url}",
                tell=log.info,
            )
        except TryAgain as error:
            raise CallFailed(f"{self.attempts} attempts failed, the last by: {error}") from error

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_env)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"the endpoint's url is {self.url!r}: expected http:// or https://")
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            detail = error.read(500).decode("utf-8", "replace")
            if error.code in RETRIED_CODES or error.code >= 500:
                raise TryAgain(f"HTTP {error.code} {detail}") from error
            raise (ItemRefused if error.code in REFUSED_CODES else ValueError)(
                f"{address} refused the request: HTTP {error.code} {detail}; check the model {self.model!r} "
                f"and the key in ${self.key_env} ({'set' if key else 'not set'})"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            # URLError, TimeoutError and broken connections.
            raise TryAgain(f"{type(error).__name__}: {error}") from error


def _completion(raw: bytes) -> Completion:
    try:
        answer = json.loads(raw)
        choice = answer["choices"][0]
        message = choice["message"]
        usage = answer.get("usage") or {}
        text, refusal = message.get("content"), message.get("refusal")
        if isinstance(text, list):
            # In parts, as some servers give it.
            text = "".join(part["text"] for part in text if part.get("type") == "text")
        finish = str(choice.get("finish_reason") or "stop")
        if text is None and refusal is None and finish != "content_filter":
            raise TryAgain("an answer without content")
        return Completion(
            str(text if text is not None else refusal or ""),
            finish,
            refusal is not None or finish == "content_filter",
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise TryAgain(f"an answer that is not a chat completion: {raw[:200]!r}") from error
