"""Manifests of fairseq's wav2vec 2.0 and HuBERT: ``train.tsv``, and its transcripts line by line in ``train.wrd``.

The first line of the .tsv is a folder, the others are files below it and their lengths; ``train.ltr`` has the letters
of the same transcripts with spaces between them, and bars for spaces.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Recording, Request
from data_pipelines.corpora.formats.fields import recording_of
from qa_train.data.text.records import BadRecord

# A part of a file: a clip that lies uncompressed in a zip, as PATH:OFFSET:LENGTH in bytes.
_SLICE = re.compile(r"(.+):(\d+):(\d+)")


def _read(request: Request) -> Found:
    tree = request.tree
    manifest = f"{request.published_split}.tsv"
    named = [name for name in tree.named if name.endswith(".tsv")]
    if manifest in named:
        named = [manifest]
    elif named:
        named = request.lists(named)
    for listed in named or tree.need(manifest, what="manifest"):
        texts = _texts(request, listed)
        root, *rows = [*tree.lines(listed)] or [""]
        if len(texts) != len(rows):
            raise ValueError(
                f"{listed} has {len(rows)} files and its transcripts have {len(texts)} lines: they belong together "
                "line by line, so make both again"
            )
        folder = Path(tree.recording(listed).path).parent
        for number, (row, text) in enumerate(zip(rows, texts, strict=True), 1):
            file, _, frames = row.partition("\t")
            name = f"{listed.removesuffix('.tsv')}-{number:08d}"
            if not frames.strip().isdigit():
                yield Drop(name, "bad line", f"{listed}, line {number + 1}: {row[:80]!r}; expected FILE<TAB>FRAMES")
            elif not text:
                yield Drop(name, "no text")
            else:
                try:
                    audio = _recording(request, root.strip(), file, folder)
                except BadRecord as error:
                    yield Drop(name, error.reason, str(error))
                    continue
                yield Item(name, (audio,), {"text": text})


def _texts(request: Request, listed: str) -> list[str]:
    """The transcripts next to a manifest: its words, else its letters. ValueError when there are neither."""
    tree = request.tree
    for extension, text_of in ((".wrd", str.strip), (".ltr", _spelt)):
        labels = listed.removesuffix(".tsv") + extension
        if labels in tree.names:
            return list(map(text_of, tree.lines(labels)))
    stem = Path(listed).stem
    raise ValueError(
        f"no {stem}.wrd or {stem}.ltr next to {listed}: give the folder that has both, path=DIR split={stem}"
    )


def _spelt(letters: str) -> str:
    """ "H I | Y O U |" -> "HI YOU"."""
    return letters.replace(" ", "").replace("|", " ").strip()


def _recording(request: Request, root: str, file: str, folder: Path) -> Recording:
    part = _SLICE.fullmatch(file)
    found = recording_of(request, str(Path(root) / (part[1] if part else file)), folder)
    return replace(found, offset=int(part[2]), size=int(part[3])) if part else found


CORPORA = (
    Corpus("fairseq", "fairseq's manifests: train.tsv with train.wrd or train.ltr", "not stated: set fields.license=",
           "", {"train": TRAIN, "valid": DEV, "test": TEST}, _read, ("text",),
           "the split is the name of the manifest; prefix=[OLD,NEW] changes the folder in its first line; texts "
           "keep their case, capitals in LibriSpeech's manifests",
           generic=True),
)  # fmt: skip
