"""LibriSpeech and LibriTTS: read English books.

``LibriSpeech/{split}/{speaker}/{chapter}/{utterance}.flac`` next to ``{speaker}-{chapter}.trans.txt`` (capitals, no
punctuation); LibriTTS has ``{utterance}.wav`` next to ``{utterance}.normalized.txt``.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Found, Item, Request, gender_of, present
from data_pipelines.corpora.tree import Tree

SPLITS = {
    "train-clean-100": TRAIN, "train-clean-360": TRAIN, "train-other-500": TRAIN,
    "dev-clean": DEV, "dev-other": DEV, "test-clean": TEST, "test-other": TEST,
}  # fmt: skip


def _genders(tree: Tree) -> dict[str, str]:
    """speaker -> gender of SPEAKERS.TXT ("14 | F | train-clean-360 | ...") or LibriTTS's speakers.tsv."""
    found: dict[str, str] = {}
    for name in tree.glob("SPEAKERS.TXT", "speakers.tsv"):
        for line in tree.lines(name):
            cells = [cell.strip() for cell in line.replace("|", "\t").split("\t")]
            if len(cells) > 1 and cells[0].isdigit() and gender_of(cells[1]):
                found[cells[0]] = str(gender_of(cells[1]))
    return found


def _librispeech(request: Request) -> Found:
    tree = request.tree
    genders = _genders(tree)
    for listed in tree.need(f"{request.split}/*.trans.txt", what="LibriSpeech transcripts (*.trans.txt)"):
        speaker = PurePosixPath(listed).name.split("-")[0]
        for name, text in tree.pairs(listed):
            # All capitals carry no information and would teach the model to shout.
            record = present(text=text.lower(), language="en", speaker=f"librispeech-{speaker}",
                             gender=genders.get(speaker))  # fmt: skip
            yield Item(name, (tree.recording(tree.beside(listed, f"{name}.flac")),), record)


def _libritts(request: Request) -> Found:
    tree = request.tree
    genders = _genders(tree)
    for listed in tree.need(f"{request.split}/*.normalized.txt", what="LibriTTS texts (*.normalized.txt)"):
        name = PurePosixPath(listed).name.removesuffix(".normalized.txt")
        speaker = name.split("_")[0]
        text = " ".join(line.strip() for line in tree.lines(listed)).strip()
        record = present(text=text, language="en", speaker=f"librispeech-{speaker}", gender=genders.get(speaker))
        yield Item(name, (tree.recording(tree.beside(listed, f"{name}.wav")),), record)


CORPORA = (
    Corpus("librispeech", "LibriSpeech", "CC-BY-4.0", "https://www.openslr.org/12", SPLITS, _librispeech,
           ("text", "language", "speaker", "gender"), "transcripts are lower-cased",
           tasks=("asr", "lid", "speaker", "gender")),
    Corpus("libritts", "LibriTTS", "CC-BY-4.0 (unverified)", "https://www.openslr.org/60", SPLITS, _libritts,
           ("text", "language", "speaker", "gender"), "same books and speakers as LibriSpeech",
           tasks=("asr", "lid", "speaker", "gender")),
)  # fmt: skip
