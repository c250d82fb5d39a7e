"""Sounds of Scratch 1.4: 114 short recordings in eight folders, with descriptive names (CC-BY-SA-3.0)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from scripts.quickstart_data.clip import Clip, read_sound_file

PACKAGES = ("scratch",)

# folder -> class; the classes are shared by all sound corpora
CLASSES = {
    "Animal": "animal",
    "Effects": "everyday sound",
    "Electronic": "electronic sound",
    "Human": "human sound",
    "Instruments": "musical instrument",
    "Music Loops": "music loop",
    "Percussion": "drum",
    "Vocals": "singing voice",
}
# Names that do not read well once their capitals are split.
_READS = {
    "baby cry": "a crying baby",
    "beat box": "a voice that beatboxes",
    "car passing": "a passing car",
    "cricket": "a chirping cricket",
    "crickets": "chirping crickets",
    "door close": "a closing door",
    "door creak": "a creaking door",
    "drum": "a drum beat",
    "hand clap": "clapping hands",
    "horse gallop": "a galloping horse",
    "human beatbox": "a voice that beatboxes",
    "meow": "a meowing cat",
    "motorcycle passing": "a passing motorcycle",
    "ripples": "rippling water",
    "water drop": "a drop of water",
    "water running": "running water",
    "wolf howl": "a howling wolf",
    "xylo": "a xylophone melody",
    "footsteps": "footsteps",
    "bubbles": "bubbles",
    "typing": "typing on a keyboard",
    "cough female": "a coughing woman",
    "cough male": "a coughing man",
    "laugh female": "a laughing woman",
    "laugh male": "a laughing man",
    "scream female": "a screaming woman",
    "scream male": "a screaming man",
    "sneeze female": "a sneezing woman",
    "sneeze male": "a sneezing man",
}


# Sung words: neither plain singing nor speech with a transcript, so they would make unclear answers.
_SUNG_WORDS = {"Come-and-play", "Got-inspiration", "Join-us", "Sing-me-a-song"}


def _words(stem: str) -> str:
    """ "CarPassing" -> "car passing", "Laugh-male1" -> "laugh male"."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem.replace("-", " "))
    return re.sub(r"\d+", "", split).strip().lower()


def _caption(words: str, label: str) -> str:
    if words in _READS:
        return _READS[words]
    if label == "singing voice":
        return "a singing voice"
    if label in ("electronic sound", "music loop"):
        return f"{'an' if label[0] == 'e' else 'a'} {label} ({words})"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def read(root: Path) -> Iterator[Clip]:
    """The clips without sung words; ``label`` is the class, ``caption`` a phrase made of the file's name."""
    sounds = root / "usr/share/scratch/Media/Sounds"
    for path in sorted(sounds.rglob("*")):
        if path.suffix not in (".wav", ".mp3") or path.stem in _SUNG_WORDS:
            continue
        label = CLASSES[path.parent.name]
        words = _words(path.stem)
        record = {
            "label": label,
            "caption": _caption(words, label),
            "name": words,
            "source": "scratch",
            "license": "CC-BY-SA-3.0",
        }
        key = f"scratch-{path.parent.name}-{path.stem}".lower().replace(" ", "-")
        # One group per first word: "Dog1" and "Dog2", "Laugh-female" and "Laugh-male1".
        yield Clip(key, read_sound_file(path), record, group=f"scratch {words.split()[0]}")
