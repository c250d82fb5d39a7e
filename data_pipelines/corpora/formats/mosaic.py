"""MosaicML's MDS shards (mosaicml-streaming): ``index.json`` and ``shard.00000.mds``, plain or compressed.

A shard is the number of its samples, where each begins, a header, and the samples: sizes of the columns without a fixed
size, then the columns (mosaicml/streaming, streaming/base/format/mds). Pickled columns are never loaded.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Recording, Request
from data_pipelines.corpora.formats.fields import AUDIO_COLUMNS, cell_at, mapping, note_untaken, record_of, untaken
from data_pipelines.corpora.recordings import MAX_UNPACKED_BYTES, unpacked
from qa_train.data.shards.tar import MAX_MEMBER_BYTES
from qa_train.data.text.records import MAX_JSON_BYTES, BadRecord, decode_text

_INDEX = "index.json"
_MAX_INDEX_BYTES = 1 << 28
# By the names of the library: ending of the file -> name in pyarrow.
_PACKED = {"zstd": "zstd", "gz": "gzip", "bz2": "bz2", "br": "brotli"}
_NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
# What a column of each encoding holds; of others (arrays, pictures, pickles) nothing is read.
_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "str": lambda raw: decode_text(raw, "a column of text"),
    "json": lambda raw: json.loads(raw),
    "int": lambda raw: int.from_bytes(raw, "little", signed=True),
    "str_int": lambda raw: int(raw),
    "str_float": lambda raw: float(raw),
    # As it is written: a float has fewer digits.
    "str_decimal": lambda raw: decode_text(raw, "a column of numbers"),
    **{name: lambda raw, name=name: _number(np.frombuffer(raw, f"<{np.dtype(name).str[1:]}")[0]) for name in _NUMBERS},  # type: ignore[misc]
}


def _number(value: Any) -> Any:
    """A number of numpy by its shortest digits: 0.1 of 32 bits is 0.1."""
    return float(str(value)) if isinstance(value, np.floating) else value.item()


@dataclass(frozen=True)
class _Shard:
    """A shard as the index describes it; ``packed``: its compression."""

    path: Path
    packed: str
    size: int
    samples: int
    columns: tuple[tuple[str, str, int | None], ...]


def _mosaic(request: Request) -> Found:
    left: Counter[str] = Counter()
    number = -1
    for folder in map(Path, request.paths):
        for shard in _shards(folder.expanduser(), request):
            audio = _audio_column(shard, request)
            with _opened(shard) as file:
                for begin, end in _bounds(file, shard):
                    number += 1
                    name = f"{number:08d}"
                    try:
                        row, clip = _sample(file, shard, begin, end, audio)
                        columns = mapping(request.field_columns, row)
                        columns.pop("audio", None)
                        record = record_of(row, columns)
                        name = str(cell_at(row, columns["key"])) if "key" in columns else name
                    except (ValueError, RecursionError, IndexError, KeyError, TypeError) as error:
                        yield Drop(name, getattr(error, "reason", "bad record"), f"{shard.path}, byte {begin}: {error}")
                        continue
                    left.update(n for n in untaken(columns, row) if n != audio)
                    if request.takes(record):
                        place = Recording(str(shard.path), offset=clip[0], size=clip[1], packed=shard.packed)
                        yield Item(name, (place,), record)
    note_untaken(request, left)


def _shards(folder: Path, request: Request) -> Iterator[_Shard]:
    """The shards of the split, a folder in ``folder``, or else of the whole set.

    Raises ValueError for an index that is no such index, and for a shard that is not there or has another size.
    """
    split = folder / request.published_split
    place = split if (split / _INDEX).is_file() else folder
    path = place / _INDEX
    if not path.is_file():
        raise ValueError(f"{folder} has no {_INDEX}, nor has a folder {request.published_split} in it: give an MDS set")
    if place is folder:
        request.without_split(str(folder))
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        for entry in json.loads(path.read_bytes())["shards"]:
            yield _shard(place, entry)
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not an index of MDS version 2 ({error!r})") from error


def _shard(place: Path, entry: dict[str, Any]) -> _Shard:
    names, encodings, sizes = (entry[f"column_{kind}"] for kind in ("names", "encodings", "sizes"))
    columns = tuple(zip(map(str, names), map(str, encodings), sizes, strict=True))
    raw, zipped = entry["raw_data"], entry["zip_data"]
    packed = ""
    if zipped and not (place / _plain(raw["basename"])).is_file():
        kind = str(entry["compression"]).partition(":")[0]
        if kind not in _PACKED:
            raise ValueError(f"{place}: its shards are compressed by {kind!r}; {', '.join(_PACKED)} are read")
        packed = _PACKED[kind]
    path, told = place / _plain((zipped if packed else raw)["basename"]), (zipped if packed else raw)["bytes"]
    numbers = (raw["bytes"], entry["samples"], *(size for size in sizes if size is not None))
    if entry["format"] != "mds" or entry["version"] != 2 or any(type(n) is not int or n < 0 for n in numbers):
        raise TypeError(f"{path.name}: its format, version, sizes or counts")
    if not path.is_file() or path.stat().st_size != told:
        found = f"has {path.stat().st_size} bytes" if path.is_file() else "is not there"
        raise ValueError(f"{path} {found}, {_INDEX} states {told}: copy it again")
    if packed and raw["bytes"] > MAX_UNPACKED_BYTES:
        raise ValueError(f"{path} unpacks to {raw['bytes']} bytes; at most {MAX_UNPACKED_BYTES} are read: unpack it")
    return _Shard(path, packed, raw["bytes"], entry["samples"], columns)


def _plain(name: Any) -> str:
    """The name of a shard, which merge_index() begins with the folder of its part."""
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"its shard {str(name)[:80]!r} is outside the folder: refused")
    return name


def _opened(shard: _Shard) -> IO[bytes]:
    if not shard.packed:
        return shard.path.open("rb")
    raw = unpacked(str(shard.path), shard.packed)
    if len(raw) != shard.size:
        raise ValueError(f"{shard.path} unpacks to {len(raw)} bytes, {_INDEX} states {shard.size}: copy it again")
    return io.BytesIO(raw)


def _bounds(file: IO[bytes], shard: _Shard) -> list[tuple[int, int]]:
    """First and last byte of each sample; ValueError when they are not those of a shard of its size."""
    head = 4 * (shard.samples + 2)
    raw = file.read(head) if head <= shard.size else b""
    numbers = np.frombuffer(raw, "<u4").astype(np.int64) if len(raw) == head else np.zeros(2, np.int64)
    places = numbers[1:]
    if numbers[0] != shard.samples or (np.diff(places) < 0).any() or places[0] < head or places[-1] != shard.size:
        raise ValueError(f"{shard.path}: it is damaged, or no MDS shard of {shard.samples} samples: copy it again")
    return list(zip(places[:-1].tolist(), places[1:].tolist(), strict=True))


def _sample(file: IO[bytes], shard: _Shard, begin: int, end: int, audio: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """The columns that can be read, and (offset, size) of the clip, which is not read."""
    file.seek(begin)
    open_sizes = sum(size is None for _, _, size in shard.columns)
    head = file.read(4 * open_sizes) if 4 * open_sizes <= end - begin else b""
    stated = iter(np.frombuffer(head, "<u4").tolist())
    sizes = [next(stated, -1) if size is None else size for _, _, size in shard.columns]
    if min(sizes) < 0 or len(head) + sum(sizes) != end - begin or max(sizes) > MAX_MEMBER_BYTES:
        raise BadRecord("the sizes of its columns are not that of the sample, or beyond those of clips")
    row: dict[str, Any] = {}
    at, clip = begin + len(head), (0, 0)
    for (name, encoding, _), size in zip(shard.columns, sizes, strict=True):
        if name == audio:
            clip = (at, size)
        decode = _DECODERS.get(encoding)
        if name != audio and decode is not None and size <= MAX_JSON_BYTES:
            file.seek(at)
            row[name] = decode(file.read(size))
        else:
            row[name] = None
        at += size
    return row, clip


def _audio_column(shard: _Shard, request: Request) -> str:
    """The column of encoded clips: the wanted one, the only one of bytes, or one so named."""
    files = [name for name, encoding, _ in shard.columns if encoding == "bytes"]
    wanted = request.columns.get("audio")
    if wanted is None:
        wanted = files[0] if len(files) == 1 else next((name for name in AUDIO_COLUMNS if name in files), None)
    if wanted not in files:
        kinds = ", ".join(f"{name} ({encoding})" for name, encoding, _ in shard.columns)
        raise ValueError(
            f"{shard.path}: no column {wanted or 'of bytes'} with the files of clips among {kinds}: say columns.audio="
        )
    return wanted


CORPORA = (
    Corpus("mosaic", "MosaicML's MDS shards: index.json, shard.00000.mds", "not stated: set fields.license=",
           "https://github.com/mosaicml/streaming", {"train": TRAIN, "val": DEV, "test": TEST}, _mosaic,
           ("as mapped by columns.FIELD=COLUMN",),
           "clips as files in a column of bytes; zstd, gz, bz2 and br are unpacked; pickles are not loaded; "
           "audio=in_place copies no audio of plain shards", generic=True),
)  # fmt: skip
