"""SHA-256 of a file, and of a value: by them answers, shards and weights are known to be the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, Any


def sha256_of_file(path: Path) -> str:
    """Of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return sha256_of_open(file)


def sha256_of_open(file: IO[bytes]) -> str:
    """Of the bytes of an open file from its position on, read in blocks."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def sha256_of(value: Any) -> str:
    """Of a value as JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
