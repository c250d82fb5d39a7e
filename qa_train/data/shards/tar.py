"""Strict reading of WebDataset tars: regular files (and hard links to them) only, bounded, and no silent end.

Python's ``tarfile`` stops silently at a damaged header, at a cut between members and at
zero blocks in the middle, and reads extended headers of any size into memory. Here each of these is
an error that names the shard, the last good key and the byte offset. Member names are only ever
keys, never paths. The formats are ustar, GNU long names and PAX (POSIX.1-2001, pax, "ustar Interchange Format").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from qa_train.data.audio.structure.formats import other_file

AUDIO_EXTENSIONS = ("flac", "wav", "ogg", "opus", "mp3")
# What libsndfile does not read: decoded by the extra ``media``, or refused by name.
MEDIA_EXTENSIONS = ("m4a", "m4b", "mp4", "mov", "3gp", "aac", "webm", "weba", "mka", "mkv", "wma", "spx", "amr", "ac3",
                    "voc", "ape", "wv", "tta", "avi", "flv")  # fmt: skip
# Read although shards are not written so. Next to a clip of the first kind they are not the record's audio (a video
# next to its sound).
OTHER_AUDIO_EXTENSIONS = ("oga", "aif", "aiff", "aifc", "au", "caf", "w64", "sph", "mp2", *MEDIA_EXTENSIONS)
TEXT_EXTENSIONS = ("json", "txt")
_KINDS = {*AUDIO_EXTENSIONS, *OTHER_AUDIO_EXTENSIONS, *TEXT_EXTENSIONS}
MAX_MEMBER_BYTES = 1 << 29
MAX_MEMBERS = 500_000
MAX_NAME_BYTES = 4096
MAX_EXTENDED_BYTES = 1 << 16
# Headers that only describe the next member: its name, its link, and PAX records.
MAX_EXTENDED_HEADERS = 8
_BLOCK = 512
_REGULAR, _FOLDER, _HARD_LINK, _SYMBOLIC_LINK = b"0\0", b"5", b"1", b"2"
# A folder with the list of its files as data (GNU tar --listed-incremental).
_LISTED_FOLDER = b"D"
# Without data: links, devices, pipes, the label of a volume.
_EMPTY = (_SYMBOLIC_LINK, b"3", b"4", b"6", b"V")
_NOT_SPARSE = "make the tar without --sparse (bsdtar: with --no-read-sparse)"
_NO_VOLUMES = "make it one tar, without --multi-volume"
_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL = _EXTENDED = b"L", b"K", b"x", b"g"


class DamagedShard(ValueError):
    """A tar that cannot be read to its end; the message names shard, offset, last good key, and what to do."""

    def __init__(self, shard: str, offset: int, last: str | None, what: str, remedy: str = "") -> None:
        after = f"after member {last!r}" if last else "before its first member"
        remedy = remedy or "rebuild or download the shard again"
        super().__init__(f"{shard}: {what}, at byte {offset}, {after}; {remedy}")
        self.offset = offset


@dataclass(frozen=True)
class Member:
    """A regular file of the tar: ``offset`` is that of its bytes."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """Name up to the first dot of its last component (the WebDataset convention; ``records`` knows more)."""
        return self.name[: len(self.name) - len(self.extension) - 1] if self.extension else self.name

    @property
    def extension(self) -> str:
        """Everything after that first dot: "flac", "1.flac", "json"."""
        return self.name.rpartition("/")[2].partition(".")[2]

    @property
    def stem(self) -> str:
        """Name up to the last dot of its last component."""
        return self.name[: len(self.name) - len(self.kind) - 1] if self.extension else self.name

    @property
    def kind(self) -> str:
        """The last part of the extension, in lower case."""
        return self.extension.rpartition(".")[2].lower()

    @property
    def of_macos(self) -> bool:
        """Whether macOS added it next to another file ("._clip.wav", "__MACOSX/")."""
        folders, _, name = self.name.rpartition("/")
        return name.startswith("._") or "__MACOSX" in folders.split("/")


class _Broken(ValueError):
    """A fault of a header, with the remedy when it is not damage; ``members`` adds the position."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


@dataclass
class _Header:
    """One 512-byte block, and where the bytes after it start."""

    name: str
    size: int
    kind: bytes
    data: int
    # Of a link: the name of the member with the bytes.
    target: str = ""

    @property
    def end(self) -> int:
        """The next header: data fill whole blocks."""
        return self.data + -(-self.size // _BLOCK) * _BLOCK


def members(file: IO[bytes], shard: str, size: int) -> Iterator[Member]:
    """The regular files of an uncompressed tar of ``size`` bytes, in order; raises DamagedShard where it breaks.

    A hard link is the earlier file that it names.
    """
    last: str | None = None
    known: dict[str, Member] = {}
    passed: list[tuple[int, str | None, _Header]] = []
    offset = count = 0
    while True:
        try:
            header = _next(file, offset, size)
            if header is None:
                _check_end(file, offset)
                break
            count += 1
            if count > MAX_MEMBERS:
                raise _Broken(f"more than {MAX_MEMBERS} members")
            member = _member(header, known)
        except _Broken as broken:
            raise DamagedShard(shard, offset, last, str(broken), broken.remedy) from broken
        if header.kind in _EMPTY:
            passed.append((offset, last, header))
        offset = header.end
        if member is not None:
            known[_plain(member.name)] = member
            yield member
            last = header.name
    # What is no file matters next to the files of a record, before or after them: it may be its text.
    keys = {Member(name, 0, 0).key for name in known} if passed else set()
    for offset, last, header in passed:
        beside = Member(_plain(header.name), 0, 0)
        # Names that begin with a dot have no key.
        if beside.extension and beside.key in keys and beside.key[-1:] not in ("", "/"):
            fault = _no_file(header)
            raise DamagedShard(shard, offset, last, str(fault), fault.remedy)


def _no_file(header: _Header) -> _Broken:
    link = "a symbolic link, " if header.kind == _SYMBOLIC_LINK else ""
    remedies = {_SYMBOLIC_LINK: "make the tar with: tar --dereference", b"S": _NOT_SPARSE, b"M": _NO_VOLUMES}
    return _Broken(f"member {header.name!r} is {link}not a regular file: refused", remedies.get(header.kind, ""))


def _member(header: _Header, known: dict[str, Member]) -> Member | None:
    """The file of a header, None for a folder; that of a hard link is another one's, under its own name."""
    if header.kind != _HARD_LINK:
        return Member(header.name, header.data, header.size) if header.kind in _REGULAR else None
    target = known.get(_plain(header.target))
    if target is None:
        raise _Broken(
            f"member {header.name!r} is a hard link to {header.target[:80]!r}, which is not an earlier member, and "
            "not a "
            "regular file: refused",
            "make the tar with: tar --hard-dereference",
        )
    return Member(header.name, target.offset, target.size)


def _next(file: IO[bytes], offset: int, size: int) -> _Header | None:
    """The member's header at ``offset``, with the extended headers before it applied; None at a zero block."""
    long_name: str | None = None
    long_link: str | None = None
    long_size: int | None = None
    extended = 0
    while True:
        if extended > MAX_EXTENDED_HEADERS:
            raise _Broken(f"more than {MAX_EXTENDED_HEADERS} extended headers before one member")
        header = _header(file, offset, size, named=long_name is None)
        if header is None:
            if long_name is not None or long_size is not None:
                raise _Broken("an extended header without its member")
            return None
        if header.kind not in _EXTENDED:
            break
        if header.size > MAX_EXTENDED_BYTES:
            raise _Broken(f"an extended header of {header.size} bytes; at most {MAX_EXTENDED_BYTES} are accepted")
        text = _read(file, header.data, header.size)
        if header.kind == _GNU_NAME:
            long_name = _name(text.rstrip(b"\0"))
        elif header.kind == _GNU_LINK:
            long_link = _target(text.rstrip(b"\0"))
        elif header.kind == _PAX:
            found = _pax(text)
            long_name, long_link = found.name or long_name, found.target or long_link
            long_size = found.size if found.size >= 0 else long_size
        offset = header.end
        extended += 1
    name = header.name if long_name is None else long_name
    length = header.size if long_size is None else long_size
    if header.kind == _LISTED_FOLDER or (header.kind in _REGULAR and name.endswith("/")):
        # Tars older than ustar mark folders by their names.
        header.kind = _FOLDER
    if header.kind == _HARD_LINK and name:
        # It has no data, whatever size it states.
        return _Header(name, 0, header.kind, header.data, header.target if long_link is None else long_link)
    if header.kind in _EMPTY and name and Member(name, 0, 0).kind not in _KINDS:
        return _Header(name, 0, header.kind, header.data)
    if (header.kind not in _REGULAR and header.kind != _FOLDER) or not name:
        raise _no_file(_Header(name, length, header.kind, header.data))
    if header.data + length > size:
        raise _Broken(f"member {name!r} of {length} bytes ends beyond the file ({size} bytes): cut short")
    if length > MAX_MEMBER_BYTES:
        raise _Broken(
            f"member {name!r} has {length} bytes; at most {MAX_MEMBER_BYTES} are accepted",
            "cut the recording, or make the tar without this file",
        )
    return _Header(name, length, header.kind, header.data)


def _header(file: IO[bytes], offset: int, size: int, *, named: bool) -> _Header | None:
    """One header block; None when it is all zeros. Its name is read only if it is the member's (``named``): a longer
    one is cut here, within a character too, and an extended header has any.
    """
    if size - offset < _BLOCK:
        if offset == 0 and (what := other_file(_read(file, 0, size))):
            raise _Broken(f"it is not a tar, but {what}", "shards are plain tars, whatever their name")
        raise _Broken("the end-of-archive blocks are missing: cut between members")
    block = _read(file, offset, _BLOCK)
    if block.count(0) == _BLOCK:
        return None
    try:
        stated = int(block[148:156].strip(b" \0") or b"-", 8)
    except ValueError:
        stated = -1
    # The sum of all bytes, with the field of the sum itself read as spaces.
    if stated != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        if offset == 0 and (what := other_file(block)):
            raise _Broken(f"it is not a tar, but {what}", "shards are plain tars, whatever their name")
        raise _Broken("the next header is damaged (not a readable tar header)")
    name = block[:100].split(b"\0")[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0")[0]):
        name = prefix + b"/" + name
    kind = block[156:157]
    target = _target(block[157:257].split(b"\0")[0])
    own = _name(name) if named and kind not in _EXTENDED else ""
    return _Header(own, _number(block[124:136]), kind, offset + _BLOCK, target)


def _number(field: bytes) -> int:
    """An octal number, or a base-256 one (GNU) of which the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=True) + (1 << (8 * len(field) - 1))
        if field[0] & 0x40:
            raise _Broken("a member of negative size")
        return value
    try:
        value = int(field.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise _Broken(f"a size of {field!r}: not a number") from error
    if value < 0:
        raise _Broken("a member of negative size")
    return value


def _pax(text: bytes) -> _Header:
    """Name, size (or -1) and link of an extended header, whose records are "LENGTH KEYWORD=VALUE\\n"."""
    found = _Header("", -1, _PAX, 0)
    while text:
        length, _, _ = text[:10].partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(text) or text[int(length) - 1] != ord("\n"):
            raise _Broken("an extended header that is not a list of records")
        key, _, value = text[len(length) + 1 : int(length) - 1].partition(b"=")
        text = text[int(length) :]
        if key.startswith(b"GNU.sparse"):
            raise _Broken("a sparse member is not a regular file: refused", _NOT_SPARSE)
        if key == b"path":
            found.name = _name(value)
        elif key == b"linkpath":
            found.target = _target(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise _Broken(f"a size of {value[:40]!r}: not a number")
            found.size = int(value)
    return found


def _name(raw: bytes) -> str:
    if len(raw) > MAX_NAME_BYTES:
        raise _Broken(f"a name of {len(raw)} bytes; at most {MAX_NAME_BYTES} are accepted")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Broken(f"a name that is not UTF-8: {raw[:40]!r}", "rename it: convmv -f ENCODING -t utf-8") from error
    if name.startswith("/") or ".." in name.split("/"):
        raise _Broken(
            f"a name that leads out of its folder: {name[:40]!r}",
            "write names without a leading / and without .. (keys of WebDataset's TarWriter are names)",
        )
    if not name.isprintable():
        # Names are printed: control characters could rewrite a terminal.
        raise _Broken(f"a name with control characters: {name[:40]!r}")
    return name


def _plain(name: str) -> str:
    """A name as links and members are compared: tar may write "./" before either."""
    return name.removeprefix("./")


def _target(raw: bytes) -> str:
    """The target of a link; only looked up among earlier members."""
    return raw.decode("utf-8", "replace")


def _read(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    raw = file.read(size)
    if len(raw) != size:
        raise _Broken(f"{len(raw)} of {size} bytes of a header: cut short")
    return raw


def _check_end(file: IO[bytes], offset: int) -> None:
    """After the first zero block there must be zeros only."""
    file.seek(offset)
    while block := file.read(1 << 20):
        if block.count(0) != len(block):
            raise _Broken(
                "zero blocks, and data after them",
                "rebuild or download the shard again; of tars joined by cat make one: tar --concatenate",
            )
