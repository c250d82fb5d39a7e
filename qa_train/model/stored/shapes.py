"""Shapes in a configuration, checked against the class's fields and the source."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from qa_train.model.stored.loading import check_limits


def known_fields(given: dict[str, Any], kind: type, section: str) -> dict[str, Any]:
    """``given``; ValueError for a field that ``kind`` does not declare (transformers would keep it unread)."""
    if unknown := sorted(set(given) - {f.name for f in fields(kind)}):
        raise ValueError(f"{section}.config has {', '.join(unknown)}, which {kind.__name__} does not know: remove it")
    check_limits(given, f"{section}.config")
    return given


def must_agree(given: dict[str, Any], found: dict[str, Any], source: str | None) -> None:
    """ValueError if a shape is written for a pretrained source and is not the source's own."""
    for name, value in given.items():
        if found.get(name) != value:
            raise ValueError(
                f"the configuration has {name}={json.dumps(value)}, but {source} has {found.get(name)!r}: "
                "remove the line, or the source"
            )
