"""What `qa-train serve` answers: OpenAI's ``/v1/chat/completions`` with audio, and a chat page.

1. Limits come first: the number of requests, the size of the body, the time it may take to arrive.
2. The body is read into a sample and waveforms in a thread (`qa_train.infer.request`), whose clips another process
   decodes: a file that crashes the decoder costs its request.
3. The engine's thread answers requests together (`qa_train.infer.engine`); pieces go back as they appear.

There is no login: requests must name the address that is served (no other web page may ask).
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from queue import LifoQueue
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from qa_train.config import ServeConfig
from qa_train.data.audio.decoder import DecoderEnded, KillableDecoder
from qa_train.infer.engine import Engine, one_line
from qa_train.infer.generate import Generator
from qa_train.infer.protocol import ApiError
from qa_train.infer.request import Request as Asked
from qa_train.infer.request import parse
from qa_train.infer.turn import Turn, count_tokens
from qa_train.utils.loopback import trusted_hosts

log = logging.getLogger(__name__)
CHAT = "/v1/chat/completions"
PAGE = Path(__file__).parent / "page"
_PAGE_FILES = ("page.html", "page.css", "page.js", "clips.js", "elements.js", "stream.js", "icon.svg",
               "vendor/marked.umd.js", "vendor/purify.min.js")  # fmt: skip
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_EXAMPLES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
# A body has so long, and a second more for each so many bytes; but never longer than the last.
_BODY_FIRST_S, _BODY_BYTES_PER_S, _BODY_TIMEOUT_S = 5.0, 64_000, 120.0
# How often a waiting request asks whether its client is still there.
_ASK_AGAIN_S = 0.5
T = TypeVar("T")
# The page may use its own files and nothing from elsewhere; clips are played from memory. No other page may show it.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Service:
    """The state of a running server: its models, its limits, and how many are being answered."""

    def __init__(self, generators: dict[str, Generator], templates: dict[str, str], options: ServeConfig) -> None:
        """templates: of each generator, the form in which it is asked, "chat" or "base"."""
        self.generators, self.templates, self.options = generators, templates, options
        self.engine = Engine(generators, batch_size=options.batch_size, token_budget=options.token_budget)
        self.examples = _examples(options.examples)
        # Requests on their way, by the client's address.
        self.active: Counter[str] = Counter()
        self.readers = ThreadPoolExecutor(options.decode_workers, thread_name_prefix="decode")
        # Those that no reader uses; there are as many as readers. Their time limit is that of the request.
        self.decoders: LifoQueue[KillableDecoder] = LifoQueue()
        for _ in range(options.decode_workers):
            self.decoders.put(KillableDecoder(math.inf))
        self.started = int(time.time())

    def start_decoders(self) -> None:
        """Let their processes load before the first request."""
        for decoder in self.decoders.queue:
            decoder.start()

    def close(self) -> None:
        """End the threads and the decoders; requests must have been given up."""
        self.readers.shutdown(cancel_futures=True)
        for decoder in self.decoders.queue:
            decoder.close()
        self.engine.close()

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await _body(request, self.options.max_body_mb)
        given_up = threading.Event()
        asked, prompt_tokens = await self._decoded(request, partial(self._read, body, given_up.is_set), given_up)
        turn = Turn(asked, prompt_tokens, self.engine)
        if asked.stream:
            headers = {"Cache-Control": "no-store"}
            return StreamingResponse(turn.events(), media_type="text/event-stream", headers=headers)
        return JSONResponse(await turn.whole(request.is_disconnected))

    def _read(self, body: bytes, given_up: Callable[[], bool]) -> tuple[Asked, int]:
        """The request of a body, and the number of tokens of its prompt."""
        decoder = self.decoders.get()
        try:
            asked = parse(body, self.options, self.templates, partial(_decode, decoder, given_up))
        finally:
            self.decoders.put(decoder)
        return asked, count_tokens(self.generators[asked.model], asked, self.engine.token_budget)

    async def _decoded(self, request: Request, read: Callable[[], T], given_up: threading.Event) -> T:
        """The result of ``read`` in a thread, which is told when its client disconnects or its time is over."""
        work = asyncio.get_running_loop().run_in_executor(self.readers, read)
        until = time.monotonic() + self.options.decode_timeout_s
        try:
            while not (await asyncio.wait([work], timeout=_ASK_AGAIN_S))[0]:
                if await request.is_disconnected():
                    raise ApiError(499, "the client has gone", code="gone")
                if time.monotonic() > until:
                    limit = self.options.decode_timeout_s
                    raise ApiError(503, f"its clips were not decoded in {limit:g} s: try again", code="timeout")
            return work.result()
        finally:
            given_up.set()
            # One that has not started is cancelled; the result of the other is discarded.
            work.cancel()
            work.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def health(self, request: Request) -> Response:
        """GET /health: up, and how busy."""
        return JSONResponse({"status": "ok", "active": self.active.total(), "batches": self.engine.batches})

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        made = {"object": "model", "created": self.started, "owned_by": "qa-train"}
        return JSONResponse({"object": "list", "data": [{"id": name, **made} for name in self.generators]})

    async def page(self, request: Request) -> Response:
        """GET / and the page's own files."""
        path = PAGE / (request.url.path.removeprefix("/") or _PAGE_FILES[0])
        return FileResponse(path, media_type=_KINDS[path.suffix], headers=_PAGE_HEADERS)

    async def example_names(self, request: Request) -> Response:
        """GET /examples: the names of the example clips, and the settings that the page has to know."""
        known = {name: getattr(self.options, name) for name in ("max_duration_s", "max_new_tokens")}
        return JSONResponse({"examples": sorted(self.examples), "templates": self.templates, **known})

    async def example(self, request: Request) -> Response:
        """GET /examples/NAME: only names that the list holds."""
        path = self.examples.get(request.path_params["name"])
        if path is None:
            raise ApiError(404, "no example of that name; GET /examples lists them", code="not_found")
        return FileResponse(path)


class Admission:
    """ASGI middleware: at most ``max_requests`` questions at a time, from the first byte to the last one sent.

    Also the one place that reports unexpected errors: a line in the log, and 500 if nothing was sent yet.
    """

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request in, or answer 429."""
        service = self.service
        if scope["type"] != "http" or scope["path"] != CHAT:
            await self._answer(scope, receive, send)
            return
        client, options = str((scope["client"] or ("",))[0]), service.options
        share = options.max_requests_per_client or max(1, options.max_requests // 2)
        if service.active.total() >= options.max_requests or service.active[client] >= share:
            message = f"{service.active.total()} requests are being answered, {service.active[client]} of this client"
            message += f"; at most {options.max_requests} and {share} are allowed: try again shortly"
            body = ApiError(429, message, code="too_many_requests").body()
            await JSONResponse(body, status_code=429, headers={"Retry-After": "1"})(scope, receive, send)
            return
        service.active[client] += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            service.active[client] -= 1
            # Clients of a year would be many.
            service.active = +service.active

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def watched(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http":
                raise
            log.error("%s %.200s failed: %s", scope["method"], scope["path"], one_line(error))
            log.debug("where it failed", exc_info=True)
            if not begun:
                failed = ApiError(500, "the server failed; see its log", code="internal")
                await JSONResponse(failed.body(), status_code=500)(scope, receive, send)


def application(service: Service) -> Starlette:
    """The ASGI application of a service."""

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body(), status_code=error.status)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(ApiError(error.status_code, message, code="http").body(), status_code=error.status_code)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    hosts = trusted_hosts(service.options.host)
    return Starlette(
        routes=[
            Route(CHAT, service.chat, methods=["POST"]),
            Route("/v1/models", service.models),
            Route("/health", service.health),
            Route("/examples", service.example_names),
            Route("/examples/{name}", service.example),
            *(Route(f"/{name}", service.page) for name in ("", *_PAGE_FILES[1:])),
        ],
        exception_handlers={ApiError: api_error, HTTPException: http_error},
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Admission, service=service)],
        lifespan=lifespan,
    )


def _decode(
    decoder: KillableDecoder, given_up: Callable[[], bool], source: bytes, *, max_duration_s: float
) -> np.ndarray:
    """A clip of a request, by a process of its own."""
    try:
        return decoder.read_clip(source, max_duration_s=max_duration_s, given_up=given_up)
    except DecoderEnded as error:
        if not given_up():
            log.warning("a clip of %d bytes was refused: %s", len(source), error)
        raise


async def _body(request: Request, max_body_mb: float) -> bytes:
    """The body, refused as soon as it is known to be too large, or comes too slowly."""

    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Browsers send other types across sites without asking first.
        raise ApiError(415, f"content-type is {kind!r}; expected application/json", code="content_type")
    limit = int(max_body_mb * 1e6)
    parts: list[bytes] = []
    size = 0
    started = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(_BODY_FIRST_S) as time_left:
            async for part in request.stream():
                size += len(part)
                time_left.reschedule(started + min(_BODY_TIMEOUT_S, _BODY_FIRST_S + size / _BODY_BYTES_PER_S))
                if size > limit:
                    message = f"the body has more than {max_body_mb:g} MB: send shorter clips, or compressed ones"
                    raise ApiError(413, message, code="too_large")
                parts.append(part)
    except TimeoutError as error:
        message = f"{size} bytes of the body arrived in time; expected {_BODY_BYTES_PER_S} a second"
        raise ApiError(408, message, code="timeout") from error
    except ClientDisconnect as error:
        raise ApiError(499, "the client has gone", code="gone") from error
    return b"".join(parts)


def _examples(folder: str | None) -> dict[str, Path]:
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise ValueError(f"serve: no folder {folder} with example clips: correct examples=, or remove it")
    return {path.name: path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in _EXAMPLES}
