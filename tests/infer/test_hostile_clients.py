"""The server against clients that do not mean well: idle, slow, gone, and with clips that are long to decode."""

from __future__ import annotations

import base64
import io
import json
import logging
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn")

from live_server import running

from qa_train.config import ServeConfig
from qa_train.data.audio.decoder import KillableDecoder
from qa_train.infer import connections
from qa_train.infer import service as module
from qa_train.infer.generate import Answer
from qa_train.infer.protocol import ApiError
from qa_train.infer.request import parse
from qa_train.infer.service import Service
from tests.data import faulty


class Parrot:
    """A generator that answers at once."""

    def stream_rows(self, rows: Any, decoding: Any) -> list[Answer]:
        return [Answer("yes", False, 0.0) for _ in rows]


def service(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Service:
    monkeypatch.setattr(module, "count_tokens", lambda *given: 10)
    return Service({"m": Parrot()}, {"m": "chat"}, ServeConfig(checkpoint="x", **options))  # type: ignore[dict-item]


def body(*parts: Any, **more: Any) -> bytes:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], **more}).encode()


def clip(raw: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(raw).decode(), "format": "flac"}}


def flac(seconds: float, rate: int = 16_000, channels: int = 1) -> dict[str, Any]:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((int(seconds * rate), channels), np.int16), rate, format="FLAC")
    return clip(buffer.getvalue())


def head(length: int) -> bytes:
    return (f"POST {module.CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n").encode()  # fmt: skip


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))


def ask(port: int, sent: bytes, source: str = "127.0.0.1") -> tuple[int, bytes]:
    with connect(port, source) as client:
        client.sendall(head(len(sent)) + sent)
        answer = b""
        while not answer.endswith(b"}") and (part := client.recv(65536)):
            answer += part
        return int(answer.split()[1]), answer


def test_200_idle_connections_with_128_files(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The oldest make room: a good client is answered while they all stay."""
    monkeypatch.setattr(connections.Connection, "limit", 40)
    with running(service(monkeypatch)) as port:
        idle = [connect(port, f"127.0.0.{2 + n % 8}") for n in range(200)]
        started = time.monotonic()
        assert ask(port, body("hello"))[0] == 200
        assert time.monotonic() - started < 5
        # The others were ended, the last ones are kept.
        ended = sum(_is_ended(client) for client in idle)
        assert ended >= 160
        for client in idle:
            client.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def _is_ended(client: socket.socket) -> bool:
    client.settimeout(0.01)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_the_limit_of_connections_leaves_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, least, most in ((128, 8, 96), (1 << 20, 1024, 1024), (10, 8, 8)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, n=allowed: (n, n))
        assert least <= connections.connection_limit() <= most


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "])
def test_headers_that_do_not_come_end_the_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.5)
    with running(service(monkeypatch)) as port, connect(port) as client:
        client.sendall(sent)
        started = time.monotonic()
        with _either():
            while client.recv(4096):
                pass
        assert 0.3 < time.monotonic() - started < 5


def test_a_second_request_has_as_much_time_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 3.0)
    with running(service(monkeypatch)) as port, connect(port) as client:
        for _ in range(2):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += (part := client.recv(4096))
                assert part
            assert answer.startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /heal")
        with _either():
            while client.recv(4096):
                pass


@contextmanager
def _either() -> Iterator[None]:
    """The end of a connection, orderly or not."""
    with suppress(ConnectionError):
        yield


def test_slow_bodies_hold_their_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BODY_FIRST_S", 600.0)
    made = service(monkeypatch)
    with running(made) as port:
        slow = [connect(port, "127.0.0.2") for _ in range(32)]
        for client in slow:
            client.sendall(head(100_000) + b"{")
        _until(lambda: made.active["127.0.0.2"] == 16)
        assert ask(port, body("hello"))[0] == 200
        assert ask(port, body("hello"), "127.0.0.2")[0] == 429
        for client in slow:
            client.close()
        _until(lambda: made.active.total() == 0)
        assert ask(port, body("hello"), "127.0.0.2")[0] == 200


def test_a_slow_body_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BODY_FIRST_S", 0.5)
    made = service(monkeypatch)
    with running(made) as port, connect(port, "127.0.0.2") as client:
        client.sendall(head(100_000) + b"{")
        assert b"408" in client.recv(4096).split(b"\r\n")[0]
        _until(lambda: made.active.total() == 0)
        assert ask(port, body("hello"), "127.0.0.2")[0] == 200


def test_clients_that_leave_while_they_upload_write_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = service(monkeypatch)
    with running(made) as port:
        for _ in range(8):
            with connect(port, "127.0.0.2") as client:
                client.sendall(head(100_000) + b"{")
                time.sleep(0.02)
        assert ask(port, body("hello"))[0] == 200
        _until(lambda: made.active.total() == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def _until(found: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_an_error_is_one_line_of_the_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    made = service(monkeypatch)
    monkeypatch.setattr(module, "count_tokens", lambda *given: 1 // 0)
    with running(made) as port:
        assert ask(port, body("hello"))[0] == 500
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "ZeroDivisionError" in record.getMessage()
    assert "\n" not in caplog.handler.format(record)


def test_a_decoding_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    def watched(decoder: KillableDecoder, given_up: Any, source: bytes, **options: Any) -> Any:
        def asked() -> bool:
            begun.set()
            return bool(given_up())

        try:
            return decoder.read_clip(source, given_up=asked, **options)
        finally:
            ended.set()

    faulty.install(monkeypatch)
    monkeypatch.setattr(module, "_decode", watched)
    made = service(monkeypatch)
    with running(made) as port:
        client = connect(port, "127.0.0.2")
        sent = body(clip(b"hang"))
        client.sendall(head(len(sent)) + sent)
        assert begun.wait(10)
        # One of two decoders is left.
        assert ask(port, body("hello"))[0] == 200
        assert not ended.is_set()
        client.close()
        assert ended.wait(10)
        _until(lambda: made.active.total() == 0)


def test_a_client_that_leaves_while_it_waits_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, rows = threading.Event(), threading.Event(), []

    class Slow(Parrot):
        def stream_rows(self, given: Any, decoding: Any) -> list[Answer]:
            rows.extend(given)
            begun.set()
            assert go_on.wait(20)
            return super().stream_rows(given, decoding)

    made = service(monkeypatch)
    made.generators["m"] = Slow()  # type: ignore[assignment]
    sent = body("hello")
    with running(made) as port, connect(port) as first:
        first.sendall(head(len(sent)) + sent)
        assert begun.wait(10)
        with connect(port, "127.0.0.2") as second:
            second.sendall(head(len(sent)) + sent)
            _until(lambda: len(made.engine._waiting) == 1)
        _until(lambda: made.active.total() == 1)
        go_on.set()
        assert ask(port, sent)[0] == 200
    assert len(rows) == 2


def test_a_decoding_has_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs is killed; the next of its only decoder is answered."""
    faulty.install(monkeypatch)
    with running(service(monkeypatch, decode_timeout_s=3, decode_workers=1)) as port:
        status, answer = ask(port, body(clip(b"hang")))
        assert status == 503
        assert b"not decoded in 3 s" in answer
        assert ask(port, body(flac(1)))[0] == 200


def test_a_decoder_that_crashes_costs_its_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.install(monkeypatch)
    with running(service(monkeypatch)) as port:
        status, answer = ask(port, body(flac(1), clip(b"crash")))
        assert status == 400
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == {
            "message": "messages[0].content[1] cannot be read: the decoder's process died (signal 11, Segmentation "
            "fault). Send a wav, flac, mp3, ogg, opus file of 0.1 to 120 s (all clips of a conversation: 300 s)",
            "type": "invalid_request_error",
            "param": "messages[0].content[1]",
            "code": "audio_unreadable",
        }
        assert ask(port, body(flac(1)))[0] == 200
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line == "a clip of 5 bytes was refused: the decoder's process died (signal 11, Segmentation fault)"


def test_many_that_crash_beside_many_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets its own answer, and no process is left."""
    faulty.install(monkeypatch)
    made = service(monkeypatch, decode_workers=3, max_requests_per_client=32)
    sent = [body(clip(b"crash")) if n % 3 == 0 else body(flac(0.5 + n / 10)) for n in range(18)]
    with running(made) as port, ThreadPoolExecutor(len(sent)) as clients:
        made.start_decoders()
        found = list(clients.map(lambda each: ask(port, each)[0], sent))
        assert found == [400 if n % 3 == 0 else 200 for n in range(18)]
        pids = [decoder._child.pid for decoder in made.decoders.queue if decoder._child]
        assert len(set(pids)) == 3
    _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_server_that_stops_does_not_wait_for_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty.install(monkeypatch)
    made = service(monkeypatch)
    with running(made) as port:
        client = connect(port)
        sent = body(clip(b"hang"))
        client.sendall(head(len(sent)) + sent)
        _until(lambda: made.decoders.qsize() == 1)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert [decoder._child for decoder in made.decoders.queue] == [None, None]
    client.close()


# (what, clips): more work than their bytes tell.
BOMBS: list[tuple[str, list[dict[str, Any]]]] = [
    ("8 channels at 192 kHz", [flac(1, 192_000, 8)]),
    ("8 channels at 96 kHz", [flac(1, 96_000, 8)]),
    ("3 channels at 192 kHz", [flac(1, 192_000, 3)]),
    ("longer than a clip may be", [flac(121)]),
    ("longer together", [flac(100)] * 4),
    ("many of a minute", [flac(60)] * 6),
]


@pytest.mark.parametrize(("name", "clips"), BOMBS, ids=[name for name, _ in BOMBS])
def test_decode_bombs_are_refused_before_they_are_decoded(name: str, clips: list[dict[str, Any]]) -> None:
    started = time.process_time()
    with pytest.raises(ApiError) as caught:
        parse(body(*clips), ServeConfig(), {"m": "chat"})
    assert caught.value.status == 400
    assert time.process_time() - started < 5


@pytest.mark.parametrize("temperature", [1e-320, 5e-324, 1e-30, 1e-5, 9.9e-5])
def test_a_temperature_next_to_nothing_is_refused(temperature: float) -> None:
    with pytest.raises(ApiError, match=r"expected 0, or 0\.0001 to 2"):
        parse(body("hello", temperature=temperature), ServeConfig(), {"m": "chat"})


@pytest.mark.parametrize("temperature", [0, 1e-4, 1, 2.0])
def test_other_temperatures_are_taken(temperature: float) -> None:
    assert parse(body("hello", temperature=temperature), ServeConfig(), {"m": "chat"}).temperature == temperature


LONG = "x" * (1 << 20)


@pytest.mark.parametrize(
    "sent",
    [
        json.dumps({"model": LONG}).encode(),
        json.dumps({"model": ["x"] * 100_000}).encode(),
        json.dumps({"model": "m", LONG: 1}).encode(),
        body("hello", seed=LONG),
        body("hello", temperature=LONG),
        body("hello", tools=[LONG]),
        body("hello", max_tokens=LONG),
        body({"type": LONG}),
        json.dumps({"model": "m", "messages": [{"role": LONG, "content": "a"}]}).encode(),
    ],
)
def test_what_a_client_sends_is_not_echoed_whole(sent: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(sent, ServeConfig(), {"m": "chat"})
    assert len(json.dumps(caught.value.body())) < 2000
