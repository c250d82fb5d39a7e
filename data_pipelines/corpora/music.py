"""Music: NSynth (single notes) and GTZAN (genres)."""

from __future__ import annotations

from pathlib import PurePosixPath

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Request, present, words_of

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


# Known to be damaged in the published archive (also left out by mirdata and torchaudio).
_GTZAN_DAMAGED = ("jazz.00054",)


def _gtzan(request: Request) -> Found:
    """``genres/{genre}/{genre}.000NN.wav``."""
    tree = request.tree
    for name in tree.need("genres/*/*.wav", "genres_original/*/*.wav", what="GTZAN recordings"):
        path = PurePosixPath(name)
        if path.stem in _GTZAN_DAMAGED:
            yield Drop(path.stem, "known to be damaged")
            continue
        yield Item(path.stem, (tree.recording(name),), {"genre": path.parent.name}, (f"gtzan:{path.stem}",))


CORPORA = (
    Corpus("nsynth", "NSynth", "CC-BY-4.0", "https://magenta.tensorflow.org/datasets/nsynth", _NSYNTH, _nsynth,
           ("instrument", "pitch", "velocity", "note")),
    Corpus("gtzan", "GTZAN", "none stated", "http://marsyas.info/downloads/datasets.html", {"train": TRAIN}, _gtzan,
           ("genre",), "no official split; jazz.00054 is damaged and left out"),
)  # fmt: skip
