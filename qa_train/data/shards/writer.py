"""Writing WebDataset shards with their index."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import soundfile

from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.shards.index import ShardIndex, build_index
from qa_train.data.shards.tar import AUDIO_EXTENSIONS, OTHER_AUDIO_EXTENSIONS
from qa_train.data.shards.wds import tar_writer
from qa_train.data.text.records import check_record, check_text
from qa_train.utils.atomic import PART, named

_FORMATS: dict[str, tuple[str, str]] = {
    "flac": ("FLAC", "PCM_16"),
    "opus": ("OGG", "OPUS"),
    "ogg": ("OGG", "VORBIS"),
    "wav": ("WAV", "PCM_16"),
}


def plain_key(key: str) -> str:
    """A key as written: dots become "-", since in a tar the type starts at the first dot."""
    folder, slash, name = key.rpartition("/")
    return f"{folder}{slash}{name.replace('.', '-')}"


class ShardWriter:
    """Writes records to ``pattern`` (``dir/train-%05d.tar``), a new shard every ``max_samples``.

    The same records give the same bytes (but for the random stream number inside each Ogg file):
    headers hold no time, user or mode of the machine. A shard appears under its name only when it is complete.
    """

    def __init__(
        self, pattern: str | Path, *, max_samples: int = 10_000, max_bytes: int = 1 << 30, codec: str = "flac"
    ) -> None:
        if codec not in _FORMATS:
            raise ValueError(f"codec {codec!r} is unknown; use one of {sorted(_FORMATS)}")
        self.pattern = str(pattern)
        self.max_samples, self.max_bytes, self.codec = max_samples, max_bytes, codec
        self.indexes: list[ShardIndex] = []
        self._file: IO[bytes] | None = None
        self._keys: set[str] = set()
        if not self._path(0).endswith(".tar"):
            raise ValueError(f"{self.pattern}: shards are uncompressed tars, the name must end in .tar")
        Path(self.pattern).parent.mkdir(parents=True, exist_ok=True)

    def free_key(self, key: str) -> str:
        """``key``, or ``key-2``, ``key-3`` ... when it was written already (shards may share keys)."""
        key = plain_key(key)
        number, free = 2, key
        while free in self._keys:
            number, free = number + 1, f"{key}-{number}"
        return free

    def write(
        self,
        key: str,
        record: dict[str, Any],
        audio: np.ndarray | bytes | Sequence[np.ndarray | bytes],
        sample_rate: int = FRONT_END.sample_rate,
        *,
        extension: str | Sequence[str] | None = None,
    ) -> None:
        """Add a record with its clip, or clips.

        ``audio``: mono float waveforms [n] in [-1, 1] at ``sample_rate``, encoded by the writer's
        codec; or files as bytes, stored unchanged under ``extension`` (one, or one for each clip). An
        empty list makes a text-only record.
        """
        clips = [audio] if isinstance(audio, np.ndarray | bytes) else list(audio)
        if not key:
            raise ValueError("a key must not be empty")
        key = plain_key(key)
        if key in self._keys:
            raise ValueError(f"key {key!r} was already written; keys must be unique")
        check_text(record)
        check_record(record)
        if not clips:
            record = {**record, "audios": []}
        members = []
        kinds = [extension] * len(clips) if isinstance(extension, str | None) else list(extension)
        if len(kinds) != len(clips):
            raise ValueError(f"{key}: {len(clips)} clips and {len(kinds)} extensions; give one, or one for each clip")
        for i, (clip, given) in enumerate(zip(clips, kinds, strict=True)):
            kind, raw = self._encoded(key, clip, sample_rate, given)
            members.append((kind if i == 0 else f"{i}.{kind}", raw))
        text = json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False)
        members.append(("json", text.encode()))
        if self._file is not None and (self._count >= self.max_samples or self._tar.tarstream.offset >= self.max_bytes):
            self._finish_shard()
        tar = self._open()
        with named(self._part):
            for name, raw in members:
                # One by one: of a whole record it would sort the members by name.
                tar.write({"__key__": key, name: raw})
        self._keys.add(key)
        self._count += 1

    def close(self) -> list[ShardIndex]:
        """Finish the last shard; returns the indexes of all of them."""
        if self._file is not None:
            self._finish_shard()
        return self.indexes

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            # An unfinished shard must not look like a finished one.
            with suppress(OSError):  # on a full disk its buffers cannot be written either
                self._tar.close()
            with suppress(OSError):
                self._file.close()
            Path(self._part).unlink()

    def _path(self, number: int) -> str:
        return self.pattern % number if "%" in self.pattern else self.pattern

    @property
    def _part(self) -> str:
        return self._path(len(self.indexes)) + PART

    def _open(self) -> Any:
        if self._file is None:
            if self.indexes and "%" not in self.pattern:
                raise ValueError(f"{self.pattern} has room for one shard only; name it like train-%05d.tar")
            self._file = Path(self._part).open("wb")  # noqa: SIM115 (closed with the shard)
            self._tar = tar_writer(self._file)
            self._count = 0
        return self._tar

    def _finish_shard(self) -> None:
        assert self._file is not None
        with named(self._part):
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._file = None
        path = self._path(len(self.indexes))
        Path(self._part).replace(path)
        self.indexes += build_index([path])

    def _encoded(
        self, key: str, clip: np.ndarray | bytes, sample_rate: int, extension: str | None
    ) -> tuple[str, bytes]:
        if isinstance(clip, bytes):
            if extension not in (*AUDIO_EXTENSIONS, *OTHER_AUDIO_EXTENSIONS):
                raise ValueError(f"{key}: extension {extension!r} of a stored file; use one of {AUDIO_EXTENSIONS}")
            return extension, clip
        if clip.ndim != 1 or not len(clip) or not np.isfinite(clip).all():
            raise ValueError(
                f"{key}: a waveform must be 1-dimensional, not empty and finite; its shape is {clip.shape}"
            )
        buffer = io.BytesIO()
        container, subtype = _FORMATS[self.codec]
        with soundfile.SoundFile(buffer, "w", sample_rate, 1, subtype, format=container) as file:
            # One call per second: libsndfile's Vorbis writer crashes on minute-long blocks.
            for start in range(0, len(clip), sample_rate):
                file.write(np.clip(clip[start : start + sample_rate], -1.0, 1.0))
        return self.codec, buffer.getvalue()
