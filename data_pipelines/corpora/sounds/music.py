"""Music: NSynth (single notes), GTZAN (genres), MTG-Jamendo (genres, instruments, moods)."""

from __future__ import annotations

from pathlib import PurePosixPath

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Request, present, stem, words_of

_NSYNTH = {"train": TRAIN, "valid": DEV, "test": TEST}
_NOTES = ("C", "C sharp", "D", "D sharp", "E", "F", "F sharp", "G", "G sharp", "A", "A sharp", "B")


def _nsynth(request: Request) -> Found:
    """``nsynth-{split}/examples.json`` keyed by note, ``audio/{note}.wav``; pitch and velocity are MIDI numbers."""
    tree = request.tree
    (listed, *_) = tree.need(f"nsynth-{request.split}/examples.json", what="NSynth list")
    for name, row in tree.json(listed).items():
        pitch = int(row["pitch"])
        record = present(
            instrument=words_of(row["instrument_family_str"]),
            instrument_source=row["instrument_source_str"],
            pitch=pitch,
            velocity=int(row["velocity"]),
            note=f"{_NOTES[pitch % 12]} {pitch // 12 - 1}",
            keywords=[words_of(quality) for quality in row.get("qualities_str", [])],
        )
        audio = tree.recording(tree.beside(listed, "audio", f"{name}.wav"))
        yield Item(name, (audio,), record, (f"nsynth:{name}",))


_GTZAN = {"train": TRAIN, "valid": DEV, "test": TEST}
# Known to be damaged in the published archive (also excluded by mirdata and torchaudio).
_GTZAN_DAMAGED = ("jazz.00054",)


def _gtzan_lists(request: Request) -> dict[str, str]:
    """Recording -> split, of the fault-filtered ``{split}_filtered.txt`` ("blues/blues.00029.wav"); {} without them."""
    tree = request.tree
    found = {
        PurePosixPath(line.strip()).stem: split
        for split in _GTZAN
        for name in tree.glob(f"{split}_filtered.txt")
        for line in tree.lines(name)
        if line.strip()
    }
    if request.split not in found.values() and (found or request.split != TRAIN):
        raise ValueError(
            f"no {request.split}_filtered.txt under {', '.join(tree.paths)}: GTZAN has no official split; put the "
            "three lists of the fault-filtered split (train, valid, test) next to genres/, or none to train on all"
        )
    return found


def _gtzan(request: Request) -> Found:
    """``genres/{genre}/{genre}.000NN.wav``."""
    tree = request.tree
    listed = _gtzan_lists(request)
    filtered = bool(listed)
    for name in tree.need("genres/*/*.wav", "genres_original/*/*.wav", what="GTZAN recordings"):
        path = PurePosixPath(name)
        if path.stem in _GTZAN_DAMAGED:
            yield Drop(path.stem, "known to be damaged", filter=True)
            continue
        if filtered and path.stem not in listed:
            yield Drop(path.stem, "faulty", "excluded by the fault-filtered lists", filter=True)
            continue
        if listed.pop(path.stem, TRAIN) != request.split:
            continue
        yield Item(path.stem, (tree.recording(name),), {"genre": path.parent.name}, (f"gtzan:{path.stem}",))
    for name, split in listed.items():
        if split == request.split and name not in _GTZAN_DAMAGED:
            yield Drop(name, "missing audio", f"listed in {split}_filtered.txt")


_JAMENDO = {"train": TRAIN, "validation": DEV, "test": TEST}


def _jamendo(request: Request) -> Found:
    """``autotagging*-{split}.tsv``: track, artist, album, path, duration, and a column per tag ("genre---rock")."""
    tree = request.tree
    listed, *others = tree.need(f"autotagging*-{request.split}.tsv", what="MTG-Jamendo list")
    if others:
        raise ValueError(
            f"several lists of split {request.split} ({listed}, {others[0]}, ...): name one, path=[LIST,AUDIO]"
        )
    for number, line in enumerate(tree.lines(listed), 1):
        track, *cells = (cell.strip() for cell in line.split("\t"))
        if track == "TRACK_ID":
            continue
        if len(cells) < 5:
            yield Drop(f"{listed}-{number}", "bad line", f"{listed}, line {number}: {1 + len(cells)} cells")
            continue
        tags = [tag.partition("---")[::2] for tag in cells[4:]]
        of = {kind: ", ".join(words_of(name) for other, name in tags if other == kind) for kind, _ in tags}
        record = present(genre=of.get("genre"), instrument=of.get("instrument"), mood=of.get("mood/theme"),
                         keywords=[words_of(name) for _, name in tags])  # fmt: skip
        name = stem(cells[2])
        audio = tree.by_stem(name, f"{name}.low")
        if audio is None:
            yield Drop(track, "missing audio", f"{cells[2]}, listed in {listed}")
            continue
        yield Item(track, (tree.recording(audio),), record, (f"jamendo:{track}",))


CORPORA = (
    Corpus("nsynth", "NSynth", "CC-BY-4.0", "https://magenta.tensorflow.org/datasets/nsynth", _NSYNTH, _nsynth,
           ("instrument", "pitch", "velocity", "note"),
           tasks=("instrument", "note", "pitch", "velocity")),
    Corpus("gtzan", "GTZAN", "none stated", "http://marsyas.info/downloads/datasets.html", _GTZAN, _gtzan,
           ("genre",), "no official split: fault-filtered lists ({train,valid,test}_filtered.txt) next to genres/ "
           "are followed, without them train is everything; jazz.00054 is damaged and skipped",
           tasks=("genre",)),
    Corpus("mtg_jamendo", "MTG-Jamendo", "CC per track", "https://github.com/MTG/mtg-jamendo-dataset", _JAMENDO,
           _jamendo, ("genre", "instrument", "mood", "keywords"),
           "whole tracks, those longer than max_duration_s are skipped; subsets in five splits: name one list in path=",
           tasks=("genre", "instrument", "mood", "keywords")),
)  # fmt: skip
