"""All corpora by name."""

from __future__ import annotations

from data_pipelines.corpora.base import Corpus
from data_pipelines.corpora.formats import energon, lhotse, manifests, mosaic, nemo, tables, webdataset
from data_pipelines.corpora.sounds import audio_qa, captions, events, music
from data_pipelines.corpora.spoken import (
    common_voice,
    emotion,
    fleurs,
    gigaspeech,
    intent,
    librispeech,
    mandarin,
    vocal_sound,
    voxceleb,
)
from qa_train.utils.closest import closest
from qa_train.utils.terminal import PLAIN, Layout

_MODULES = (
    librispeech, common_voice, fleurs, mandarin, gigaspeech, emotion, voxceleb, intent, vocal_sound, captions, events,
    audio_qa, music, tables, manifests, lhotse, nemo, webdataset, energon, mosaic,
)  # fmt: skip
CORPORA: dict[str, Corpus] = {corpus.name: corpus for module in _MODULES for corpus in module.CORPORA}


def _plain(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def corpus_of(name: str) -> Corpus:
    """The corpus of that name; "LibriSpeech" and "libri-speech" mean librispeech. ValueError names the nearest."""
    by_plain = {_plain(known): corpus for known, corpus in CORPORA.items()}
    found = by_plain.get(_plain(name))
    if found is not None:
        return found
    near = closest(_plain(name), by_plain, cutoff=0.4)
    hint = f"did you mean {by_plain[near].name}? " if near else ""
    raise ValueError(f"no corpus {name!r}; {hint}qa-train data import --list shows all {len(CORPORA)}")


def table(page: Layout = PLAIN) -> str:
    """The corpora with licence, splits and fields, as text, laid out for ``page``."""
    lines = []
    for corpus in CORPORA.values():
        splits = ", ".join(f"{name}" + ("" if role == name else f" ({role})") for name, role in corpus.splits.items())
        facts = {
            "licence": corpus.license,
            "splits": splits + (", or any name" if corpus.generic else ""),
            "fields": ", ".join(corpus.gives),
            "tasks": ", ".join(corpus.tasks) or "those that its fields allow",
            "note": corpus.note,
            "from": corpus.homepage,
        }
        lines += [page.paint(page.fold(f"{corpus.name}: {corpus.title}"), "bold")]
        lines += [page.entries([(name, text) for name, text in facts.items() if text], 13, indent=4)]
    return "\n".join(lines)
