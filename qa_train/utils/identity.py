"""Cache keys compared by identity instead of equality."""

from __future__ import annotations

from typing import Any


class ById:
    """Hash something by identity: tokenizers, for example, have neither a cheap equality nor a hash."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other.thing is self.thing
