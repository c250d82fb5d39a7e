"""The bytes of a recording inside a page."""

from __future__ import annotations

import base64


def ogg_uri(data: bytes) -> str:
    """An Ogg file as a ``data:`` URI."""
    return "data:audio/ogg;base64," + base64.b64encode(data).decode("ascii")
