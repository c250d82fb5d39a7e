"""One HTML document that needs nothing else: templates, style sheets and scripts from files, data as one block of JSON.

Templates escape whatever is put into them. The scripts of a page are known by their digests (Content-Security-Policy):
no other would run, even if some text of a run found its way into the markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
# What draws curves; uPlot 1.6.32 is as its makers publish it.
CURVES = {
    "styles": ("uplot/uPlot.min.css", "curves.css"),
    "scripts": ("uplot/uPlot.iife.min.js", *(f"scripts/{name}.js" for name in ("elements", "charts", "curves"))),
}
_HEAD = '<!doctype html><html lang="en">'
# Of these pages, and of those of earlier versions.
_MARKS = ('<meta name="generator" content="qa-train">', "<style>\n:root { color-scheme: light dark; --page: #f7f7f5;")


def render(
    template: str, *, styles: Sequence[str] = (), scripts: Sequence[str] = (), board: Any = None, **values: Any
) -> str:
    """A page from a template, which extends ``base.html``.

    Args:
        template: a file of the folder ``templates``, like those of ``styles`` and ``scripts``, which go into the page.
        board: what the scripts show, as JSON in the page.
        values: what the template names.
    """
    script = Markup("\n".join(_text(name) for name in scripts))
    page = _templates().get_template(template)
    text = page.render(
        style=Markup("\n".join(_text(name) for name in ("style.css", *styles))),
        script=script,
        script_source=Markup(f"'{_digest(script)}'" if script else "'none'"),
        board=None if board is None else Markup(json_block(board)),
        **values,
    )
    # JSON may hold halves of characters, which no file can.
    return text.encode("utf-8", "replace").decode()


def ogg_uri(data: bytes) -> str:
    """An Ogg file as a ``data:`` URI, which a player of the page takes."""
    return "data:audio/ogg;base64," + base64.b64encode(data).decode("ascii")


def json_block(value: Any) -> str:
    """``value`` as JSON that may stand in a ``<script>``: no markup in it, pure ASCII, null for what is not finite."""
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def refuse_foreign(page: Path, *, overwrite: bool = False) -> None:
    """See that ``page`` is free, or an earlier page of ours.

    Raises:
        ValueError: another file has that name, and ``overwrite`` is not set.
    """
    if overwrite or not page.exists():
        return
    with page.open("rb") as file:
        start = file.read(4096).decode(errors="replace")
    if not start.startswith(_HEAD) or not any(mark in start for mark in _MARKS):
        raise ValueError(f"{page} exists and is not a page of qa-train: choose another out=, or use overwrite=true")


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    # Dates and the like, which YAML knows and JSON does not.
    return value if value is None or isinstance(value, str | int) else str(value)
