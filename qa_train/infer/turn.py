"""One request on its way through the engine, seen from the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from qa_train.data.audio.waveform import audio_tokens
from qa_train.data.text.template import encode_prompt
from qa_train.infer.engine import Engine, Job
from qa_train.infer.generate import Answer, Decoding, Generator
from qa_train.infer.protocol import ApiError, BadRequest, Reply, event
from qa_train.infer.request import Request
from qa_train.infer.row_stream import Row

_ASK_AGAIN_S = 0.5


def count_tokens(generator: Generator, asked: Request, token_budget: int) -> int:
    """Number of tokens of the prompt (slow for long texts: not for an event loop).

    Raises:
        ApiError: the prompt and its answer do not fit the model or the server's token budget.
    """
    clips = [audio_tokens(len(wave)) for wave in asked.waves]
    tokens = len(encode_prompt(asked.sample, generator.tokenizer, clips))
    room = min(generator.model.config.text_config.max_position_embeddings, token_budget)
    if tokens + asked.max_new_tokens > room:
        raise BadRequest(
            f"the conversation has {tokens} tokens, and {asked.max_new_tokens} for the answer exceed the {room} that "
            "fit: start a new conversation, send shorter clips, or ask for fewer tokens",
            "messages",
            "context_length_exceeded",
        )
    return tokens


class Turn:
    """Sends a request to the engine and hands its answers on; must be made inside the event loop.

    The rows of a client that has gone are given up.
    """

    def __init__(self, asked: Request, prompt_tokens: int, engine: Engine) -> None:
        self.prompt_tokens = prompt_tokens
        self.reply = Reply(asked.model, int(time.time()))
        self._asked, self._engine = asked, engine
        self._given_up = threading.Event()
        self._loop = asyncio.get_running_loop()
        # Of each answer by its number: pieces of text, then the answer or the error.
        self._news: asyncio.Queue[tuple[int, str | Answer | BaseException]] = asyncio.Queue()
        self._rows = [
            Row(asked.sample, asked.waves, partial(self._tell, number), asked.max_new_tokens, self._given_up.is_set,
                asked.stop)
            for number in range(asked.n)
        ]  # fmt: skip

    async def whole(self, gone: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """The answers in one piece; ``gone``: whether the client has disconnected."""
        texts, ends = [""] * len(self._rows), [""] * len(self._rows)
        async for number, piece, finish in self._pieces(gone):
            texts[number] += piece
            ends[number] = finish or ""
        return self.reply.whole(list(zip(texts, ends, strict=True)), self._usage())

    async def events(self) -> AsyncIterator[str]:
        """The answers as server-sent events; closing the iterator gives the rows up."""
        try:
            for number in range(len(self._rows)):
                yield self.reply.chunk(number, {"role": "assistant", "content": ""})
            async for number, piece, finish in self._pieces():
                yield self.reply.chunk(number, {} if finish else {"content": piece}, finish)
        except ApiError as error:
            # The status line is long gone.
            yield event(error.body())
            return
        finally:
            self._given_up.set()
        if self._asked.include_usage:
            yield self.reply.usage(self._usage())
        yield "data: [DONE]\n\n"

    async def _pieces(
        self, gone: Callable[[], Awaitable[bool]] | None = None
    ) -> AsyncIterator[tuple[int, str, str | None]]:
        """(number of the answer, piece of its text, None), and at its end (number, "", finish reason)."""
        asked, left = self._asked, len(self._rows)
        # Requests that leave the seed open may share a batch: its first row's seed serves all of them.
        first = random.getrandbits(62) if asked.seed is None else asked.seed
        for number, row in enumerate(self._rows):
            # Jobs of a given seed are answered one by one: with the same seed they would say the same.
            decoding = Decoding(asked.max_new_tokens, 1, asked.temperature, asked.top_p, first + number)
            tell = partial(self._tell, number)
            self._engine.submit(Job(asked.model, row, decoding, self.prompt_tokens, tell, asked.seed is None))
        try:
            while left:
                number, news = await self._next_news(gone)
                if isinstance(news, BaseException):
                    raise ApiError(500, "the model failed; see the server's log", code="model") from news
                if isinstance(news, Answer):
                    left -= 1
                    yield number, "", "length" if news.truncated else "stop"
                else:
                    yield number, news, None
        finally:
            self._given_up.set()

    async def _next_news(self, gone: Callable[[], Awaitable[bool]] | None) -> tuple[int, str | Answer | BaseException]:
        while True:
            try:
                return await asyncio.wait_for(self._news.get(), _ASK_AGAIN_S)
            except TimeoutError:
                if gone is not None and await gone():
                    raise ApiError(499, "the client has gone", code="gone") from None

    def _tell(self, number: int, news: str | Answer | BaseException) -> None:
        """Called in the engine's thread."""
        # At the end of the server the loop is closed, and no client is left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.put_nowait, (number, news))

    def _usage(self) -> dict[str, int]:
        new = sum(len(row.ids) for row in self._rows)
        total = self.prompt_tokens + new
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": new, "total_tokens": total}
