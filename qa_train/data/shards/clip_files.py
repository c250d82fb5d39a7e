"""The file of a clip that a row names: on this machine, at an address, or inside the row itself."""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from qa_train.config import StorageConfig
from qa_train.data.audio.waveform import BadAudio, read_header, stored_kind
from qa_train.data.shards.tar import AUDIO_EXTENSIONS, MAX_MEMBER_BYTES, OTHER_AUDIO_EXTENSIONS
from qa_train.data.stores import storage
from qa_train.data.stores.remote import RemoteError
from qa_train.data.text.chat_rows import parts_of
from qa_train.data.text.content import Source, shown
from qa_train.data.text.records import BadRecord

# A list may hold thousands of addresses of a server that is gone.
FETCHING = StorageConfig(retries=2)
# Lists round lengths; a clip that is shorter by more is a part of the file.
ROUNDED_S = 0.1


def there(path: Path, kind: Callable[[Path], bool] = Path.is_file) -> bool:
    """Whether there is such a file; False for what the file system does not take as a name, too."""
    try:
        return kind(path)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def spelt(folder: Path, name: str) -> Path:
    """The file ``name`` below ``folder`` as it is spelt there: a Mac writes "é" as two characters (NFD), lists seldom
    do. Where there is none, as it is written.
    """
    path = folder / name
    if name.isascii() or there(path, Path.exists):
        return path
    found = folder
    for part in Path(name).parts:
        forms = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found = next((found / form for form in forms if there(found / form, Path.exists)), found / part)
    return found if there(found, Path.exists) else path


def located(source: Source, *bases: Path) -> Path | Source:
    """A local path, relative to the first of ``bases`` where it exists (see `spelt`); addresses and bytes unchanged.

    Raises BadRecord for what cannot be a path, such as a long transcript.
    """
    if isinstance(source, bytes):
        return source
    try:
        if source.startswith("file://"):
            source = source.removeprefix("file://")
            source = source if Path(source).exists() else unquote(source)
        if "://" in source:
            return source
        name = str(Path(source).expanduser())
        places = [spelt(base, name) for base in bases or (Path(),)]
        return next((place for place in places if place.exists()), places[0])
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise BadRecord(f"it names no audio file: {source[:100]!r} ({error.strerror})") from None


def clip_bytes(clip: Path | Source, cfg: StorageConfig = FETCHING) -> bytes:
    """The encoded bytes of a clip, fetched where it is an address; ``cfg``: how.

    Raises:
        BadAudio: more bytes than a shard's member may have, or an address that cannot be read.
        OSError: a file that cannot be read.
    """
    if isinstance(clip, bytes):
        return clip
    name = str(clip)
    if "://" in name and name.split("://", 1)[0] not in storage.SCHEMES:
        raise BadAudio(f"{name}: addresses are read of {', '.join(storage.SCHEMES[:-1])}")
    try:
        with storage.open_binary(name, cfg) as file:
            raw = file.read(MAX_MEMBER_BYTES + 1)
    except (RemoteError, OSError) as error:
        if "://" not in name:
            raise
        raise BadAudio(f"{name} cannot be fetched, download it and list the file ({error})") from error
    if len(raw) > MAX_MEMBER_BYTES:
        raise BadAudio(f"{name}: more than {MAX_MEMBER_BYTES} bytes")
    return raw


def refuse_parts(row: dict[str, Any], clips: Sequence[Path | Source]) -> None:
    """Check that a chat's clips are whole files, for readers that do not cut. Unreadable clips are left to the reader.

    Raises:
        BadRecord: the row states that a clip is shorter than its file (see ``parts_of``).
    """
    for clip, (_, length) in zip(clips, parts_of(row, len(clips)), strict=True):
        if length is None:
            continue
        try:
            frames, rate = read_header(clip_bytes(clip))
        except (BadAudio, OSError):
            continue
        if length < frames / rate - ROUNDED_S:
            raise BadRecord(
                f"a clip with 'duration' {length:g} is {frames / rate:.2f} s long: cut the file, or let "
                "qa-train data import jsonl do it"
            )


def encoded(clip: Path | Source) -> tuple[str, bytes]:
    """The shard's extension for a clip, and its unchanged bytes; their header is checked. Raises the errors of
    ``clip_bytes``, and BadAudio for formats that shards do not support.
    """
    raw = clip_bytes(clip)
    name = shown(clip) if isinstance(clip, bytes) else str(clip)
    try:
        read_header(raw)
    except BadAudio as error:
        raise BadAudio(f"{name}: {error}") from error
    kind = Path(name.split("?")[0]).suffix[1:].lower()
    return (kind if kind in (*AUDIO_EXTENSIONS, *OTHER_AUDIO_EXTENSIONS) else stored_kind(raw)), raw
