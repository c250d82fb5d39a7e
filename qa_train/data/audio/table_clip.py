"""Clips in a Parquet file, addressed as if it were a folder: ``test-00000-of-00001.parquet/17`` is row 17."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from qa_train.data.audio.waveform import BadAudio


def clip_source(path: str | Path) -> Path | bytes:
    """What a decoder opens for a clip: the file itself, or the encoded bytes of a row of a Parquet file.

    Raises:
        BadAudio: a Parquet file without such a row, or a row without audio.
    """
    path = Path(path)
    if path.parent.suffix != ".parquet" or not path.parent.is_file():
        return path
    if not path.name.isdecimal():
        raise BadAudio(f"{path}: rows of a Parquet file are named by their number")
    file = pyarrow.parquet.ParquetFile(path.parent)
    column, row = audio_column(file.schema_arrow), int(path.name)
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            raw = _group(str(path.parent), group, str(column))[row].as_py()
            raw = raw.get("bytes") if isinstance(raw, dict) else raw
            if not raw:
                break
            return bytes(raw)
        row -= rows
    raise BadAudio(f"{path}: no audio in this row")


def audio_column(schema: pyarrow.Schema) -> str | None:
    """The column of encoded audio: a struct with bytes, as Hugging Face's datasets have it, or plain bytes; or None."""
    for field in schema:
        inner = field.type
        if pyarrow.types.is_struct(inner) and inner.get_field_index("bytes") >= 0:
            return str(field.name)
    return next((str(f.name) for f in schema if pyarrow.types.is_binary(f.type) and f.name == "audio"), None)


def table_rows(path: Path) -> list[dict[str, Any]]:
    """The cells of every row without the audio; ``audio`` gets its location (see ``clip_source``).

    Raises:
        ValueError: not a Parquet file, or one without audio.
    """
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error})") from error
    column = audio_column(file.schema_arrow)
    if column is None:
        raise ValueError(f"{path}: none of its columns ({', '.join(file.schema_arrow.names)}) holds audio")
    others = [name for name in file.schema_arrow.names if name != column]
    found = []
    for number, row in enumerate(file.read(columns=others).to_pylist()):
        found.append(row | {"audio": str(path / str(number))})
    return found


@lru_cache(maxsize=2)
def _group(path: str, group: int, column: str) -> pyarrow.ChunkedArray:
    """A column of a row group: neighbouring clips are read together."""
    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=[column])[column]
