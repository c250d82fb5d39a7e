"""Are items of a benchmark in the training data? By the clip's bytes, by its sound, and by the words of its reference.

What this finds is all but certain (the same bytes, or the same recording in another encoding) or likely (the same
words, at least ``MIN_WORDS`` of them); what it does not find may still be there: cuts out of a recording, other speeds,
mixtures and paraphrases are not seen.

By sound, only training clips of about the same length are read. A sketch (energy over time and frequency, without its
mean per band, so that gain and coding do not count) finds likely ones; the cross-correlation of the waveforms decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

from qa_train.config import StorageConfig
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.table_clip import clip_source
from qa_train.data.audio.waveform import BadAudio, read_clip
from qa_train.data.clips import Clip, ClipReader, SkipSample
from qa_train.data.shards.catalog import shard_paths
from qa_train.data.shards.index import load_index
from qa_train.eval.eval_sets import clips_of
from qa_train.eval.scores.normalise import CHARACTER_LANGUAGES, label_words

# Shorter references ("yes", "turn left") are equal by chance.
MIN_WORDS = 5
EXAMPLES = 5
# Codecs pad and rate conversion rounds: 60 ms.
LENGTH_TOLERANCE = 960
TIMES, BANDS = 96, 16
# Of sketches that are worth a second look, and of waveforms of one recording. Measured on 970 clips of starter data:
# unrelated waveforms stay below 0.3, the same words by one synthetic voice below 0.53; in Opus, Vorbis and MP3 the same
# recording stays above 0.78, its sketch above 0.84.
LIKELY, SAME = 0.8, 0.65
# Training clips that are read for one benchmark; more are counted as not compared.
MAX_READ = 20_000


def contamination(
    rows: Sequence[Mapping[str, Any]], shards: Sequence[str], data_root: Path, storage: StorageConfig | None = None
) -> dict[str, Any]:
    """How many items of a benchmark the shards hold: {"n", "same_clip", "same_sound", "same_words", ...}.

    ``rows``: rows of predictions.jsonl (``id``, ``audio``, ``gt``, ``language``). Clips are compared by
    size and CRC32C of their bytes, and else by sound with the training clips that are about as long (``as_long``, of
    which ``compared`` were read); clips that are not there are counted as not checked. ``storage``: how remote shards
    are read.

    Raises:
        ValueError: shards that do not exist or have no index.
    """
    words = _items_by_words(rows)
    clips, paths = _items_by_bytes(rows, data_root)
    same_words: dict[str, str] = {}
    same_clip: dict[str, str] = {}
    recordings = Recordings(paths)
    as_long: list[tuple[str, Clip]] = []
    for shard in shard_paths(shards, storage):
        for record in load_index(shard, storage).table.to_pylist():
            place = f"{shard}:{record['key']}"
            for clip in clips_of(shard, record):
                equal = clips.get((clip.size, clip.crc32c), [])
                same_clip |= {item: place for item in equal if item not in same_clip}
                if not equal and recordings.difference(clip.num_samples) is not None:
                    as_long.append((place, clip))
            for text in _texts(json.loads(record["meta"])):
                for form in {_words(text, None), _words(text, "zh")} - {None}:
                    for item in words.get(form or (), []):
                        same_words.setdefault(item, place)
    same_sound, compared = recordings.find(as_long, storage)
    same_sound = {item: place for item, place in same_sound.items() if item not in same_clip}
    found = [*same_clip.items(), *same_sound.items(), *same_words.items()]
    return {
        "n": len(rows),
        "same_clip": len(same_clip),
        "same_sound": len(same_sound),
        "same_words": len(same_words),
        "checked_clips": len(paths),
        "checked_sounds": len(recordings),
        "as_long": len(as_long),
        "compared": compared,
        "checked_texts": len({item for items in words.values() for item in items}),
        "examples": [{"id": item, "where": where} for item, where in found[:EXAMPLES]],
    }


def _items_by_words(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], list[str]]:
    """Words of a reference -> the items that have it."""
    items: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        for text in row["gt"] if isinstance(row["gt"], list) else [row["gt"]]:
            if (form := _words(text, row.get("language"))) is not None:
                items.setdefault(form, []).append(str(row["id"]))
    return items


def _items_by_bytes(
    rows: Sequence[Mapping[str, Any]], data_root: Path
) -> tuple[dict[tuple[int, int], list[str]], dict[str, Path]]:
    """(Size and CRC32C of a clip -> the items that have it, item -> its clip), of the clips that are there."""
    items: dict[tuple[int, int], list[str]] = {}
    paths: dict[str, Path] = {}
    for row in rows:
        path = data_root / row["audio"] if row["audio"] else None
        source = clip_source(path) if path is not None else None
        if path is not None and (isinstance(source, bytes) or path.is_file()):
            raw = source if isinstance(source, bytes) else path.read_bytes()
            items.setdefault((len(raw), crc32c.crc32c(raw)), []).append(str(row["id"]))
            paths[str(row["id"])] = path
    return items, paths


def _words(text: str, language: str | None) -> tuple[str, ...] | None:
    """The words (characters, where words are not written apart) without case and marks; None when too few."""
    words = label_words(text)
    if language in CHARACTER_LANGUAGES:
        words = list("".join(words))
    return tuple(words) if len(words) >= MIN_WORDS else None


def _texts(value: Any) -> Iterator[str]:
    """Every text of a record, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


class Recordings:
    """Clips of a benchmark by their sound."""

    def __init__(self, clips: Mapping[str, Path]) -> None:
        """``clips``: {item: path}. Unreadable and steady ones are skipped: ``len`` is the number of the others."""
        self._clips = clips
        made = []
        for item, path in clips.items():
            try:
                wave = read_clip(clip_source(path))
            except BadAudio:
                continue
            if (one := sketch(wave)) is not None:
                made.append((len(wave), item, one.astype(np.float16)))
        made.sort(key=lambda entry: entry[:2])
        self._lengths = np.array([length for length, _, _ in made], dtype=np.int64)
        self._items = [item for _, item, _ in made]
        self._sketches = np.array([one for _, _, one in made])

    def __len__(self) -> int:
        return len(self._items)

    def _near(self, length: int) -> slice:
        low, high = np.searchsorted(self._lengths, [length - LENGTH_TOLERANCE, length + LENGTH_TOLERANCE + 1])
        return slice(int(low), int(high))

    def difference(self, length: int) -> int | None:
        """In samples, to the nearest clip of about that length; None: there is none."""
        near = self._lengths[self._near(length)]
        return int(np.abs(near - length).min()) if len(near) else None

    def find(
        self, training: Sequence[tuple[str, Clip]], storage: StorageConfig | None = None
    ) -> tuple[dict[str, str], int]:
        """({item: place of its recording}, how many training clips were compared). ``training``: (place, clip).

        At most ``MAX_READ`` are read, those whose length is nearest first.
        """
        nearest = sorted((self.difference(clip.num_samples) or 0, i) for i, (_, clip) in enumerate(training))
        reader = ClipReader(num_mel_bins=0, storage=storage)
        found: dict[str, str] = {}
        compared = 0
        for _, i in nearest[:MAX_READ]:
            place, clip = training[i]
            try:
                heard = reader.wave(clip)
            except SkipSample:
                continue
            compared += 1
            if (made := sketch(heard)) is not None:
                for item in self._alike(clip.num_samples, made):
                    if item not in found and correlation(read_clip(clip_source(self._clips[item])), heard) > SAME:
                        found[item] = place
        reader.close()
        return found, compared

    def _alike(self, length: int, made: np.ndarray) -> list[str]:
        near = self._near(length)
        alike = self._sketches[near].astype(np.float32) @ made
        return [self._items[near.start + int(i)] for i in np.flatnonzero(alike > LIKELY)]


def sketch(wave: np.ndarray) -> np.ndarray | None:
    """A unit vector [TIMES x BANDS] of a clip at 16 kHz; None where its sound does not change (silence, a tone)."""
    if len(wave) < 2 * TIMES:
        return None
    starts = np.linspace(0, len(wave), TIMES + 1).astype(int)
    width = 1 << int(np.diff(starts).max() - 1).bit_length()
    frames = np.zeros((TIMES, width), dtype=np.float32)
    for frame, (low, high) in zip(frames, pairwise(starts), strict=True):
        frame[: high - low] = wave[low:high]
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    # 100 Hz to 4 kHz, which every codec and rate keeps, in bands of equal ratio.
    edges = np.geomspace(100, 4000, BANDS + 1) / FRONT_END.sample_rate * width
    places = [(int(low), max(int(low) + 1, int(high))) for low, high in pairwise(edges)]
    bands = np.stack([power[:, low:high].sum(1) for low, high in places], axis=1)
    levels = np.log(bands + 1e-4 * bands.max() + 1e-12)
    levels -= levels.mean(0)
    norm = float(np.linalg.norm(levels))
    # A mean change below a tenth of a neper is none.
    return None if norm < 0.1 * np.sqrt(levels.size) else (levels / norm).ravel().astype(np.float32)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """The largest normalised cross-correlation of two waveforms, by sign and lag whatever they are; 0 to 1."""
    size = 1 << int(len(first) + len(second)).bit_length()
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    if not norm:
        return 0.0
    product = np.fft.rfft(first, size) * np.conj(np.fft.rfft(second, size))
    return float(np.abs(np.fft.irfft(product, size)).max() / norm)
