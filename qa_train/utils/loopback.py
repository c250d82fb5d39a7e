"""Servers that are meant for this machine alone: where they listen, and whose requests they answer."""

from __future__ import annotations

import socket

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def trusted_hosts(host: str) -> list[str]:
    """Names that the Host header of a request may have, without port, where a server listens on ``host``.

    A page of another site can make a browser send requests here under its own name (DNS rebinding): on a loopback
    address only its own names are answered, elsewhere every name (``*``).
    """
    return ["127.0.0.1", "localhost", "[::1]"] if host in LOOPBACK else ["*"]


def is_trusted(header: str | None, host: str) -> bool:
    """Whether a request with this Host header is answered by a server that listens on ``host``."""
    name = header or ""
    # A port, but not the last group of an IPv6 address.
    if not name.endswith("]"):
        name = name.rpartition(":")[0] or name
    trusted = trusted_hosts(host)
    return "*" in trusted or name.lower() in trusted


def listen(host: str, port: int, command: str) -> socket.socket:
    """A bound socket.

    Raises:
        ValueError: the address is taken or not this machine's, in the name of ``command``.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{command}: cannot listen on {host}:{port} ({reason}): choose another port=") from error
    return listener
