"""Megatron-Energon: WebDataset tars with a folder ``.nv-meta`` of their splits and fields.

The classes and sample loaders that its files name are never imported: what they would do is told by ``columns.``
(https://nvidia.github.io/Megatron-Energon).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Recording, Request
from data_pipelines.corpora.formats.fields import mapping, note_untaken, record_of, untaken
from data_pipelines.corpora.formats.webdataset import apart, clip_of, groups, row_of
from qa_train.data.shards.tar import AUDIO_EXTENSIONS, OTHER_AUDIO_EXTENSIONS
from qa_train.data.stores import storage
from qa_train.utils.safe_yaml import read_yaml

_META = ".nv-meta"
_MAX_BYTES = 1 << 26


def _energon(request: Request) -> Found:
    left: Counter[str] = Counter()
    folders = [Path(given).expanduser() for given in request.paths]
    for folder, part in zip(folders, apart(f"{folder}/{_META}" for folder in folders), strict=True):
        fields = _fields(folder, request)
        counts = _table(folder, ".info.json", ".info.yaml", "shard_counts")
        shards, out = _shards(folder, request, counts)
        for name in shards:
            found = 0
            path = str(folder / name)
            with Path(path).open("rb") as file:
                for key, group in groups(file, path):
                    found += 1
                    label = "-".join(filter(None, (part, str(PurePosixPath(name).with_suffix("")), key)))
                    if f"{name}/{key}" in out:
                        yield Drop(label, "excluded by split.yaml", filter=True)
                        continue
                    try:
                        row = row_of(file, key, group)
                        row = {field: _value(row, accesses) for field, accesses in fields.items()} or row
                        columns = mapping(request.field_columns, row)
                        record = record_of(row, columns)
                        clip = clip_of(key, group, _audio(fields, request))
                    except ValueError as error:
                        yield Drop(label, getattr(error, "reason", "bad record"), f"{path}, {key}: {error}")
                        continue
                    left.update(name for name in untaken(columns, row) if row[name] is not None)
                    yield Item(label, (Recording(path, member=clip.name, offset=clip.offset, size=clip.size),), record)
            if counts.get(name, found) != found:
                yield Drop(name, "wrong count", f"{found} samples, .nv-meta states {counts[name]}: prepare it again")
    note_untaken(request, left)


def _table(folder: Path, *places: str) -> dict[str, Any]:
    """The object ``places[-1]`` in the first file of ``.nv-meta`` that is there; of the whole file for ""; or nothing.

    Raises ValueError for a file that is no object of JSON or YAML.
    """
    *files, name = places
    path = next((folder / _META / file for file in files if (folder / _META / file).is_file()), None)
    if path is None:
        return {}
    raw = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else b""
    try:
        found: Any = json.loads(raw) if path.suffix == ".json" else read_yaml(path)
        found = found.get(name) or {} if name else found
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, found {type(found).__name__}")
    except (ValueError, AttributeError, RecursionError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not as Energon writes it ({problem}): prepare it again") from error
    return found


def _shards(folder: Path, request: Request, counts: dict[str, Any]) -> tuple[list[str], set[str]]:
    """The tars of the split, by their names below ``folder``, and what is excluded: tars and samples."""
    if not (folder / _META).is_dir():
        raise ValueError(f"{folder} has no folder {_META}: give the folder that `energon prepare` was run on")
    parts = _table(folder, "split.yaml", "split.json", "split_parts")
    if not parts:
        request.without_split(str(folder))
    elif request.published_split not in parts:
        raise ValueError(f"{folder} has the splits {', '.join(map(str, parts))}, not {request.published_split!r}")
    listed = _names(folder, parts.get(request.published_split, list(counts)))
    split = _table(folder, "split.yaml", "split.json", "")
    out = {name for pattern in _names(folder, split.get("exclude")) for name in storage.unbraced(pattern)}
    names = [name for pattern in listed for name in storage.unbraced(pattern) if name not in out]
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{folder}: its shard {name!r} is outside the folder: refused")
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: its shard {name!r} is not there: copy the whole set")
    return names, out


def _names(folder: Path, value: Any) -> list[str]:
    if not isinstance(value or [], list) or not all(isinstance(each, str) for each in value or []):
        raise ValueError(f"{folder}: the parts and exclude of its split.yaml must be lists of names")
    return value or []


def _fields(folder: Path, request: Request) -> dict[str, list[str]]:
    """Field -> the members, and objects in them, that may be its value; nothing where code would make the fields."""
    config = _table(folder, "dataset.yaml", "")
    described = config.get("field_map")
    if code := [name for name in ("sample_loader", "part_filter") if name in config]:
        request.notes.append(f"{' and '.join(code)} of dataset.yaml are code and are not run: columns. maps members")
    if not isinstance(described, dict):
        return {}
    if not all(isinstance(word, str) for pair in described.items() for word in pair):
        raise ValueError(f"{folder}: the field_map of its dataset.yaml must map names to members")
    return {field: access.split(",") for field, access in described.items()}


def _value(row: dict[str, Any], accesses: list[str]) -> Any:
    """The first of the members that is there: "txt", "json[caption][en]", "meta.json[turns][0][text]"."""
    for access in accesses:
        member, *inside = access.replace("]", "").split("[")
        kind = member.rpartition(".")[2].lower()
        column = member.lower().removesuffix(f".{kind}").replace(".", "_")
        value: Any = row
        for part in [*([] if member.lower() == "json" else [column]), *inside]:
            known = isinstance(value, list) and part.isdecimal() and int(part) < len(value)
            value = value[int(part)] if known else value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _audio(fields: dict[str, list[str]], request: Request) -> str | None:
    """The extension of the clips: that of the column or field asked for, or of the only field of audio."""
    sounds = {
        field: access
        for field, accesses in fields.items()
        for access in accesses
        if access.rpartition(".")[2].lower() in (*AUDIO_EXTENSIONS, *OTHER_AUDIO_EXTENSIONS)
    }
    wanted = request.columns.get("audio")
    if wanted is not None:
        return sounds.get(wanted, wanted)
    return next(iter(sounds.values())) if len(sounds) == 1 else None


CORPORA = (
    Corpus("energon", "Megatron-Energon: WebDataset tars with a folder .nv-meta", "not stated: set fields.license=",
           "https://github.com/NVIDIA/Megatron-Energon", {"train": TRAIN, "val": DEV, "test": TEST}, _energon,
           ("as in field_map", "or as mapped by columns.FIELD=COLUMN"),
           "splits and field_map are read, classes and sample loaders never run; audio=in_place copies no audio",
           generic=True),
)  # fmt: skip
