"""VoxCeleb1 and 2: interviews of celebrities, ``{speaker}/{video}/{clip}.wav`` under ``wav/`` (or ``aac/``)."""

from __future__ import annotations

from pathlib import PurePosixPath

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Request, gender_of, present
from data_pipelines.corpora.tree import Tree

_PARTS = {"1": "train", "2": "dev", "3": "test"}


def _genders(tree: Tree) -> dict[str, str]:
    """speaker -> gender, of vox1_meta.csv or vox2_meta.csv (tabs, or commas with spaces)."""
    found: dict[str, str] = {}
    for name in tree.glob("vox1_meta.csv", "vox2_meta.csv"):
        for line in tree.lines(name):
            cells = [cell.strip() for cell in line.replace(",", "\t").split("\t")]
            speaker = next((cell for cell in cells if cell.startswith(("id1", "id0"))), None)
            gender = next((gender_of(cell) for cell in cells if cell in ("m", "f")), None)
            if speaker and gender:
                found[speaker] = gender
    return found


def _clip(name: str) -> str:
    """ "dev/wav/id10001/VIDEO/00001.wav" -> "id10001/VIDEO/00001"."""
    return "/".join(PurePosixPath(name).with_suffix("").parts[-3:])


def _item(tree: Tree, name: str, genders: dict[str, str]) -> Item:
    clip = _clip(name)
    speaker, video, _ = clip.split("/")
    record = present(speaker=speaker, gender=genders.get(speaker))
    return Item(clip.replace("/", "-"), (tree.recording(name),), record, (f"youtube:{video}", f"voxceleb:{clip}"))


def _voxceleb1(request: Request) -> Found:
    tree = request.tree
    (listed, *_) = tree.need("iden_split.txt", what="VoxCeleb1 split (iden_split.txt)")
    part = {_clip(path): _PARTS.get(number, number) for number, path in tree.pairs(listed)}
    trials = {
        _clip(path) for name in tree.glob("veri_test.txt") for _, pair in tree.pairs(name) for path in pair.split()
    }
    genders = _genders(tree)
    for name in tree.audio_names("id1"):
        clip = _clip(name)
        if part.pop(clip, "") != request.split:
            continue
        if clip in trials and request.split == "train":
            yield Drop(clip, "evaluation clip", "listed in veri_test.txt, the verification trials", filter=True)
            continue
        yield _item(tree, name, genders)
    for clip, split in part.items():
        if split == request.split:
            yield Drop(clip, "missing audio", "listed in iden_split.txt")


def _voxceleb2(request: Request) -> Found:
    tree = request.tree
    genders = _genders(tree)
    names = [name for name in tree.audio_names("id0") if f"/{request.split}/" in f"/{name}"]
    if not names:
        raise ValueError(
            f"no {request.split}/*/id0*/VIDEO/*.wav under {', '.join(tree.paths)}: the published files are AAC, which "
            "libsndfile does not read; convert them to .wav or .flac first"
        )
    for name in names:
        yield _item(tree, name, genders)


CORPORA = (
    Corpus("voxceleb1", "VoxCeleb1", "CC-BY-4.0 (as lhotse states it)",
           "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html", {"train": TRAIN, "dev": DEV, "test": TEST},
           _voxceleb1, ("speaker", "gender"), "clips of the verification trials (veri_test.txt) are dropped",
           tasks=("speaker", "gender")),
    Corpus("voxceleb2", "VoxCeleb2", "CC-BY-4.0 (as lhotse states it)",
           "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox2.html", {"dev": TRAIN, "test": TEST}, _voxceleb2,
           ("speaker", "gender"), "dev is its training split; convert the AAC files first",
           tasks=("speaker", "gender")),
)  # fmt: skip
