"""The server in a thread of the test, and a model that says what it is told to, piece by piece."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from qa_train.infer import connections
from qa_train.infer.generate import Answer, Decoding
from qa_train.infer.service import Service, application


@contextmanager
def running(made: Service) -> Iterator[int]:
    """The port of a server in a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application(made), http=connections.Connection, log_level="warning", timeout_graceful_shutdown=1
    )
    serving = uvicorn.Server(config)
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        serving.should_exit = True
        thread.join(20)


class Scripted:
    """A generator that says ``text``, a word (one token) after the other, and keeps what it was asked."""

    def __init__(self) -> None:
        self.text, self.pause_s = "yes", 0.0
        # (role, text or number of clips) of every message, and how tokens were drawn.
        self.asked: list[list[tuple[str, str]]] = []
        self.decodings: list[Decoding] = []
        self.left_at: int | None = None

    def stream_rows(self, rows: Any, decoding: Decoding) -> list[Answer]:
        """As `Generator.stream_rows`."""
        self.decodings.append(decoding)
        for row in rows:
            self.asked.append([(m.role, "".join(getattr(p, "text", "<clip>") for p in m.content))
                               for m in row.sample.messages])  # fmt: skip
            words = self.text.split(" ")
            for i, word in enumerate(words):
                if row.gone():
                    self.left_at, row.truncated = i, True
                    break
                if i == row.max_new_tokens:
                    row.truncated = True
                    break
                row.ids.append(i)
                row.write(word if i == 0 else f" {word}")
                time.sleep(self.pause_s)
        return [Answer(self.text, row.truncated, 0.0) for row in rows]
