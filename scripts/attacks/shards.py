"""Indexes, tars and sound files."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.attacks.changes import ODD, damage_bytes, odd_value
from scripts.red_team import Attempt, apart


def indexes(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Indexes of shards, as training and the tools read them."""
    import pyarrow.parquet

    from qa_train.data.shards.sidecar import SUFFIX
    from tests.data import test_gate as tests

    shard = apart(lambda: tests.good_shard(folder))
    row = apart(lambda: pyarrow.parquet.read_table(shard + SUFFIX).to_pylist()[2])
    whole = Path(shard + SUFFIX).read_bytes()

    def damaged(raw: bytes) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            path = str(shutil.copy(shard, place / "x.tar"))
            Path(path + SUFFIX).write_bytes(raw)
            tests.read_all(path)

        return read

    yield Attempt("indexes: as made", "index", damaged(whole), "accept")
    for column, value in tests.CELLS:
        read = lambda p, c=column, v=value: tests.read_all(tests.tampered(shard, p, c, v))  # noqa: E731
        yield Attempt("indexes: of the tests", f"{column} = {value!r:.40}", read, "refuse")
    for entry, text in tests.FOOTERS:
        read = lambda p, e=(entry, text): tests.read_all(tests.tampered(shard, p, footer=e))  # noqa: E731
        yield Attempt("indexes: of the tests", f"footer {entry} = {text!r:.40}", read, "refuse")
    for number in range(rounds):
        column = draw.choice(sorted(row))
        found = row[column]
        if column == "meta":
            value = json.dumps(odd_value(draw, json.loads(found)))
        elif isinstance(found, str):
            value = draw.choice(["", "../x", "a\nb", "\x1b[2J", found * 2, found[:-1], "\ufeff" + found, "é"])
        elif isinstance(found, float):
            value = draw.choice([0.0, -1.0, 1e9, found * 2, found + 1e-9, float("nan")])
        else:
            value = [
                draw.choice([0, 1, -1, 2**31 - 1, 2**40, *found]) if column != "names" else draw.choice(ODD[14:26])
            ]
            value = value if column != "sample_rates" else [min(value[0], 2**31 - 1)]
        read = lambda p, c=column, v=value: tests.read_all(_written(tests.tampered, shard, p, c, v))  # noqa: E731
        yield Attempt("indexes: a cell", f"{column} = {value!r:.60}", read, "either")
        yield Attempt("indexes: bytes", f"number {number}", damaged(damage_bytes(draw, whole)), "either")


def _written(write: Callable[..., str], *given: Any) -> str:
    """The path that ``write`` returns; what parquet cannot hold cannot come from outside either."""
    try:
        return write(*given)
    except (OverflowError, UnicodeError, TypeError) as error:
        raise ValueError(f"no parquet file holds it: {type(error).__name__}") from error


_RECORD = {
    "text": "hello", "language": "en", "task": "asr", "translation": {"de": "hallo"}, "speaker": "a", "age": 30,
    "words": [{"word": "hello", "start": 0.0, "end": 0.2}], "events": [{"label": "dog", "start": 0.0, "end": 0.2}],
    "audios": ["flac"], "caption": "a voice", "id": "x",
    "messages": [
        {"role": "user", "content": [{"type": "audio", "audio_url": "a.flac"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "hello"},
    ],
}  # fmt: skip


def tars(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Shards of others, as `qa-train data index` and `validate` read them."""
    from qa_train.data.shards.index import build_index, scan
    from qa_train.data.tools.validate import validate_shard
    from tests.data import hostile

    whole = hostile.good()
    sound = hostile.encoded("FLAC")

    def indexed(raw: bytes) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            path = place / "x.tar"
            path.write_bytes(raw)
            if problems := scan(str(path), decode=True).problems:
                raise ValueError(problems[0].detail)

        return read

    def checked(raw: bytes) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            path = place / "x.tar"
            path.write_bytes(whole)
            build_index([path])
            path.write_bytes(raw)
            if faults := validate_shard(str(path)).faults:
                raise ValueError(str(faults[0]))

        return read

    def record(meta: Any) -> bytes:
        return hostile.tar(("a.flac", sound), ("a.json", json.dumps(meta).encode()))

    yield Attempt("tars: as made", "four formats", checked(whole), "accept")
    yield Attempt("tars: as made", "a record", indexed(record({"text": "hello"})), "accept")
    for name, raw, _ in hostile.tars():
        yield Attempt("tars: of the tests", name, indexed(raw), "refuse")
    for name, members, _ in hostile.records():
        yield Attempt("tars: records of the tests", name, indexed(hostile.tar(*members)), "refuse")
    for number in range(rounds):
        yield Attempt("tars: bytes, without index", f"number {number}", indexed(damage_bytes(draw, whole)), "either")
        changed = damage_bytes(draw, whole)
        must = "either" if _same_members(changed, whole) else "refuse"
        yield Attempt("tars: bytes, with index", f"number {number}", checked(changed), must)
        yield Attempt(
            "tars: a field of a record", f"number {number}", indexed(record(odd_value(draw, _RECORD))), "either"
        )


def _same_members(one: bytes, other: bytes) -> bool:
    """Whether two tars hold the same (dates and rights are of no importance to anybody)."""
    try:
        return _contents(one) == _contents(other)
    except (tarfile.TarError, AttributeError, ValueError):
        return False


def _contents(raw: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive if m.isfile()]  # type: ignore[union-attr]


def audio(folder: Path, rounds: int, draw: random.Random) -> Iterator[Attempt]:
    """Sound files in memory, as every reader of clips decodes them."""
    from qa_train.data.audio.waveform import decoded_length, read_clip, read_header
    from tests.data import odd_audio

    def decoded(raw: bytes) -> Callable[[Path], None]:
        def read(place: Path) -> None:
            length = decoded_length(raw)
            read_header(raw)
            if len(read_clip(raw, max_duration_s=600.0)) != length:
                raise AssertionError("two readers, two lengths")

        return read

    for name, (raw, _) in odd_audio.WHOLE.items():
        yield Attempt("audio: whole, of the tests", name, decoded(raw), "accept")
    for name, (raw, _) in odd_audio.REFUSED.items():
        yield Attempt("audio: of the tests", name, decoded(raw), "refuse")
    files = [raw for name in odd_audio.FFMPEG if name not in odd_audio.MEDIA for raw in [odd_audio.raw(name)]]
    for number in range(rounds * 3):
        raw = draw.choice(files)
        for _ in range(draw.choice([1, 1, 2, 8])):
            raw = damage_bytes(draw, raw)
        yield Attempt("audio: bytes", f"number {number}", decoded(raw), "either")
