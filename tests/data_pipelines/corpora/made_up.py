"""Tiny corpora in their official layouts, made by code: every recording is a tone whose pitch tells the file."""

from __future__ import annotations

import io
import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile

from data_pipelines.importing.admission import plain

SECONDS = 0.4
_FORMATS = {
    ".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".opus": ("OGG", "OPUS"), ".ogg": ("OGG", "VORBIS"),
    ".sph": ("NIST", "PCM_16"),
}  # fmt: skip


def pitch_of(name: str) -> int:
    """Hz of the tone in the file of that name: 300 to 2280 in steps of 20."""
    return 300 + 20 * (zlib.crc32(name.encode()) % 100)


def tone(name: str, seconds: float = SECONDS, rate: int = 16_000) -> bytes:
    """The encoded tone of a file; its extension decides the format."""
    container, subtype = _FORMATS[Path(name).suffix]
    wave = 0.3 * np.sin(2 * np.pi * pitch_of(name) * np.arange(round(seconds * rate)) / rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def heard(wave: np.ndarray) -> float:
    """Hz of the loudest frequency of a waveform at 16 kHz."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 15))
    return float(np.argmax(spectrum)) * 16_000 / (1 << 15)


def write_tree(root: Path, files: dict[str, Any]) -> Path:
    """Write files: text or bytes as they are, lists and dicts as JSON, numbers as tones of so many seconds."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int | float):
            content = tone(name, content)
        elif isinstance(content, list | dict):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def table_bytes(rows: list[dict[str, Any]], metadata: dict[str, Any] | None = None) -> bytes:
    """Rows as a Parquet file with two row groups."""
    table = pyarrow.Table.from_pylist(rows)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    buffer = io.BytesIO()
    # Plain bytes: a test can find a clip in the file and damage it.
    options = {"compression": "none", "use_dictionary": False}
    pyarrow.parquet.write_table(table, buffer, row_group_size=max(1, len(rows) // 2), **options)
    return buffer.getvalue()


def audio_cell(name: str) -> dict[str, Any]:
    """A cell of an audio column as Hugging Face stores it."""
    return {"bytes": tone(name), "path": name}


@dataclass
class Case:
    """A corpus on disk and what its import must give.

    ``records``: item name -> (the file that its first clip comes from, the record's fields).
    """

    corpus: str
    split: str
    files: dict[str, Any]
    records: dict[str, tuple[str, dict[str, Any]]]
    dropped: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    purpose: str = "train"

    @property
    def keys(self) -> dict[str, str]:
        """Item name -> key of its record."""
        return {name: f"{self.corpus}-{self.split}-{plain(name)}" for name in self.records}

    def __str__(self) -> str:
        return f"{self.corpus}-{self.split}"
