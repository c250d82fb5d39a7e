"""Reading clips back from finished shards, for pipelines that build on other shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipelines.clips.clip import Clip
from qa_train.data.audio.waveform import read_clip
from qa_train.data.shards.index import load_index


def file_digest(path: Path) -> str:
    """SHA-256 of a file, so that what is built from it is rebuilt when it changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_shard(path: Path, keep: Callable[[dict[str, Any]], bool] = lambda record: True) -> Iterator[Clip]:
    """The clips of a shard in its order, each with its first (own) recording decoded to 16 kHz.

    Clips with a false ``keep`` of their record are skipped without being decoded.
    """
    rows = load_index(str(path)).table.to_pylist()
    with path.open("rb") as file:
        for row in rows:
            record = json.loads(row["meta"])
            if not keep(record):
                continue
            file.seek(row["offsets"][0])
            wave = read_clip(file.read(row["sizes"][0]))
            yield Clip(row["key"], wave, record)
