"""Reading clips back from finished shards, for pipelines that build on other shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.clip import Clip
from qa_train.data.audio import read_clip
from qa_train.data.index import load_index


def file_digest(path: Path) -> str:
    """SHA-256 of a file, so that what is built from it is rebuilt when it changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_shard(path: Path) -> Iterator[Clip]:
    """The clips of a shard in its order, each with its first (own) recording decoded to 16 kHz."""
    rows = load_index(str(path)).table.to_pylist()
    with path.open("rb") as file:
        for row in rows:
            file.seek(row["offsets"][0])
            wave = read_clip(file.read(row["sizes"][0]))
            yield Clip(row["key"], wave, json.loads(row["meta"]))
