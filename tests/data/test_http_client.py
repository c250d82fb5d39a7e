"""Range requests: what odd, broken and slow answers come to, redirects, certificates, and connections that are kept."""

from __future__ import annotations

import datetime
import io
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from qa_train.config import StorageConfig
from qa_train.data.stores import http_client, web_ranges
from qa_train.data.stores.remote import RemoteFile
from tests.data.serving import Server, http_server

RAW = np.random.default_rng(0).bytes(300_000)
USUALLY, QUICK = StorageConfig(timeout_s=30), StorageConfig(timeout_s=0.5)
HEAD = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 10-109/1000\r\n"
BODY = RAW[10:110]
USUAL = HEAD + b"Content-Length: 100\r\nETag: a\r\n\r\n" + BODY


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("kept") / "served"
    folder.mkdir()
    (folder / "raw.bin").write_bytes(RAW)
    with http_server(folder) as found:
        yield found


@contextmanager
def answering(*connections: Sequence[bytes], context: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers, a list for each connection, and then closes it; its URL, and the requests."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answers in connections:
                connection, _ = listener.accept()
                try:
                    with context.wrap_socket(connection, server_side=True) if context else connection as plain:
                        for answer in answers:
                            asked.append(plain.recv(4096).decode())
                            plain.sendall(answer)
                except OSError:
                    continue

        threading.Thread(target=serve, daemon=True).start()
        place = f"{'https' if context else 'http'}://localhost:{listener.getsockname()[1]}/x.tar?a=b%20c"
        yield place, asked


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("ok", ""),
        ("moved", ""),
        ("cut", "ConnectionError: end of response with 100000 bytes missing"),
        ("stall", "TimeoutError: the answer was not complete"),
        ("drip", "TimeoutError: the answer was not complete"),
        ("drip-head", "TimeoutError: the answer was not complete"),
        ("shifted", "OSError: asked for bytes 1234-201233, the answer is for 'bytes 1235-201234/300000'"),
        ("whole", r"Permanent: the server ignores byte ranges \(status 200\)"),
        ("404", "FileNotFoundError: http.*raw.bin: the server answers 404, no such file"),
        ("403", "Permanent: the server answers 403 Forbidden"),
        ("429", "Refused: the server answers 429 Too Many Requests"),
        ("503", "Refused: the server answers 503 Service Unavailable"),
    ],
)
def test_every_fault_is_told(fault: str, why: str, server: Server) -> None:
    cfg = QUICK if why.startswith("TimeoutError") else USUALLY
    server.fail(fault)
    with pytest.raises((OSError, web_ranges.Permanent)) if why else nullcontext() as error:
        assert web_ranges.read(f"{server.url}/raw.bin", 1234, 200_000, cfg) == (RAW[1234:201_234], len(RAW))
    if error is not None:
        assert re.match(why, f"{error.type.__name__}: {error.value}")
    # Nothing of it is left in the connection, if that is used again.
    assert web_ranges.read(f"{server.url}/raw.bin", 5, 7, USUALLY)[0] == RAW[5:12]


def test_one_connection_serves_many_requests(server: Server) -> None:
    server.fail()
    for i in range(20):
        assert (
            web_ranges.read(f"{server.url}/raw.bin", i * 100, 50 + i, USUALLY)[0]
            == RAW[i * 100 : i * 150 + 50 - 49 * i]
        )
    assert server.connections == 1


def test_a_connection_that_was_closed_meanwhile_is_replaced() -> None:
    with answering([USUAL], [USUAL, b""], [USUAL]) as (url, asked):
        # Closed after the first answer; instead of the second answer of the next one.
        for _ in range(3):
            assert web_ranges.read(url, 10, 100, USUALLY) == (BODY, 1000)
    assert len(asked) == 4
    assert asked[0].splitlines()[0] == "GET /x.tar?a=b%20c HTTP/1.1"
    assert {"Range: bytes=10-109", "Accept-Encoding: identity"} <= set(asked[0].splitlines())


@pytest.mark.parametrize(
    "odd",
    [
        b"HTTP/1.0 206 OK\r\nContent-Range: bytes 10-109/1000\r\nContent-Length: 100\r\n\r\n" + BODY,
        b"HTTP/1.1 100 Continue\r\n\r\n" + USUAL,
        HEAD + b"Connection: close\r\nContent-Length: 100\r\n\r\n" + BODY,
        HEAD.replace(b"1.1", b"1.0") + b"\r\n" + BODY,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\n" + BODY + b"\r\n0\r\nContent-Range: 7\r\n\r\n",
    ],
    ids=["1.0", "100", "close", "no length", "chunked, with a trailer"],
)
def test_unusual_answers_are_read(odd: bytes) -> None:
    with answering([odd], [odd]) as (url, _):
        for _ in range(2):
            assert web_ranges.read(url, 10, 100, USUALLY) == (BODY, 1000)


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "gopher://127.0.0.1/x", "http://127.0.0.1:999999/", "http://[::1/", "/x"]
)
def test_where_no_server_can_lead_is_told_at_once(place: str) -> None:
    moved = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
    with answering([moved], [moved] * 20) as (url, _), pytest.raises(web_ranges.Permanent, match="leads"):
        web_ranges.read(url, 10, 100, USUALLY)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b"", "Empty reply from server"),
        (USUAL[:40], "asked for bytes 10-109, the answer is for ''"),
        (USUAL[:-1], "end of response with 1 bytes missing"),
        (HEAD + b"Content-Length: 99\r\n\r\n" + BODY[1:], "asked for 100 bytes, the answer has '99'"),
        (HEAD + b"Content-Length: 100\r\nContent-Length: 5\r\n\r\n" + BODY, "Invalid Content-Length"),
        (USUAL.replace(b"10-109", b"11-110"), "asked for bytes 10-109, the answer is for 'bytes 11-110/1000'"),
        (b"HTTP/9.9 what\r\n\r\n", "HTTP"),
        (b"garbled", "HTTP/0.9"),
    ],
)
def test_a_broken_answer_is_an_error_and_its_connection_is_not_used_again(broken: bytes, why: str) -> None:
    with answering([broken], [USUAL]) as (url, _):
        with pytest.raises(OSError, match=why):
            web_ranges.read(url, 10, 100, USUALLY)
        assert web_ranges.read(url, 10, 100, USUALLY)[0] == BODY


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 50\r\n\r\nno", FileNotFoundError),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 99999999\r\n\r\nno", web_ranges.Permanent),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n", web_ranges.Refused),
    ],
)
def test_a_refusal_is_told_though_its_body_is_cut(refusal: bytes, why: type[Exception]) -> None:
    with answering([refusal]) as (url, _), pytest.raises(why) as error:
        web_ranges.read(url, 10, 100, USUALLY)
    if isinstance(error.value, web_ranges.Refused):
        assert error.value.headers == {"Retry-After": "7"}


@pytest.mark.parametrize("url", ["http://[::1", "http:///x.tar", "http://127.0.0.1:999999/x", "http://us er@/x"])
def test_an_address_that_cannot_be_asked_is_told_at_once(url: str) -> None:
    with pytest.raises(web_ranges.Permanent, match="cannot be asked"):
        web_ranges.read(url, 10, 100, USUALLY)


def test_names_of_any_bytes_and_headers_of_one_line() -> None:
    with answering([USUAL]) as (url, asked):
        place = url.replace("x.tar", "\udcff \u00fc#")
        assert web_ranges.read(place, 10, 100, USUALLY) == (BODY, 1000)
        with pytest.raises(web_ranges.Permanent, match="header Authorization has a line break"):
            web_ranges.read(url, 10, 100, USUALLY, {"Authorization": "Bearer x\r\nHost: y"})
    assert asked[0].splitlines()[0] == "GET /%FF%20%C3%BC HTTP/1.1"


def test_the_password_of_a_proxy_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "us:secretpw@bad host:1")
    monkeypatch.setattr(http_client, "_proxy", http_client._proxy.__wrapped__)
    with pytest.raises(web_ranges.Permanent, match="the proxy that the environment names") as error:
        web_ranges.read("http://nowhere.invalid/x.tar", 10, 100, USUALLY)
    assert "secret" not in str(error.value)


def test_an_interrupt_does_not_wait_for_the_time_out(server: Server) -> None:
    server.fail("stall")
    # A process in the background may ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        while not server.requests:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            web_ranges.read(f"{server.url}/raw.bin", 0, 10, StorageConfig(timeout_s=60))
    finally:
        signal.signal(signal.SIGINT, before)
    # The server is silent for 5 s, and closes nothing.
    assert time.monotonic() - started < 5


@pytest.mark.skipif(not shutil.which("openssl"), reason="the names in a folder of certificates are made by openssl")
def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pem = certificate.public_bytes(encoding) + key.private_bytes(encoding, form, serialization.NoEncryption())
    (tmp_path / "server.pem").write_bytes(pem)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem")
    folder = tmp_path / "trusted"
    folder.mkdir()
    hashed = subprocess.run(
        ["openssl", "x509", "-noout", "-subject_hash", "-in", tmp_path / "server.pem"], capture_output=True, check=True
    )
    (folder / f"{hashed.stdout.decode().strip()}.0").write_bytes(certificate.public_bytes(encoding))
    for name, place in (("SSL_CERT_FILE", None), ("SSL_CERT_FILE", tmp_path / "server.pem"), ("SSL_CERT_DIR", folder)):
        monkeypatch.setattr(http_client, "_free", deque())
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        if place is None:
            with answering([USUAL], context=context) as (url, _), pytest.raises(ssl.SSLError, match="certificate"):
                web_ranges.read(url, 10, 100, USUALLY)
            continue
        monkeypatch.setenv(name, str(place))
        with answering([USUAL, USUAL], [USUAL], context=context) as (url, asked):
            for _ in range(3):
                assert web_ranges.read(url, 10, 100, USUALLY)[0] == BODY
        assert len(asked) == 3
    with answering([USUAL], context=context) as (url, _), pytest.raises(ssl.SSLError):
        web_ranges.read(url.replace("localhost", "127.0.0.1"), 10, 100, USUALLY)


@pytest.mark.parametrize(("stated", "found"), [("bytes */5", (b"", 5)), ("bytes */20", None), ("", None)])
def test_an_end_is_believed_only_with_its_place(
    stated: str, found: tuple[bytes, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = http_client.Answer(416, "Range Not Satisfiable", {"content-range": stated})
    monkeypatch.setattr(web_ranges, "_answer", lambda *_: answer)
    with nullcontext() if found else pytest.raises(web_ranges.Permanent, match="416"):
        assert web_ranges.read("http://h/x", 7, 3, StorageConfig()) == found


def test_a_file_that_became_shorter_is_no_end() -> None:
    file = RemoteFile(10, lambda offset, size: b"abcdef"[offset : offset + size])
    with pytest.raises(OSError, match="ends after 6 of 10 bytes"):
        io.BufferedReader(file).read()
