"""The file of a clip that a row names: on this machine, at an address, or inside the row itself."""

from __future__ import annotations

from pathlib import Path

from qa_train.data.audio.waveform import BadAudio, read_header, stored_kind
from qa_train.data.shards import storage
from qa_train.data.shards.tar import AUDIO_EXTENSIONS, MAX_MEMBER_BYTES, OTHER_AUDIO_EXTENSIONS
from qa_train.data.text.content import Source, shown


def located(source: Source, *bases: Path) -> Path | Source:
    """A local path, relative to the first of ``bases`` where it exists; addresses and bytes as they are."""
    if isinstance(source, bytes):
        return source
    source = source.removeprefix("file://")
    if "://" in source:
        return source
    path = Path(source).expanduser()
    return next((base / path for base in bases if (base / path).exists()), bases[0] / path if bases else path)


def clip_bytes(clip: Path | Source) -> bytes:
    """The encoded bytes of a clip, fetched where it is an address.

    Raises:
        BadAudio: more bytes than a shard's member may have, or an address of a kind that is not read.
        OSError, RemoteError: the file or its server cannot be read.
    """
    if isinstance(clip, bytes):
        return clip
    if isinstance(clip, str) and clip.split("://", 1)[0] not in storage.SCHEMES:
        raise BadAudio(f"{clip}: addresses are read of {', '.join(storage.SCHEMES[:-1])}")
    with storage.open_binary(str(clip)) as file:
        raw = file.read(MAX_MEMBER_BYTES + 1)
    if len(raw) > MAX_MEMBER_BYTES:
        raise BadAudio(f"{clip}: more than {MAX_MEMBER_BYTES} bytes")
    return raw


def encoded(clip: Path | Source) -> tuple[str, bytes]:
    """The shard's extension for a clip, and its bytes as they are; their header is checked.

    Raises BadAudio for what shards do not hold, and what ``clip_bytes`` raises.
    """
    raw = clip_bytes(clip)
    name = shown(clip) if isinstance(clip, bytes) else str(clip)
    try:
        read_header(raw)
    except BadAudio as error:
        raise BadAudio(f"{name}: {error}") from error
    kind = Path(name.split("?")[0]).suffix[1:].lower()
    return (kind if kind in (*AUDIO_EXTENSIONS, *OTHER_AUDIO_EXTENSIONS) else stored_kind(raw)), raw
