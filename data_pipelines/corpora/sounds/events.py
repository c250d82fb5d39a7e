"""Labelled sound events: AudioSet (weak and strong labels), VGGSound, FSD50K, ESC-50, UrbanSound8K."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import groupby

from data_pipelines.corpora.base import (
    DEV,
    TEST,
    TRAIN,
    Corpus,
    Drop,
    Found,
    Item,
    Request,
    events_record,
    obtained,
    present,
    stem,
    words_of,
)
from data_pipelines.corpora.sounds.captions import youtube_audio
from data_pipelines.corpora.tree import Tree

# split -> list of segments
_WEAK = {
    "balanced_train": "balanced_train_segments.csv", "unbalanced_train": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}  # fmt: skip
_STRONG = {"strong_train": "audioset_train_strong.tsv", "strong_eval": "audioset_eval_strong.tsv"}
CLIP_S = 10.0


def _display_names(tree: Tree) -> dict[str, str]:
    """mid -> label, of class_labels_indices.csv (weak) and mid_to_display_name.tsv (strong)."""
    found: dict[str, str] = {}
    for name in tree.glob("class_labels_indices.csv"):
        found |= {row["mid"]: row["display_name"] for row in tree.table(name, ("mid", "display_name"))}
    for name in tree.glob("mid_to_display_name.tsv"):
        found |= {
            row["mid"]: row["name"] for row in tree.table(name, header=("mid", "name"), delimiter="\t", quoted=False)
        }
    if not found:
        raise ValueError(f"no class_labels_indices.csv (or mid_to_display_name.tsv) under {', '.join(tree.paths)}")
    return found


def _weak_rows(tree: Tree, listed: str) -> Iterator[tuple[str, str, list[str]] | Drop]:
    """(video, start, label ids); lines that begin with # are comments."""
    lines = (line for line in tree.lines(listed) if line and not line.startswith("#"))
    for row in csv.reader(lines, skipinitialspace=True):
        if len(row) != 4:
            yield Drop(row[0], "bad line", f"{listed}: expected video, start, end, labels, found {row}")
        elif row[0] != "YTID":
            yield row[0], row[1], row[3].split(",")


def _audioset(request: Request) -> Found:
    if request.split in _STRONG:
        yield from _audioset_strong(request)
        return
    tree = request.tree
    (listed, *_) = tree.need(_WEAK[request.split], what="AudioSet list")
    names = _display_names(tree)
    for found in _weak_rows(tree, listed):
        if isinstance(found, Drop):
            yield found
            continue
        video, start, mids = found
        audio = youtube_audio(tree, video, start)
        labels = [names.get(mid, mid) for mid in mids]
        record = present(labels=labels, label=labels[0] if len(labels) == 1 else None)
        yield obtained(tree, video, audio, record, (f"youtube:{video}",), f"{video} at {start} s")


def _audioset_strong(request: Request) -> Found:
    """segment_id (VIDEO_MILLISECONDS), start_time_seconds, end_time_seconds, label: sorted by segment."""
    tree = request.tree
    (listed, *_) = tree.need(_STRONG[request.split], what="AudioSet list of strong labels")
    names = _display_names(tree)
    rows = tree.table(listed, ("segment_id", "start_time_seconds", "end_time_seconds", "label"), delimiter="\t")
    for segment, group in groupby(rows, key=lambda row: row["segment_id"]):
        video, _, milliseconds = segment.rpartition("_")
        events = [
            {
                "label": names.get(row["label"], row["label"]),
                "start": round(float(row["start_time_seconds"]), 3),
                "end": round(float(row["end_time_seconds"]), 3),
            }
            for row in group
        ]
        audio = youtube_audio(tree, video, f"{int(milliseconds) / 1000:.3f}")
        yield obtained(
            tree, segment, audio, events_record(events), (f"youtube:{video}",), f"{video} at {milliseconds} ms"
        )


_FSD50K = {"train": TRAIN, "val": DEV, "eval": TEST}


def _fsd50k(request: Request) -> Found:
    """``FSD50K.ground_truth/{dev,eval}.csv``; the development list marks clips as train or val."""
    tree = request.tree
    part = "eval" if request.split == "eval" else "dev"
    (listed, *_) = tree.need(f"FSD50K.ground_truth/{part}.csv", what="FSD50K ground truth")
    licences: dict[str, str] = {}
    for name in tree.glob(f"FSD50K.metadata/{part}_clips_info_FSD50K.json"):
        licences |= {clip: str(about.get("license", "")) for clip, about in tree.json(name).items()}
    for row in tree.table(listed, ("fname", "labels")):
        if part == "dev" and row.get("split") != request.split:
            continue
        labels = [words_of(label) for label in row["labels"].split(",")]
        record = present(
            labels=labels, label=labels[0] if len(labels) == 1 else None, license=licences.get(row["fname"])
        )
        audio = tree.recording(tree.beside(listed, "..", f"FSD50K.{part}_audio", f"{row['fname']}.wav"))
        yield Item(row["fname"], (audio,), record, (f"freesound:{row['fname']}",))


def _esc50(request: Request) -> Found:
    """``meta/esc50.csv``: filename, fold, category, src_file; folds 1 to 4, or fold 5."""
    tree = request.tree
    (listed, *_) = tree.need("meta/esc50.csv", what="ESC-50 list")
    for row in tree.table(listed, ("filename", "fold", "category", "src_file")):
        if (row["fold"] == "5") != (request.split == "fold5"):
            continue
        audio = tree.recording(tree.beside(listed, "..", "audio", row["filename"]))
        record = {"label": words_of(row["category"]), "labels": [words_of(row["category"])]}
        yield Item(stem(row["filename"]), (audio,), record, (f"freesound:{row['src_file']}",))


def _urbansound8k(request: Request) -> Found:
    """``metadata/UrbanSound8K.csv`` and ``audio/fold{N}/``; folds 1 to 9, or fold 10."""
    tree = request.tree
    (listed, *_) = tree.need("UrbanSound8K.csv", what="UrbanSound8K list")
    for row in tree.table(listed, ("slice_file_name", "fsID", "fold", "class")):
        if (row["fold"] == "10") != (request.split == "fold10"):
            continue
        audio = tree.recording(tree.beside(listed, "..", "audio", f"fold{row['fold']}", row["slice_file_name"]))
        record = {"label": words_of(row["class"]), "labels": [words_of(row["class"])]}
        yield Item(stem(row["slice_file_name"]), (audio,), record, (f"freesound:{row['fsID']}",))


def _vggsound(request: Request) -> Found:
    """``vggsound.csv``: video, start in seconds, label, split, without a header; the audio is the user's own."""
    tree = request.tree
    (listed, *_) = tree.need("vggsound.csv", what="VGGSound list")
    for row in tree.table(listed, header=("video", "start", "label", "split")):
        if row["split"] != request.split:
            continue
        video, start = row["video"], row["start"]
        record = {"label": row["label"], "labels": [row["label"]]}
        audio = youtube_audio(tree, video, start)
        yield obtained(tree, f"{video}_{start}", audio, record, (f"youtube:{video}",), f"{video} at {start} s")


CORPORA = (
    Corpus("audioset", "AudioSet", "labels CC-BY-4.0, audio not shipped", "https://research.google.com/audioset/",
           {"balanced_train": TRAIN, "unbalanced_train": TRAIN, "strong_train": TRAIN, "eval": TEST,
            "strong_eval": TEST}, _audioset, ("labels", "events"),
           f"clips of {CLIP_S:.0f} s; contains AudioCaps and MusicCaps: give block= lists of what you test on",
           tasks=("sound_events", "event_detection")),
    Corpus("vggsound", "VGGSound", "labels CC-BY-4.0 (unverified), audio not shipped",
           "https://github.com/hche11/VGGSound", {"train": TRAIN, "test": TEST}, _vggsound, ("label",),
           "clips of 10 s of YouTube: give block= lists of what you test on",
           tasks=("sound_class",)),
    Corpus("fsd50k", "FSD50K", "CC per clip", "https://zenodo.org/records/4060432", _FSD50K, _fsd50k, ("labels",),
           "clips are from freesound.org, as Clotho's are",
           tasks=("sound_events",)),
    Corpus("esc50", "ESC-50", "CC-BY-NC (unverified)", "https://github.com/karolpiczak/ESC-50",
           {"train": TRAIN, "fold5": TEST}, _esc50, ("label",), "cross-validation folds: 5 is held out",
           tasks=("sound_class",)),
    Corpus("urbansound8k", "UrbanSound8K", "CC-BY-NC (unverified)", "https://urbansounddataset.weebly.com",
           {"train": TRAIN, "fold10": TEST}, _urbansound8k, ("label",), "cross-validation folds: 10 is held out",
           tasks=("sound_class",)),
)  # fmt: skip
