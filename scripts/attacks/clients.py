"""What the server's clients send, over the loopback interface."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.attacks.changes import damage_bytes, odd_value
from scripts.red_team import Attempt


def requests(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Requests of the server's clients, over the loopback interface; it has to answer the next client, too."""
    from tests.infer import test_hostile_clients as tests

    log = folder / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        pid = os.fork()
        if pid == 0:
            _serve(listener, log)
    good = json.loads(tests.body("hello", tests.flac(0.5), temperature=0.5, max_tokens=5))

    def sent(raw: bytes) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            answer = _exchange(port, raw)
            health = _exchange(port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            if not health.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the next client was answered {health[:80]!r}")
            line = answer.split(b"\r\n")[0].decode("latin-1")
            # 429 would be no judgement of what was sent.
            if line.startswith(("HTTP/1.1 5", "HTTP/1.1 429")):
                raise RuntimeError(line)
            if not line.startswith("HTTP/1.1 2"):
                raise ValueError(line or "the connection was closed")

        return read

    def posted(content: Any) -> bytes:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        return tests.head(len(raw)) + raw

    def quiet(place: Path) -> None:
        if written := log.read_text(errors="replace").strip():
            raise RuntimeError(f"its log: {written[:300]!r}")

    try:
        _until_open(port)
        yield Attempt("requests: as sent", "a question with a clip", sent(posted(good)), "accept")
        for name, clips in tests.BOMBS:
            yield Attempt("requests: of the tests", name, sent(posted(tests.body(*clips))), "refuse")
        for number in range(rounds):
            yield Attempt("requests: a field", f"number {number}", sent(posted(odd_value(draw, good))), "either")
            bits = damage_bytes(draw, posted(good))
            yield Attempt("requests: bytes", f"number {number}", sent(bits), "either")
            head = damage_bytes(draw, tests.head(20)) + b'{"model": "m"}      '
            yield Attempt("requests: bytes of the header", f"number {number}", sent(head), "either")
        yield Attempt("requests: what the log holds", "nothing", quiet, "accept")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(listener: socket.socket, log: Path) -> None:
    """The server, with a generator that answers at once; never returns."""
    import pytest
    import uvicorn

    from qa_train.infer import connections
    from qa_train.infer.service import application
    from tests.infer import test_hostile_clients as tests

    try:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, 1)
        os.dup2(written, 2)
        patch = pytest.MonkeyPatch()
        service = tests.service(patch)
        # Half a request is waited for, but not for long.
        patch.setattr(connections, "HEADERS_S", 1.0)
        patch.setattr("qa_train.infer.service._BODY_FIRST_S", 1.0)
        config = uvicorn.Config(application(service), http=connections.Connection, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        os._exit(1)


def _until_open(port: int) -> None:
    for _ in range(200):
        if _exchange(port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"):
            return


def _exchange(port: int, raw: bytes) -> bytes:
    """Send, and read an answer to its end, or until the server has closed the connection."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(raw)
            while not _is_whole(answer) and (part := client.recv(65536)):
                answer += part
    except ConnectionError:
        pass
    return answer


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(found) and length is not None and len(body) >= int(length[1])
