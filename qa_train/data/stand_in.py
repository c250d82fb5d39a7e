"""Sounds in the place of the starter recordings, for an installation without them.

The recordings are in the repository, not in the wheel. So that ``experiment=smoke`` runs wherever qa-train is
installed, shards of the same names are made once, of melodies whose transcripts name their notes. They show that
everything works; they teach nothing.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from qa_train.config import DataConfig, starter_dir
from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.shards.writer import ShardWriter

log = logging.getLogger(__name__)

_NOTES = {
    "en": "c d e f g a b".split(),
    "es": "do re mi fa sol la si".split(),
    "fr": "do ré mi fa sol la si".split(),
    "it": "do re mi fa sol la si".split(),
    "ru": "до ре ми фа соль ля си".split(),
}
# Semitones of the notes above the first one, which has 262 Hz.
_STEPS = (0, 2, 4, 5, 7, 9, 11)
_SOUNDS = ("alarm", "hum", "noise")
_QUESTION = [{"role": "user", "content": "<audio>Which sound is in this recording?"}]
_OF_A_LANGUAGE, _OF_A_SOUND = 24, 12
_RATE = FRONT_END.sample_rate


def make_missing_starter(cfg: DataConfig) -> None:
    """Make the stand-in if a source of ``cfg`` reads the starter data and they are not here; a second call finds it."""
    folder = starter_dir()
    used = any(shard.startswith(f"{folder}/") for source in cfg.sources.values() for shard in source.shards)
    if not used or folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    rng = np.random.default_rng(0)
    for name, records in (("speech", _melodies(rng)), ("sound", _sounds(rng)), ("preferences", _pairs(rng))):
        with ShardWriter(part / f"{name}-train.tar") as writer:
            for number, (record, wave) in enumerate(records):
                writer.write(f"{name}-{number:03}", {**record, "source": "stand-in", "split": "train"}, wave)
    # Several ranks may have made one: the first to be whole counts.
    with suppress(OSError):
        part.rename(folder)
        log.warning("the starter recordings are in the repository only: generated melodies in %s replace them", folder)
    shutil.rmtree(part, ignore_errors=True)


def _melodies(rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    for language, names in _NOTES.items():
        for _ in range(_OF_A_LANGUAGE):
            notes = rng.integers(len(_STEPS), size=int(rng.integers(2, 6)))
            wave = np.concatenate([_tone(262 * 2 ** (_STEPS[note] / 12), 0.3) for note in notes])
            record: dict[str, Any] = {"text": " ".join(names[note] for note in notes), "language": language}
            if language != "en":
                record["translation"] = {"en": " ".join(_NOTES["en"][note] for note in notes)}
            yield record, wave


def _sounds(rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    for label in _SOUNDS:
        for _ in range(_OF_A_SOUND):
            high = rng.uniform(0.8, 1.2)
            if label == "alarm":
                wave = np.concatenate([_tone(880 * high, 0.2), _tone(660 * high, 0.2)] * 2)
            elif label == "hum":
                wave = _tone(100 * high, 1.0)
            else:
                wave = (0.1 * rng.standard_normal(_RATE)).astype(np.float32)
            yield {"label": label, "caption": f"{'an' if label == 'alarm' else 'a'} {label}"}, wave


def _pairs(rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    for record, wave in _sounds(rng):
        wrong = str(rng.choice([label for label in _SOUNDS if label != record["label"]]))
        yield {"messages": _QUESTION, "chosen": record["label"], "rejected": wrong, "task": "preference"}, wave


def _tone(hertz: float, seconds: float) -> np.ndarray:
    """A sine [samples] that swells and fades."""
    time = np.arange(int(seconds * _RATE)) / _RATE
    return (0.3 * np.sin(2 * np.pi * hertz * time) * np.sin(np.pi * time / seconds)).astype(np.float32)
