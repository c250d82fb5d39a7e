"""What must stay out of training because models are evaluated on it.

Three rules, each with its reason:

1. Splits that a corpus calls dev, validation or test are imported with ``purpose=eval`` only.
2. Corpora that are evaluation sets as a whole (:data:`EVALUATION_ONLY`) likewise.
3. Recordings whose id is on a list given as ``block=``: an id names a recording across corpora, so that an AudioCaps
   test clip is also found in AudioSet and WavCaps. An import with ``purpose=eval`` writes such a list; AIR-Bench's meta
   files, and the CSV files in which evaluation sets are published, are read as they are.

:data:`OVERLAPS` has the lists that a corpus should be checked against; an import without them warns.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data_pipelines.corpora.base import TRAIN, Corpus, Item
from qa_train.data.text.json_rows import objects

SUFFIX = ".blocklist.txt"

EVALUATION_ONLY = {
    "fleurs": "zero-shot in the Qwen2-Audio evaluation (arXiv 2407.10759): that figure would mean nothing",
    "musiccaps": "the music questions of AIR-Bench chat are made from it",
}
# What AIR-Bench (arXiv 2402.07729) draws on: from these, official training splits only.
AIR_BENCH = {
    "common_voice": "speaker age and gender, speech questions", "iemocap": "emotion, speech questions",
    "meld": "emotion, gender", "slurp": "intent, entities", "voxceleb1": "number of speakers",
    "librispeech": "speech grounding", "covost2": "language identification", "clotho": "sound questions",
    "clotho_aqa": "sound questions", "avqa": "sound questions", "vocalsound": "vocal sounds",
    "audiocaps": "mixed audio", "nsynth": "instrument, pitch, velocity", "musiccaps": "music questions",
}  # fmt: skip
# corpus -> evaluation sets that may hold the same recordings
OVERLAPS = {
    "audioset": ("audiocaps", "musiccaps", "avqa"),
    "wavcaps": ("audiocaps", "clotho", "clotho_aqa", "fsd50k", "esc50"),
    "openaqa": ("audiocaps", "clotho", "clotho_aqa", "avqa", "fsd50k", "vocalsound"),
    "salmonn": ("librispeech", "audiocaps", "clotho", "covost2"),
    "align_anything": ("audiocaps", "clotho", "musiccaps"),
    "audiocaps": ("audioset", "musiccaps"),
    "fsd50k": ("clotho", "clotho_aqa", "esc50"),
    "esc50": ("fsd50k", "clotho"),
    "clotho": ("fsd50k", "esc50"),
    "clotho_aqa": ("clotho",),
    "avqa": ("audioset", "audiocaps"),
    "common_voice": ("covost2", "other releases of common_voice"),
    "covost2": ("common_voice",),
    "iemocap": ("AIR-Bench's meta files: it has no official split",),
}
# column of a published list -> whose ids it holds
_COLUMNS = {
    "youtube_id": "youtube", "ytid": "youtube", "YTID": "youtube", "sound_id": "freesound", "fname": "freesound",
    "path": "file", "file_name": "file", "filename": "file", "audio": "file", "wav": "file",
}  # fmt: skip
# Fields of JSON lists that name a recording: AIR-Bench and chats; MMAU; MMAR and MMSU; NeMo.
_FILES = ("path", "audio", "sound", "wav", "audio_id", "audio_path", "audio_filepath")
_VIDEO = re.compile(r"(?:youtube\.com/(?:watch\?(?:\S*&)?v=|shorts/|embed/)|youtu\.be/)([\w-]{11})")


@dataclass
class Blocklist:
    """Ids that must not be trained on, each with the list it comes from."""

    ids: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def load(paths: Iterable[str]) -> Blocklist:
        """Read lists: .txt (an id per line), .json and .jsonl (objects with a path, recognised by content), .csv
        and .tsv (known columns).

        Raises ValueError for a file that holds no id: a list that blocks nothing would give false safety.
        """
        block = Blocklist()
        for path in map(Path, paths):
            found = list(_ids_of(path))
            if not found:
                raise ValueError(
                    f"{path} holds no id to block: expected {', '.join(sorted(set(_COLUMNS)))} or ids per line"
                )
            for identity in found:
                block.ids.setdefault(identity, path.name)
        return block

    def match(self, corpus: str, item: Item) -> str | None:
        """Why the item is blocked ("youtube:ID, in test.csv"), or None."""
        for identity in ids_of(corpus, item):
            if identity in self.ids:
                return f"{identity}, in {self.ids[identity]}"
        for audio in item.audio:
            identity = f"file:{PurePosixPath(audio.member or audio.path).stem}"
            # The stem of a table or archive names no recording.
            if audio.row is None and identity in self.ids:
                return f"{identity}, in {self.ids[identity]}"
        return None


def ids_of(corpus: str, item: Item) -> tuple[str, ...]:
    """The ids by which other corpora would know this item's recording."""
    return (f"{corpus}:{item.name}", *item.ids)


def check_purpose(corpus: Corpus, split: str, purpose: str, allow: Iterable[str]) -> None:
    """Refuse to import evaluation material for training, and training material for evaluation.

    ``allow`` names corpora whose rule the user lifts. Raises ValueError with the reason and the remedy.
    """
    role = corpus.role(split)
    if purpose not in ("train", "eval"):
        raise ValueError(f"purpose={purpose!r}: use train or eval")
    if purpose == "eval":
        if role == TRAIN and corpus.name not in EVALUATION_ONLY:
            raise ValueError(f"{corpus.title}, split {split}, is for training: remove purpose=eval")
        return
    if corpus.name in allow:
        return
    if corpus.name in EVALUATION_ONLY:
        reason = EVALUATION_ONLY[corpus.name]
        raise ValueError(
            f"{corpus.title} is an evaluation set ({reason}): add purpose=eval to import it for evaluation; "
            f"allow=[{corpus.name}] trains on it anyway"
        )
    if role != TRAIN:
        used = f"; AIR-Bench uses the corpus for: {AIR_BENCH[corpus.name]}" if corpus.name in AIR_BENCH else ""
        raise ValueError(
            f"{corpus.title}, split {split}, is evaluation material ({role}){used}: add purpose=eval to import it for "
            f"evaluation; the splits for training are {', '.join(corpus.train_splits) or 'none'}. "
            f"allow=[{corpus.name}] trains on it anyway"
        )


def _ids_of(path: Path) -> Iterator[str]:
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _ids_of_table(path)
    elif kind in (".json", ".jsonl"):
        for _, _, entry in objects(path):
            yield from _files_of(entry)
    else:
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            identity = line.split("#")[0].strip()
            if identity:
                yield identity if ":" in identity else f"file:{PurePosixPath(identity).stem}"


def _files_of(entry: dict[str, Any]) -> Iterator[str]:
    """Its recordings by name, and the video where an address names one (MMAR)."""
    found = [entry.get(name) for name in _FILES] + list(entry.get("audios") or [])
    yield from (f"file:{PurePosixPath(name).stem}" for name in found if isinstance(name, str) and name.strip())
    if video := _VIDEO.search(str(entry.get("url") or "")):
        yield f"youtube:{video[1]}"


def _ids_of_table(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        # AudioSet's header is the last of its comments.
        lines = (line.lstrip("# ") if "YTID" in line else line for line in file if "YTID" in line or line[:1] != "#")
        rows = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", skipinitialspace=True)
        columns = [name for name in rows.fieldnames or () if name in _COLUMNS]
        for row in rows:
            for column in columns:
                value = (row[column] or "").strip()
                if value:
                    kind = _COLUMNS[column]
                    yield f"{kind}:{PurePosixPath(value).stem if kind == 'file' else value}"
