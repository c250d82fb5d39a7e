"""A written page as a browser would see it: its tags in order, its scripts, its data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

VOID = frozenset({"meta", "link", "br", "img", "input", "progress"})


class Parsed(HTMLParser):
    """Fails on tags that are closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.policy = ""
        self.sources: list[str] = []
        self.handlers: list[str] = []

    @classmethod
    def of(cls, page: str) -> Parsed:
        parsed = cls()
        parsed.feed(page)
        parsed.close()
        return parsed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.seen.append(tag)
        self.sources += [str(given[name]) for name in ("src", "href") if given.get(name)]
        self.handlers += [name for name in given if name.startswith("on")]
        if tag == "script":
            self.scripts.append((given, ""))
        if tag == "meta" and given.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(given["content"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            given, text = self.scripts[-1]
            self.scripts[-1] = (given, text + data)

    @property
    def board(self) -> Any:
        """The block of data."""
        (text,) = [text for given, text in self.scripts if given.get("type") == "application/json"]
        return json.loads(text)

    def check(self, links: bool = False) -> None:
        """Well-formed, our scripts alone, nothing from elsewhere."""
        assert self.open == []
        assert self.handlers == []
        code = [text for given, text in self.scripts if not given]
        assert len(self.scripts) == len(code) + 1, "one block of data"
        for text in code:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"script-src 'sha256-{digest}';" in self.policy
        assert "default-src 'none'" in self.policy
        assert links or all(source.startswith("data:") for source in self.sources)
        assert not re.search(r"https?:", self.policy)
