"""NeMo's tarred sets: ``audio_0.tar`` next to ``manifest_0.json`` (or one manifest with a ``shard_id`` in each row), of
speech with texts, and of conversations (``multimodal_conversation``).

Rows that name one recording several times, by ``-sub1`` and ``offset``, are parts of it
(NVIDIA/NeMo, scripts/speech_recognition/convert_to_tarred_audio_dataset.py).
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Found, Recording, Request
from data_pipelines.corpora.formats.manifests import RowReader
from data_pipelines.corpora.tree import AUDIO
from qa_train.data.shards.tar import DamagedShard, members
from qa_train.data.stores import storage
from qa_train.data.text.records import BadRecord

_TAR = re.compile(r"audio[^/]*_(\d+)[^/]*\.tar$")
_MANIFEST = re.compile(r"manifest[^/]*_(\d+)[^/]*\.jsonl?(\.gz)?$")
_PART = re.compile(r"(.+)-sub\d+(\.\w+)?")


@dataclass
class _Set:
    """Numbered tars with their manifests, or one manifest for all (number None)."""

    tars: dict[int, Path]
    manifests: dict[int | None, Path]
    label: str = ""
    # What was read of the tars: the last one, and uses of names that it has several times.
    _open: tuple[int, dict[str, list[Recording]]] = (-1, {})
    _named: set[str] = field(default_factory=set)
    _uses: Counter[tuple[int, str]] = field(default_factory=Counter)

    def clip(self, number: int | None, source: Any, row: dict[str, Any], where: str) -> Recording:
        """The member that a row names. A tar may have a name several times: each use is of the next one."""
        if number is None:
            number = row.get("shard_id")
        if type(number) is not int or number not in self.tars:
            raise BadRecord(f"its shard_id is {number!r}: the tars are numbered {_some(self.tars)}")
        if self._open[0] != number:
            self._open, self._named = (number, _members(self.tars[number])), set()
        name, known = str(source), self._open[1]
        part = _PART.fullmatch(name)
        if name not in known and part:
            name = part[1] + (part[2] or "")
        if name not in known:
            raise BadRecord(f"{self.tars[number]} has no member {name!r}", "missing audio")
        self._named.add(name)
        use = self._uses[number, name]
        if len(known[name]) > 1:
            self._uses[number, name] += 1
        return known[name][min(use, len(known[name]) - 1)]

    @property
    def unnamed(self) -> int:
        """Names in the tar read last that no row had."""
        return len(self._open[1]) - len(self._named)


def _members(path: Path) -> dict[str, list[Recording]]:
    found: dict[str, list[Recording]] = {}
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            for member in members(file, str(path), size):
                # Conversations have Lhotse's description of each clip next to it.
                if f".{member.kind}" in AUDIO:
                    place = Recording(str(path), member=member.name, offset=member.offset, size=member.size)
                    found.setdefault(member.name, []).append(place)
        except DamagedShard as damage:
            # NeMo's writer of conversations never ends a tar but the last. Had it lost more, a row would miss its clip.
            if damage.offset != size:
                raise
    return found


def _nemo(request: Request) -> Found:
    sets = list(_sets(request))
    reader = RowReader(request)
    unnamed = 0
    for each in sets:
        for number, path in each.manifests.items():
            stem = path.name.split(".json")[0]
            prefix = f"{each.label}-{stem}" if len(sets) > 1 else stem
            opened: Callable[[], Any] = partial(gzip.open, path) if path.suffix == ".gz" else partial(path.open, "rb")
            with opened() as file:
                yield from reader.items(path.name, file, partial(each.clip, number), prefix)
            unnamed += 0 if number is None else each.unnamed
    if unnamed:
        request.notes.append(f"{unnamed} recordings of the tars are not used by any imported row")
    reader.note()


def _sets(request: Request) -> Iterator[_Set]:
    """The sets of the given folders, or of the files: ``_OP_0..511_CL_`` and ``{0..511}`` stand for several."""
    loose: list[Path] = []
    for given in request.paths:
        for name in storage.unbraced(given.replace("_OP_", "{").replace("_CL_", "}")):
            path = Path(name).expanduser()
            if not path.exists():
                raise ValueError(f"{path} does not exist: give NeMo's audio_N.tar and manifests, or their folder")
            whole = [found for found in map(_of_folder, [path, *_folders(path)]) if found.tars and found.manifests]
            yield from whole
            loose += [] if whole else _files(path)
    if loose:
        tars = [path for path in loose if _TAR.search(path.name)]
        yield _set(tars, [path for path in loose if path not in tars], "files")


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []


def _files(path: Path) -> list[Path]:
    """Tars and manifests right in a folder; a file itself."""
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.iterdir() if _TAR.search(each.name) or _MANIFEST.match(each.name))


def _of_folder(folder: Path) -> _Set:
    """The set of one folder, as NeMo's script leaves it; an empty one when it holds none."""
    files = _files(folder) if folder.is_dir() else []
    tars = [path for path in files if _TAR.search(path.name)]
    manifests = [path for path in files if path not in tars]
    if tars and not manifests:
        manifests = _files(folder / "sharded_manifests") if (folder / "sharded_manifests").is_dir() else []
        manifests = manifests or sorted(folder.glob("tarred_audio_manifest*.json"))[-1:]
    return _set(tars, manifests, folder.name) if tars and manifests else _Set({}, {})


def _set(tars: list[Path], manifests: list[Path], label: str) -> _Set:
    """Tars and manifests joined by their numbers; ValueError when these do not agree."""
    numbered = _numbered(tars, _TAR)
    if not tars or not manifests:
        both = "give both; import jsonl reads manifests of files"
        raise ValueError(f"{label}: {len(tars)} audio_N.tar and {len(manifests)} manifests: {both}")
    if len(manifests) == 1:
        only = next(iter(numbered)) if len(tars) == 1 else None
        return _Set(numbered, {only: manifests[0]}, label)
    listed = _numbered(manifests, _MANIFEST)
    if odd := sorted(set(listed) ^ set(numbered)):
        raise ValueError(
            f"{label}: manifests are numbered {_some(listed)}, tars {_some(numbered)}: number {odd[0]} lacks one"
        )
    return _Set(numbered, dict(sorted(listed.items())), label)


def _numbered(paths: list[Path], pattern: re.Pattern[str]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in paths:
        number = pattern.search(path.name)
        if number is None:
            raise ValueError(f"{path}: expected a name such as audio_0.tar or manifest_0.json")
        if (other := found.setdefault(int(number[1]), path)) != path:
            raise ValueError(f"{path} and {other} have the same number: import their folders")
    return dict(sorted(found.items()))


def _some(numbers: Any) -> str:
    known = sorted(numbers)
    return f"{known[0]} to {known[-1]} ({len(known)})" if known else "none"


CORPORA = (
    Corpus("nemo", "NeMo: audio_N.tar with manifest_N.json, of speech or conversations",
           "not stated: set fields.license=", "https://github.com/NVIDIA/NeMo",
           {"train": TRAIN, "dev": DEV, "test": TEST}, _nemo,
           ("text", "language", "messages", "or as mapped"),
           "a folder, or [audio__OP_0..511_CL_.tar,manifest__OP_0..511_CL_.json]; audio=in_place copies no audio",
           generic=True),
)  # fmt: skip
