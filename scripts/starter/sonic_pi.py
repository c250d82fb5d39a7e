"""Samples of Sonic Pi: drums, loops, electronic and other short recordings (CC0, from freesound.org)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from scripts.quickstart_data.clip import Clip, read_sound_file

PACKAGES = ("sonic-pi-samples",)

# prefix of the file name -> (class, caption); classes are those of the other sound corpora
_PREFIXES = {
    "ambi": ("ambience", "an ambient sound"),
    "bass": ("electronic sound", "a synthetic bass"),
    "bd": ("drum", "a bass drum"),
    "drum": ("drum", "a drum kit"),
    "elec": ("electronic sound", "an electronic sound"),
    "glitch": ("electronic sound", "an electronic glitch"),
    "guit": ("musical instrument", "an electric guitar"),
    "loop": ("music loop", "a music loop"),
    "mehackit": ("electronic sound", "an electronic sound"),
    "sn": ("drum", "a snare drum"),
    "tabla": ("drum", "a tabla drum"),
    "vinyl": ("everyday sound", "a record player"),
}
# Prefixes that say little: these names carry their own class.
_NAMES = {
    "ambi_choir": ("singing voice", "a choir"),
    "ambi_piano": ("musical instrument", "a piano"),
    "misc_burp": ("human sound", "a burp"),
    "misc_crow": ("animal", "a crow"),
    "perc_bell": ("everyday sound", "a bell"),
    "perc_door": ("everyday sound", "a door"),
    "perc_snap": ("human sound", "a finger snap"),
    "perc_till": ("everyday sound", "a cash register"),
}
_DRUMS = {
    "snare": "a snare drum",
    "cymbal": "a cymbal",
    "tom": "a tom drum",
    "kick": "a bass drum",
    "bass": "a bass drum",
}


def read(root: Path) -> Iterator[Clip]:
    """The clips with a descriptive name; variants of one sound share a ``group``."""
    for path in sorted((root / "usr/share/sonic-pi/samples").glob("*.flac")):
        stem = re.sub(r"\d+$", "", path.stem)
        prefix = stem.split("_")[0]
        if stem not in _NAMES and prefix not in _PREFIXES:
            continue
        label, caption = _NAMES.get(stem) or _PREFIXES[prefix]
        if prefix == "drum":
            caption = next((text for word, text in _DRUMS.items() if word in stem), caption)
        record = {
            "label": label,
            "caption": caption,
            "name": stem.replace("_", " "),
            "source": "sonic-pi",
            "license": "CC0-1.0",
        }
        # tabla_ghe1 ... tabla_ghe8, drum_tom_hi_soft and drum_tom_lo_hard: one recording session each
        group = "_".join(stem.split("_")[:2])
        yield Clip(f"sonic-pi-{path.stem}".replace("_", "-"), read_sound_file(path), record, group=group)
