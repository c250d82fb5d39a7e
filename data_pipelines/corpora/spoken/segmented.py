"""GigaSpeech and WenetSpeech: long Opus recordings, cut by one JSON file (audios -> segments) that may have gigabytes.

It is read one recording at a time. Segments name the subsets that they are in; the larger hold the smaller.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from data_pipelines.corpora.base import (
    DEV,
    TEST,
    TRAIN,
    Corpus,
    Drop,
    Found,
    Item,
    Request,
    present,
    seconds_of,
    without_spaces,
)

_PUNCTUATION = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}
_TAG = re.compile(r"\s*<([A-Z]+)>")


def _spoken(tagged: str) -> str:
    """ "HELLO <COMMA> YOU" -> "HELLO, YOU"; "" for segments without words (<MUSIC>, <SIL>, ...)."""
    if set(_TAG.findall(tagged)) - set(_PUNCTUATION):
        return ""
    return _TAG.sub(lambda tag: _PUNCTUATION[tag[1]], tagged).strip()


def _reader(
    listed: str, language: str, field: str, mark: str, text_of: Callable[[str], str]
) -> Callable[[Request], Found]:
    """A reader of the file ``listed``: ``field`` of a segment has its text, ``mark`` is how subsets are spelt."""

    def read(request: Request) -> Found:
        tree = request.tree
        (path, *_) = tree.need(listed, what=listed)
        wanted = mark.format(request.split.upper())
        for audio in tree.objects(path, "audios"):
            for number, segment in enumerate(audio.get("segments") or ()):
                name = f"segment {number} of {audio.get('aid')}"
                try:
                    if wanted not in segment.get("subsets", audio.get("subsets", ())):
                        continue
                    name = str(segment["sid"])
                    tagged = segment[field]
                    if not isinstance(tagged, str):
                        raise TypeError(f"{field} is {tagged!r}; expected a text")
                    start, end = seconds_of(segment["begin_time"], segment["end_time"])
                    place = tree.recording(tree.beside(path, str(audio["path"])), start, end)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    detail = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                    yield Drop(name, "bad segment", f"{path}, {name}: {detail}")
                    continue
                text = text_of(_spoken(tagged))
                if not text:
                    yield Drop(name, "no speech", tagged, filter=True)
                    continue
                speaker = segment.get("speaker")
                speaker = None if speaker in (None, "N/A") else str(speaker)
                yield Item(name, (place,), present(text=text, language=language, speaker=speaker))

    return read


CORPORA = (
    Corpus("gigaspeech", "GigaSpeech", "by agreement", "https://github.com/SpeechColab/GigaSpeech",
           {"xs": TRAIN, "s": TRAIN, "m": TRAIN, "l": TRAIN, "xl": TRAIN, "dev": DEV, "test": TEST},
           _reader("GigaSpeech.json", "en", "text_tn", "{{{}}}", str.lower),
           ("text", "language", "speaker"), "tags become punctuation; xl contains the smaller subsets",
           tasks=("asr",)),
    Corpus("wenetspeech", "WenetSpeech", "CC-BY-4.0, for non-commercial purposes",
           "https://github.com/wenet-e2e/WenetSpeech",
           {"s": TRAIN, "m": TRAIN, "l": TRAIN, "w": TRAIN, "dev": DEV, "test_net": TEST, "test_meeting": TEST},
           _reader("WenetSpeech.json", "zh", "text", "{}", without_spaces),
           ("text", "language"), "w has weak labels, of a confidence below 0.95", tasks=("asr",)),
)  # fmt: skip
