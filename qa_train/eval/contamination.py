"""Are items of a benchmark in the training data? By the clip's bytes, by its sound, and by the words of its reference.

What this finds is all but certain (the same bytes, or the same recording in another encoding) or likely (the same
words, at least ``MIN_WORDS`` of them); what it does not find may still be there: cuts out of a recording, other speeds,
mixtures and paraphrases are not seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import crc32c

from qa_train.config import StorageConfig
from qa_train.data.audio.table_clip import clip_source
from qa_train.data.clips import Clip
from qa_train.data.shards.index import load_index
from qa_train.data.stores.storage import expand
from qa_train.eval.eval_sets import clips_of
from qa_train.eval.same_sound import Recordings
from qa_train.eval.scores.normalise import CHARACTER_LANGUAGES, label_words

# Shorter references ("yes", "turn left") are equal by chance.
MIN_WORDS = 5
EXAMPLES = 5


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
    words: dict[tuple[str, ...], list[str]] = {}
    clips: dict[tuple[int, int], list[str]] = {}
    paths: dict[str, Path] = {}
    for row in rows:
        for text in row["gt"] if isinstance(row["gt"], list) else [row["gt"]]:
            if (form := _words(text, row.get("language"))) is not None:
                words.setdefault(form, []).append(str(row["id"]))
        path = data_root / row["audio"] if row["audio"] else None
        source = clip_source(path) if path is not None else None
        if path is not None and (isinstance(source, bytes) or path.is_file()):
            raw = source if isinstance(source, bytes) else path.read_bytes()
            clips.setdefault((len(raw), crc32c.crc32c(raw)), []).append(str(row["id"]))
            paths[str(row["id"])] = path
    same_words: dict[str, str] = {}
    same_clip: dict[str, str] = {}
    recordings = Recordings(paths)
    as_long: list[tuple[str, Clip]] = []
    for shard in expand(shards, storage):
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
