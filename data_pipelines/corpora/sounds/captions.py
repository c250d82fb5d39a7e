"""Captioned sound and music: AudioCaps, Clotho, WavCaps, MusicCaps.

For training, a clip with several captions gives one record per caption; for evaluation one record holds
the first as ``caption`` and all of them as ``captions``.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from data_pipelines.corpora.base import (
    DEV,
    NOT_OBTAINED,
    TEST,
    TRAIN,
    Corpus,
    Drop,
    Found,
    Item,
    Request,
    obtained,
    present,
    stem,
)
from data_pipelines.corpora.tree import Tree


def captioned(captions: list[str], **record: Any) -> dict[str, Any]:
    """A record with its captions: all of them where there are several."""
    return present(caption=captions[0], captions=captions if len(captions) > 1 else [], **record)


def youtube_audio(tree: Tree, video: str, start: str) -> str | None:
    """A clip of a video under the names that the usual download tools give it."""
    second = start.split(".")[0]
    stems = (f"{video}_{start}", f"{video}_{second}", f"{video}_{int(second or 0):06d}", f"{video}_{second}000", video)
    return tree.by_stem(*stems, *(f"Y{name}" for name in stems))


_AUDIOCAPS = {"train": TRAIN, "val": DEV, "test": TEST}


def _audiocaps(request: Request) -> Found:
    """``{split}.csv``: audiocap_id, youtube_id, start_time, caption; the audio is the user's own."""
    tree = request.tree
    (listed, *_) = tree.need(f"{request.split}.csv", what="AudioCaps list")
    rows = tree.table(listed, ("audiocap_id", "youtube_id", "start_time", "caption"))
    if request.split != "train":
        # Five captions per clip, not always next to one another.
        rows = iter(sorted(rows, key=lambda row: (row["youtube_id"], row["start_time"])))
    for (video, start), group in groupby(rows, key=lambda row: (row["youtube_id"], row["start_time"])):
        captions = list(group)
        name = captions[0]["audiocap_id"]
        record = captioned([row["caption"].strip() for row in captions])
        audio = youtube_audio(tree, video, start)
        yield obtained(tree, name, audio, record, (f"youtube:{video}",), f"{video} at {start} s")


_CLOTHO = {"development": TRAIN, "validation": DEV, "evaluation": TEST}


def _clotho(request: Request) -> Found:
    """``clotho_captions_{split}.csv`` and ``{split}/*.wav``; freesound ids in ``clotho_metadata_{split}.csv``."""
    tree = request.tree
    (listed, *_) = tree.need(f"clotho_captions_{request.split}.csv", what="Clotho list")
    (about, *_) = tree.glob(f"clotho_metadata_{request.split}.csv") or [""]
    known = {row["file_name"]: row for row in tree.table(about, ("file_name",), encoding="iso-8859-1")} if about else {}
    for row in tree.table(listed, ("file_name", "caption_1")):
        file = row["file_name"]
        facts = known.get(file, {})
        captions = [text.strip() for name, text in row.items() if name.startswith("caption_") and text.strip()]
        audio = tree.by_stem(stem(file), folder=f"{request.split}/") or tree.by_stem(stem(file))
        if audio is None or not captions:
            yield Drop(file, "missing audio" if captions else "no caption")
            continue
        ids = (f"clotho:{file}", *([f"freesound:{facts['sound_id']}"] if facts.get("sound_id", "").isdigit() else []))
        keywords = [word.strip() for word in facts.get("keywords", "").split(";") if word.strip()]
        record = captioned(captions, keywords=keywords, license=facts.get("license", "").strip())
        yield Item(stem(file), (tree.recording(audio),), record, ids)


_WAVCAPS_IDS = {"AudioSet_SL": "youtube", "FreeSound": "freesound"}
# Clips that evaluation sets hold too, as the corpus lists them: {"AudioSet": [FILE, ...], "FreeSound": [ID, ...]}.
_WAVCAPS_BLACKLISTS = "json_files/blacklist/*.json"


def _wavcaps_blocked(tree: Tree) -> dict[str, str]:
    """ "FreeSound 180913" -> the name of the shipped list that holds it."""
    found: dict[str, str] = {}
    for listed in tree.glob(_WAVCAPS_BLACKLISTS):
        for part, names in tree.json(listed).items():
            found |= {f"{part.removesuffix('_SL')} {stem(str(name))}": listed for name in names}
    return found


def _wavcaps(request: Request) -> Found:
    """``json_files/{part}/*.json`` with data[] of {id, caption}; audio ``{id}.flac`` in any folder of the part."""
    tree = request.tree
    blocked = _wavcaps_blocked(tree)
    for listed in tree.need("json_files/*/*.json", what="WavCaps lists (json_files/PART/*.json)"):
        if "json_files/blacklist/" in listed:
            continue
        part = listed.split("json_files/")[1].split("/")[0]
        for row in tree.objects(listed, "data"):
            identity = stem(str(row["id"])) if part == "AudioSet_SL" else str(row["id"])
            audio = tree.by_stem(identity, folder=part) or tree.by_stem(identity)
            name = f"{part}-{identity}"
            if (why := blocked.get(f"{part.removesuffix('_SL')} {identity}")) is not None:
                yield Drop(name, "blocklist", f"in {why}", filter=True)
                continue
            if audio is None or not str(row.get("caption") or "").strip():
                yield Drop(name, NOT_OBTAINED if audio is None else "no caption")
                continue
            # "Yb0RFKhbpFJA.wav": a Y before the eleven characters of the video.
            plain = re.sub(r"^Y(?=.{11}$)", "", identity)
            ids = (f"{_WAVCAPS_IDS.get(part, part.lower())}:{plain}",)
            record = {"caption": row["caption"].strip(), "subset": part}
            yield Item(name, (tree.recording(audio),), record, ids)


_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")


def _musiccaps(request: Request) -> Found:
    """``musiccaps-public.csv``: ytid, start_s, end_s, aspect_list, caption; the audio is the user's own."""
    tree = request.tree
    (listed, *_) = tree.need("musiccaps*.csv", what="MusicCaps list (musiccaps-public.csv)")
    for row in tree.table(listed, ("ytid", "start_s", "caption", "aspect_list")):
        video = row["ytid"]
        audio = youtube_audio(tree, video, row["start_s"])
        keywords = [one or other for one, other in _QUOTED.findall(row["aspect_list"])]
        record = present(caption=row["caption"].strip(), keywords=keywords)
        yield obtained(tree, video, audio, record, (f"youtube:{video}",), f"{video} at {row['start_s']} s")


CORPORA = (
    Corpus("audiocaps", "AudioCaps", "not stated", "https://github.com/cdjkim/audiocaps", _AUDIOCAPS, _audiocaps,
           ("caption",), "audio is not shipped (YouTube); clips are part of AudioSet",
           tasks=("sound_caption",)),
    Corpus("clotho", "Clotho 2.1", "non-commercial, and CC per file", "https://zenodo.org/records/4783391", _CLOTHO,
           _clotho, ("caption", "keywords"), "clips are from freesound.org",
           tasks=("sound_caption", "keywords")),
    Corpus("wavcaps", "WavCaps", "academic use (unverified)", "https://github.com/XinhaoMei/WavCaps", {"train": TRAIN},
           _wavcaps, ("caption",), "drawn from AudioSet and freesound.org: give block= lists of what you test on; "
           "entries of its own json_files/blacklist/*.json are skipped",
           tasks=("sound_caption",)),
    Corpus("musiccaps", "MusicCaps", "CC-BY-SA-4.0", "https://huggingface.co/datasets/google/MusicCaps",
           {"test": TEST}, _musiccaps, ("caption", "keywords"),
           "in AIR-Bench chat: evaluation only; audio is not shipped (YouTube)",
           tasks=("music_caption", "keywords")),
)  # fmt: skip
