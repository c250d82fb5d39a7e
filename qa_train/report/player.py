"""A recording on a page: its bytes inside the page, or a link to its file."""

from __future__ import annotations

import base64
from html import escape


def ogg_uri(data: bytes) -> str:
    """An Ogg file as a ``data:`` URI."""
    return "data:audio/ogg;base64," + base64.b64encode(data).decode("ascii")


def player(source: str) -> str:
    """The browser's own player of a URI; it loads nothing until it is asked to play."""
    return f'<audio controls preload="none" src="{escape(source, quote=True)}"></audio>'
