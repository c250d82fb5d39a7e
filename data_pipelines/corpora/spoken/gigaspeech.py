"""GigaSpeech: podcasts, YouTube and audiobooks, cut by ``GigaSpeech.json`` (audios -> segments); Opus audio."""

from __future__ import annotations

import re

from data_pipelines.corpora.base import DEV, TEST, TRAIN, Corpus, Drop, Found, Item, Request, present

_SUBSETS = {"xs": TRAIN, "s": TRAIN, "m": TRAIN, "l": TRAIN, "xl": TRAIN, "dev": DEV, "test": TEST}
_PUNCTUATION = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}
_TAG = re.compile(r"\s*<([A-Z]+)>")


def plain_text(tagged: str) -> str | None:
    """ "HELLO <COMMA> YOU" -> "hello, you"; None for segments without words (<MUSIC>, <SIL>, ...)."""
    tags = set(_TAG.findall(tagged))
    if tags - set(_PUNCTUATION):
        return None
    return _TAG.sub(lambda tag: _PUNCTUATION[tag[1]], tagged).strip().lower() or None


def _read(request: Request) -> Found:
    tree = request.tree
    (listed, *_) = tree.need("GigaSpeech.json", what="GigaSpeech.json")
    wanted = "{" + request.split.upper() + "}"
    for audio in tree.objects(listed, "audios"):
        for segment in audio.get("segments", ()):
            if wanted not in segment.get("subsets", audio.get("subsets", ())):
                continue
            name = str(segment["sid"])
            text = plain_text(str(segment["text_tn"]))
            if text is None:
                yield Drop(name, "no speech", segment["text_tn"], filter=True)
                continue
            place = tree.recording(
                tree.beside(listed, str(audio["path"])), float(segment["begin_time"]), float(segment["end_time"])
            )
            speaker = segment.get("speaker")
            record = present(text=text, language="en", speaker=None if speaker in (None, "N/A") else str(speaker))
            yield Item(name, (place,), record)


CORPORA = (
    Corpus("gigaspeech", "GigaSpeech", "by agreement", "https://github.com/SpeechColab/GigaSpeech", _SUBSETS, _read,
           ("text", "language", "speaker"), "tags become punctuation; xl contains the smaller subsets",
           tasks=("asr",)),
)  # fmt: skip
