"""The quick client of range requests: it reads what urllib3 reads, and leaves to it what it does not know."""

from __future__ import annotations

import datetime
import io
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from qa_train.config import StorageConfig
from qa_train.data.stores import kept_connections, web_ranges
from qa_train.data.stores.remote import RemoteFile
from tests.data.serving import Server, http_server

RAW = np.random.default_rng(0).bytes(300_000)
QUICK = StorageConfig(timeout_s=0.5)
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


def outcome(url: str, offset: int, size: int) -> object:
    """The bytes and the size, or the kind of the error."""
    try:
        return web_ranges.read(url, offset, size, QUICK)
    except Exception as error:
        kinds = (FileNotFoundError, web_ranges.Permanent, web_ranges.Refused, Exception)
        return next(kind for kind in kinds if isinstance(error, kind))


@pytest.mark.parametrize(
    "fault", ["ok", "cut", "stall", "drip", "drip-head", "shifted", "whole", "moved", "503", "404", "403", "429"]
)
def test_both_clients_have_the_same_outcome(fault: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url, found, started = f"{server.url}/raw.bin", [], time.monotonic()
    for client in (kept_connections.ask, lambda *_: None):
        monkeypatch.setattr(kept_connections, "ask", client)
        monkeypatch.setattr(web_ranges, "_leading_on", set())
        server.fail(fault)
        found.append(outcome(url, 1234, 200_000))
    assert found[0] == found[1]
    # A drip takes 5 s and more.
    assert time.monotonic() - started < 2 * 2 * QUICK.timeout_s
    if fault in ("ok", "moved"):
        assert found[0] == (RAW[1234:201_234], len(RAW))


def test_one_connection_serves_many_requests(server: Server) -> None:
    server.fail()
    for i in range(20):
        assert (
            web_ranges.read(f"{server.url}/raw.bin", i * 100, 50 + i, QUICK)[0] == RAW[i * 100 : i * 150 + 50 - 49 * i]
        )
    assert server.connections == 1


def test_a_connection_that_was_closed_meanwhile_is_replaced() -> None:
    with answering([USUAL], [USUAL, b""], [USUAL]) as (url, asked):
        # Closed after the first answer; instead of the second answer of the next one.
        for _ in range(3):
            assert web_ranges.read(url, 10, 100, QUICK) == (BODY, 1000)
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
    ],
    ids=["1.0", "100", "close", "no length"],
)
def test_unusual_answers_are_read(odd: bytes) -> None:
    with answering([odd], [odd]) as (url, asked):
        for _ in range(2):
            assert web_ranges.read(url, 10, 100, QUICK) == (BODY, 1000)
    assert not any("python-urllib3" in each for each in asked)


def test_what_it_does_not_read_is_left_to_the_other_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_ranges, "_leading_on", set())
    chunks = HEAD + b"Transfer-Encoding: chunked\r\n\r\n64\r\n" + BODY + b"\r\n0\r\n\r\n"
    # The other client may keep its connection or open another.
    with answering([chunks], [chunks, USUAL], [USUAL]) as (url, asked):
        assert web_ranges.read(url, 10, 100, QUICK) == (BODY, 1000)
        # From then on at once.
        assert web_ranges.read(url, 10, 100, QUICK) == (BODY, 1000)
    assert ["python-urllib3" in each for each in asked if each] == [False, True, True]


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "gopher://127.0.0.1/x", "http://127.0.0.1:999999/", "http://[::1/", "/x"]
)
def test_where_no_server_can_lead_is_told_at_once(place: str) -> None:
    moved = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
    with answering([moved], [moved] * 20) as (url, _), pytest.raises(web_ranges.Permanent, match="leads"):
        web_ranges.read(url, 10, 100, QUICK)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b"", "closed connection without response"),
        (USUAL[:40], "ends after 0 of 100 bytes"),
        (USUAL[:-1], "ends after 99 of 100 bytes"),
        (HEAD + b"Content-Length: 99\r\n\r\n" + BODY[1:], "asked for 100 bytes, the answer has '99'"),
        (HEAD + b"Content-Length: 100\r\nContent-Length: 5\r\n\r\n" + BODY, "asked for 100 bytes, the answer has '5'"),
        (USUAL.replace(b"10-109", b"11-110"), "asked for bytes 10-109, the answer is for 'bytes 11-110/1000'"),
    ],
)
def test_a_broken_answer_is_an_error_and_its_connection_is_not_used_again(broken: bytes, why: str) -> None:
    with answering([broken], [USUAL]) as (url, _):
        with pytest.raises(OSError, match=why):
            web_ranges.read(url, 10, 100, QUICK)
        assert web_ranges.read(url, 10, 100, QUICK)[0] == BODY


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
    for trusted in (False, True):
        kept_connections._context.cache_clear()
        with answering([USUAL, USUAL], [USUAL], context=context) as (url, asked):
            if not trusted:
                with pytest.raises(ssl.SSLCertVerificationError):
                    web_ranges.read(url, 10, 100, QUICK)
                monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
                continue
            for _ in range(3):
                assert web_ranges.read(url, 10, 100, QUICK)[0] == BODY
        assert len(asked) == 3
    kept_connections._context.cache_clear()
    with answering([USUAL], context=context) as (url, _), pytest.raises(ssl.SSLCertVerificationError):
        web_ranges.read(url.replace("localhost", "127.0.0.1"), 10, 100, QUICK)
    kept_connections._context.cache_clear()


@pytest.mark.parametrize(("stated", "found"), [("bytes */5", (b"", 5)), ("bytes */20", None), ("", None)])
def test_an_end_is_believed_only_with_its_place(
    stated: str, found: tuple[bytes, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = kept_connections.Answer(416, "Range Not Satisfiable", {"content-range": stated})
    monkeypatch.setattr(web_ranges, "_answer", lambda *_: answer)
    with nullcontext() if found else pytest.raises(web_ranges.Permanent, match="416"):
        assert web_ranges.read("http://h/x", 7, 3, StorageConfig()) == found


def test_a_file_that_became_shorter_is_no_end() -> None:
    file = RemoteFile(10, lambda offset, size: b"abcdef"[offset : offset + size])
    with pytest.raises(OSError, match="ends after 6 of 10 bytes"):
        io.BufferedReader(file).read()
