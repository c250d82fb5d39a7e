"""VocalSound: laughter, sighs, coughs, throat clearing, sneezes and sniffs.

``audio_16k/{speaker}_{n}_{class}.wav``, ``datafiles/{tr,val,te}.json``, ``class_labels_indices_vs.csv``.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Request, gender_of, present


def _read(request: Request) -> Found:
    tree = request.tree
    (listed, *_) = tree.need(f"datafiles/{request.split}.json", what="VocalSound list")
    (classes, *_) = tree.need("class_labels_indices_vs.csv", what="VocalSound classes")
    names = {row["mid"]: row["display_name"] for row in tree.table(classes, ("mid", "display_name"))}
    for row in tree.objects(listed, "data"):
        # The lists hold absolute paths of the authors' machine.
        file = PurePosixPath(str(row["wav"])).name
        name = PurePosixPath(file).stem
        audio = tree.by_stem(name)
        if audio is None or row["labels"] not in names:
            yield Drop(name, "missing audio" if audio is None else "unknown class", str(row["labels"]))
            continue
        speaker = name.split("_")[0]
        label = names[row["labels"]]
        record = present(vocal_sound=label, label=label, speaker=f"vocalsound-{speaker}", gender=gender_of(speaker[:1]))
        yield Item(name, (tree.recording(audio),), record)


CORPORA = (
    Corpus("vocalsound", "VocalSound", "CC-BY-SA-4.0 (unverified)", "https://github.com/YuanGongND/vocalsound",
           {"tr": TRAIN, "val": DEV, "te": TEST}, _read, ("vocal_sound", "label", "speaker", "gender"),
           tasks=("vocal_sound", "gender")),
)  # fmt: skip
