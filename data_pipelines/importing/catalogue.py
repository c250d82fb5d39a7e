"""All corpora by name, and those of the user's own."""

from __future__ import annotations

from data_pipelines.corpora.base import Corpus
from data_pipelines.corpora.formats import (
    energon,
    fairseq,
    lhotse,
    manifests,
    mosaic,
    nemo,
    stm,
    strong_labels,
    tables,
    webdataset,
)
from data_pipelines.corpora.sounds import audio_qa, captions, events, music
from data_pipelines.corpora.spoken import (
    common_voice,
    emotion,
    fleurs,
    intent,
    librispeech,
    mandarin,
    segmented,
    vocal_sound,
    voxceleb,
    voxpopuli,
)
from qa_train.utils import plugins
from qa_train.utils.closest import closest
from qa_train.utils.terminal import PLAIN, Layout

_MODULES = (
    librispeech, common_voice, fleurs, mandarin, segmented, voxpopuli, emotion, voxceleb, intent, vocal_sound, captions,
    events, audio_qa, music, tables, manifests, strong_labels, stm, fairseq, lhotse, nemo,
    webdataset, energon, mosaic,
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
    if plugins.place_of(plugins.CORPORA, name) is not None:
        return _own(name)
    near = closest(_plain(name), by_plain, cutoff=0.4)
    hint = f"did you mean {by_plain[near].name}? " if near else ""
    raise ValueError(f"no corpus {name!r}; {hint}qa-train data import --list shows all {len(CORPORA)}")


def _own(name: str) -> Corpus:
    """A corpus of the user's own. ValueError: it may not run, or is no `Corpus`."""
    corpus = plugins.load(plugins.CORPORA, name)
    if not isinstance(corpus, Corpus) or not callable(corpus.read):
        raise ValueError(
            f"{name} is {type(corpus).__name__} {corpus!r}: expected a data_pipelines.corpora.base.Corpus, whose read "
            "takes a Request and yields Items"
        )
    return corpus


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
    for name, place in plugins.offered(plugins.CORPORA).items():
        package = place.partition(":")[0].partition(".")[0]
        lines += [page.fold(f"{name}: {place}, of an installed package: add plugins=[{package}]")]
    return "\n".join(lines)
