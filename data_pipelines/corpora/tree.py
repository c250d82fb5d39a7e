"""The files of a corpus: folders, .tar and .zip archives seen as one set of names, read in place.

Names are relative and use "/". Archives are never unpacked, and a name that leaves the corpus is refused.
"""

from __future__ import annotations

import csv
import fnmatch
import gzip
import io
import json
import os
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any

from data_pipelines.corpora.recordings import OTHER_AUDIO, Recording, open_zip, zip_member
from qa_train.data.audio.structure.formats import other_file
from qa_train.data.shards.clip_files import spelt, there
from qa_train.data.shards.tar import AUDIO_EXTENSIONS, members
from qa_train.data.text.json_rows import Row, array_items, rows
from qa_train.data.text.records import BadRecord

AUDIO = tuple(f".{kind}" for kind in AUDIO_EXTENSIONS)
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Tree:
    """The union of the given folders and archives. ``names`` are listed once, when first needed."""

    def __init__(self, paths: Sequence[str]) -> None:
        if not paths:
            raise ValueError("no path is given: name the corpus's folder or archives, path=...")
        given: dict[str, str] = {}
        for path in (str(Path(path).expanduser()) for path in paths):
            # One place may be given twice, by a link or another spelling.
            given.setdefault(os.path.realpath(path), path)
        self.paths = list(given.values())
        self.folders = [path for path in self.paths if Path(path).is_dir()]
        self.archives: list[str] = []
        # What `by_name` found under other capitals.
        self.other_capitals: list[str] = []
        # Lists: their names -> their paths.
        self.named: dict[str, str] = {}
        for path in self.paths:
            low = path.lower()
            if not Path(path).exists():
                raise ValueError(f"{path} does not exist: give the corpus's folder, or its .tar or .zip archives")
            if low.endswith(_PACKED):
                raise ValueError(
                    f"{path} is a compressed tar, which can only be read from its beginning: unpack it first "
                    f"(tar xf), or decompress it to a plain .tar"
                )
            if low.endswith((".tar", ".zip")):
                self.archives.append(path)
            elif not Path(path).is_dir():
                other = self.named.setdefault(Path(path).name, path)
                if other != path:
                    raise ValueError(f"{other} and {path} have one name: give their folder, or rename one")

    @cached_property
    def _archived(self) -> dict[str, list[Recording]]:
        """Where the files of each name, composed, lie; of one archive, the first."""
        found: dict[str, list[Recording]] = {}
        for place in chain.from_iterable(map(_members, self.archives)):
            name = _clean(place.member)
            # Like hidden files of folders: what macOS adds to archives ("._clip.wav") is not audio.
            if not _hidden(name):
                places = found.setdefault(_composed(name), [])
                if not places or places[-1].path != place.path:
                    places.append(place)
        return found

    @cached_property
    def names(self) -> list[str]:
        """All files, sorted."""
        found = set(self._archived)
        for root in self.folders:
            for folder, subfolders, files in os.walk(root):
                subfolders[:] = [name for name in subfolders if not name.startswith(".")]
                relative = os.path.relpath(folder, root).replace(os.sep, "/")
                prefix = "" if relative == "." else relative + "/"
                found.update(prefix + name for name in files if not name.startswith("."))
        found.update(self.named)
        return sorted(found)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.names:
            path = PurePosixPath(name)
            if path.suffix.lower() in (*AUDIO, *OTHER_AUDIO):
                found.setdefault(_composed(path.stem), []).append(name)
        return found

    def glob(self, *patterns: str) -> list[str]:
        """Names that match a pattern ("*" crosses folders) at the start of the name or after a folder."""
        wanted = [p for pattern in patterns for p in (pattern, f"*/{pattern}")]
        return [name for name in self.names if any(fnmatch.fnmatchcase(name, p) for p in wanted)]

    def need(self, *patterns: str, what: str) -> list[str]:
        """Like glob; finding none is an error with the pattern."""
        found = self.glob(*patterns)
        if not found:
            raise ValueError(
                f"no {what} under {', '.join(self.paths)}: expected {' or '.join(patterns)} (the layout in which the "
                "corpus is published)"
            )
        return found

    def by_stem(self, *stems: str, folder: str = "") -> str | None:
        """The first audio file named like one of ``stems``; None if there is none.

        Formats that can be read come before those that cannot. ``folder``: as of `audio_names`.
        """
        for name in stems:
            found = (path for path in self._by_stem.get(_composed(name), ()) if f"/{folder}" in f"/{path}")
            if path := min(found, key=lambda path: (not path.lower().endswith(AUDIO), path), default=None):
                return path
        return None

    def all_by_stem(self, name: str, within: str = "") -> list[str]:
        """All audio files of that stem in the folder ``within`` (from the top; "" or "." is the top) and below it.

        Sorted; formats that cannot be read only where there is no other.
        """
        top = "" if within in ("", ".") else f"{within}/"
        found = [path for path in self._by_stem.get(_composed(name), ()) if path.startswith(top)]
        return [path for path in found if path.lower().endswith(AUDIO)] or found

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(_composed(PurePosixPath(name).name).lower(), []).append(name)
        return found

    def by_name(self, name: str) -> Recording | None:
        """The only file of that name, in whatever folder; None if there is none, or if there are several.

        Where there is none: the only one whose name differs in capitals, which Windows and macOS do not tell apart.
        """
        likely = self._by_name.get(_composed(name).lower(), [])
        equal = [path for path in likely if _composed(PurePosixPath(path).name) == _composed(name)]
        found = equal or likely
        if len(found) != 1:
            return None
        if not equal:
            self.other_capitals.append(f"{name} as {found[0]}")
        return self.recording(found[0])

    def audio_names(self, folder: str = "") -> Iterator[str]:
        """All audio files, sorted; a video only without a sound file next to it.

        ``folder`` is the beginning of the name of a folder, at any depth, that they lie in: "id1", "slurp_real/".
        """
        plain = {name.rpartition(".")[0] for name in self.names if name.lower().endswith(AUDIO)}
        for name in self.names:
            other = name.lower().endswith(OTHER_AUDIO) and name.rpartition(".")[0] not in plain
            if f"/{folder}" in f"/{name}" and (other or name.lower().endswith(AUDIO)):
                yield name

    def places(self, name: str) -> list[Recording]:
        """Where the file ``name`` lies: the list that path= names so, or else the file in each folder and archive.

        Of the only folder, whether it is there is seen when it is read.
        """
        name = _clean(name)
        if name in self.named:
            return [Recording(self.named[name])]
        found = [*self._archived.get(_composed(name), ())] if self.archives else []
        several = len(self.folders) + len(self.archives) > 1
        files = [spelt(Path(root), name) for root in self.folders]
        return found + [Recording(str(file)) for file in files if not several or there(file)]

    def recording(self, name: str, start_s: float = 0.0, end_s: float | None = None) -> Recording:
        """The file ``name``, or a segment of it; that it does not exist is seen when it is read.

        Raises:
            BadRecord: several folders or archives have a file of that name, of other contents ("ambiguous file").
        """
        found = self.places(name)
        # Archives of parts of a corpus repeat its lists.
        if not all(_equal(found[0], other) for other in found[1:]):
            homes = " and ".join(place.path.removesuffix(f"/{name}") for place in found[:2])
            raise BadRecord(
                f"{name} is in {homes}: import them one after the other, or give the folder that holds both "
                "(paths in a list must then begin with that folder)",
                "ambiguous file",
            )
        first = Path(next(iter(self.folders), ""))
        return replace(found[0] if found else Recording(str(first / _clean(name))), start_s=start_s, end_s=end_s)

    def open(self, name: str) -> IO[bytes]:
        """A list or table of the corpus for reading (bytes); ``.gz`` is decompressed.

        Raises ValueError for what stands in the place of a list: a Git LFS pointer, an HTML page, an archive.
        """
        stream = _opened(self.recording(name))
        head, packed = stream.read(64), name.endswith(".gz")
        stream.seek(0)
        if (other := other_file(head)) and not (packed and head.startswith(b"\x1f\x8b")):
            stream.close()
            raise ValueError(f"{name} is not a list but {other}")
        return gzip.open(stream) if packed else stream  # type: ignore[return-value]

    def lines(self, name: str, encoding: str = "utf-8-sig") -> Iterator[str]:
        """The lines of a text file without their ends; ValueError names the file when it is not text."""
        with self.open(name) as file:
            try:
                for line in io.TextIOWrapper(file, encoding=encoding, newline=None):
                    yield line.rstrip("\n")
            except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{name}: cannot be read as {encoding} text: {error}") from error

    def pairs(self, name: str) -> Iterator[tuple[str, str]]:
        """(first word, rest) of each line that is not empty: transcripts, wav.scp, utt2spk."""
        for line in self.lines(name):
            words = line.split(maxsplit=1)
            if words:
                yield words[0], words[1].strip() if len(words) > 1 else ""

    def table(self, name: str, needs: Sequence[str] = (), *, header: Sequence[str] | None = None,
              delimiter: str = ",", quoted: bool = True, escape: str | None = None,
              encoding: str = "utf-8-sig") -> Iterator[dict[str, str]]:  # fmt: skip
        """Rows of a CSV or TSV; ``header`` names the columns of a file without a header line.

        Raises ValueError when a column of ``needs`` is missing, or a row has more cells than the header.
        """
        with self.open(name) as file:
            text = io.TextIOWrapper(file, encoding=encoding, newline="")
            rows: csv.DictReader[str] = csv.DictReader(
                text,
                list(header) if header else None,
                delimiter=delimiter,
                quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
                escapechar=escape,
            )
            try:
                missing = [column for column in needs if column not in (rows.fieldnames or ())]
                if missing:
                    raise ValueError(f"{name}: no column {missing}; it has {list(rows.fieldnames or ())}")
                for row in rows:
                    if None in row:
                        raise ValueError(f"{name}, line {rows.line_num}: more cells than the header has")
                    yield {key: value or "" for key, value in row.items()}
            except (UnicodeDecodeError, csv.Error) as error:
                raise ValueError(f"{name}, after line {rows.line_num}: {error}") from error

    def json(self, name: str) -> Any:
        """A JSON file as a whole."""
        with self.open(name) as file:
            try:
                return json.load(file)
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ValueError(f"{name}: not JSON ({error})") from error

    def objects(self, name: str, key: str | None = None) -> Iterator[dict[str, Any]]:
        """The objects of the list at the top of a JSON file, or of its list ``key``, one at a time."""
        with self.open(name) as file:
            try:
                for found, _ in array_items(io.TextIOWrapper(file, encoding="utf-8-sig"), key):
                    if not isinstance(found, dict):
                        raise ValueError(f"expected a list of objects, found {type(found).__name__}")
                    yield found
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

    def beside(self, name: str, *parts: str) -> str:
        """A path relative to the folder of the file ``name``."""
        return _clean(str(PurePosixPath(name).parent.joinpath(*parts)))


def _members(archive: str) -> Iterator[Recording]:
    if archive.lower().endswith(".zip"):
        for info in open_zip(archive).infolist():
            if not info.is_dir():
                yield Recording(archive, member=info.filename)
        return
    with Path(archive).open("rb") as file:
        for member in members(file, archive, Path(archive).stat().st_size):
            yield Recording(archive, member=member.name, offset=member.offset, size=member.size)


def _opened(place: Recording) -> IO[bytes]:
    if place.offset is not None:
        with Path(place.path).open("rb") as file:
            file.seek(place.offset)
            return io.BytesIO(file.read(place.size))
    return zip_member(place.path, place.member) if place.member else Path(place.path).open("rb")


def _equal(one: Recording, other: Recording) -> bool:
    with _opened(one) as first, _opened(other) as second:
        while (block := first.read(1 << 20)) == second.read(1 << 20):
            if not block:
                return True
    return False


def unbroken(listed: str, file: IO[bytes]) -> Iterator[Row]:
    """The rows of a list of JSON objects; ValueError where a compressed one breaks."""
    try:
        yield from rows(file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{listed}: cannot be unpacked ({error}): copy it again") from error


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/")) or name.startswith("__MACOSX/")


def _clean(name: str) -> str:
    """The name without "./" and with its ".." resolved; ValueError when it leaves the corpus."""
    clean = os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/")
    if clean.startswith(("../", "/")) or clean == "..":
        raise ValueError(f"{name!r} is outside the corpus: refused")
    return clean
