"""LibriSpeech, LibriTTS and MLS: read books of LibriVox.

``LibriSpeech/{split}/{speaker}/{chapter}/{utterance}.flac`` next to ``{speaker}-{chapter}.trans.txt`` (capitals, no
punctuation); LibriTTS has ``{utterance}.wav`` next to ``{utterance}.normalized.txt``; MLS has one list of a language
and split, ``mls_{language}/{split}/transcripts.txt``, and ``audio/{speaker}/{book}/{utterance}``, FLAC or Opus.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Found, Item, Request, gender_of, present
from data_pipelines.corpora.tree import AUDIO, Tree
from qa_train.data.text.records import language_code

SPLITS = {
    "train-clean-100": TRAIN, "train-clean-360": TRAIN, "train-other-500": TRAIN,
    "dev-clean": DEV, "dev-other": DEV, "test-clean": TEST, "test-other": TEST,
}  # fmt: skip


_SPEAKERS = ("SPEAKERS.TXT", "speakers.tsv")


def _genders(tree: Tree, lists: Iterable[str]) -> dict[str, str]:
    """speaker -> gender of SPEAKERS.TXT ("14 | F | train-clean-360 | ..."), LibriTTS's speakers.tsv, MLS's metainfo."""
    found: dict[str, str] = {}
    for name in lists:
        for line in tree.lines(name):
            cells = [cell.strip() for cell in line.replace("|", "\t").split("\t")]
            if len(cells) > 1 and cells[0].isdigit() and gender_of(cells[1]):
                found[cells[0]] = str(gender_of(cells[1]))
    return found


def _librispeech(request: Request) -> Found:
    tree = request.tree
    genders = _genders(tree, tree.glob(*_SPEAKERS))
    for listed in tree.need(f"{request.split}/*.trans.txt", what="LibriSpeech transcripts (*.trans.txt)"):
        speaker = PurePosixPath(listed).name.split("-")[0]
        for name, text in tree.pairs(listed):
            # All capitals carry no information and would teach the model to shout.
            record = present(text=text.lower(), language="en", speaker=f"librispeech-{speaker}",
                             gender=genders.get(speaker))  # fmt: skip
            yield Item(name, (tree.recording(tree.beside(listed, f"{name}.flac")),), record)


def _libritts(request: Request) -> Found:
    tree = request.tree
    genders = _genders(tree, tree.glob(*_SPEAKERS))
    for listed in tree.need(f"{request.split}/*.normalized.txt", what="LibriTTS texts (*.normalized.txt)"):
        name = PurePosixPath(listed).name.removesuffix(".normalized.txt")
        speaker = name.split("_")[0]
        text = " ".join(line.strip() for line in tree.lines(listed)).strip()
        record = present(text=text, language="en", speaker=f"librispeech-{speaker}", gender=genders.get(speaker))
        yield Item(name, (tree.recording(tree.beside(listed, f"{name}.wav")),), record)


def _mls(request: Request) -> Found:
    tree = request.tree
    for listed in tree.need(f"{request.split}/transcripts.txt", what=f"MLS list {request.split}/transcripts.txt"):
        audio = tree.beside(listed, "audio")
        clips = (name for name in tree.names if name.startswith(f"{audio}/") and name.lower().endswith(AUDIO))
        extension = PurePosixPath(next(clips, "none.flac")).suffix
        speakers = tree.beside(listed, "..", "metainfo.txt")
        genders = _genders(tree, [speakers] if speakers in tree.names else [])
        language = _mls_language(f"{tree.recording(listed).path}/{listed}")
        for name, text in tree.pairs(listed):
            speaker, *book = name.split("_")[:2]
            record = present(text=text, language=language, speaker=f"mls-{speaker}", gender=genders.get(speaker))
            yield Item(name, (tree.recording("/".join((audio, speaker, *book, name + extension))),), record)


def _mls_language(path: str) -> str:
    """The language of a list, by the folder or archive that it lies in: ".../mls_german_opus/dev/transcripts.txt".

    Raises ValueError when none is named like one.
    """
    named = re.match(r"(?:.*/)?mls_([a-z]+)(?:_opus)?(?:\.tar|\.zip)?/", path)
    if named is None:
        raise ValueError(f"{path} lies in no folder mls_LANGUAGE: name the folder as it is published, e.g. mls_german")
    return language_code(named[1])


CORPORA = (
    Corpus("librispeech", "LibriSpeech", "CC-BY-4.0", "https://www.openslr.org/12", SPLITS, _librispeech,
           ("text", "language", "speaker", "gender"), "transcripts are lower-cased",
           tasks=("asr", "lid", "speaker", "gender")),
    Corpus("libritts", "LibriTTS", "CC-BY-4.0 (unverified)", "https://www.openslr.org/60", SPLITS, _libritts,
           ("text", "language", "speaker", "gender"), "same books and speakers as LibriSpeech",
           tasks=("asr", "lid", "speaker", "gender")),
    Corpus("mls", "Multilingual LibriSpeech (MLS)", "CC-BY-4.0", "https://www.openslr.org/94",
           {"train": TRAIN, "dev": DEV, "test": TEST}, _mls, ("text", "language", "speaker", "gender"),
           "no capitals, no punctuation; that the English part holds nothing of LibriSpeech's test sets is not known",
           tasks=("asr", "lid", "speaker", "gender")),
)  # fmt: skip
