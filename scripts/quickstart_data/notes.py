"""Single notes of General MIDI instruments: unlimited music with exact labels.

Rendered by ``tinysoundfont`` from TimGM6mb.sf2, the font (GPL-2) that the package ``pretty_midi`` carries.
The pieces are made on the spot and never shipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data_pipelines.clips.picks import between, draw
from scripts.quickstart_data.clip import SAMPLE_RATE, Clip

# label -> General MIDI programs (counted from 0) that people would call by that name
INSTRUMENTS = {
    "piano": (0, 1, 2, 3, 4),
    "bells": (9, 10, 14),
    "xylophone": (12, 13),
    "organ": (16, 18, 19),
    "guitar": (24, 25, 26, 27),
    "bass guitar": (33, 34, 35),
    "violin": (40, 41, 48),
    "trumpet": (56, 57, 61),
    "saxophone": (64, 65, 66),
    "flute": (72, 73, 75),
}
_PITCHES = {"bass guitar": range(28, 53)}  # MIDI numbers; the other instruments play C3 to B5
_DEFAULT_PITCHES = range(48, 84)
_ARTICLES = {"organ": "an", "bells": ""}
_NAMES = ("C", "C sharp", "D", "D sharp", "E", "F", "F sharp", "G", "G sharp", "A", "A sharp", "B")

_HOLD_S = (0.6, 1.2)
_RELEASE_S = 0.4
_VELOCITY = (0.5, 1.0)
TEST_SHARE = 0.1


@dataclass(frozen=True)
class Note:
    """One note: the instrument's name, General MIDI program and MIDI pitch (69 = A4 = 440 Hz)."""

    label: str
    program: int
    pitch: int

    @property
    def name(self) -> str:
        """Pitch name with octave, e.g. "F sharp 4" (MIDI 60 is C 4)."""
        return f"{_NAMES[self.pitch % 12]} {self.pitch // 12 - 1}"


def all_notes() -> list[Note]:
    """Every combination of program and pitch."""
    return [
        Note(label, program, pitch)
        for label, programs in INSTRUMENTS.items()
        for program in programs
        for pitch in _PITCHES.get(label, _DEFAULT_PITCHES)
    ]


def split() -> tuple[list[Note], list[Note]]:
    """(train, test) in a pseudo-random order: a tenth of the (program, pitch) pairs is never trained on."""
    notes = sorted(all_notes(), key=lambda note: draw("note", note.program, note.pitch))
    num_test = round(TEST_SHARE * len(notes))
    return notes[num_test:], notes[:num_test]


def render(notes: list[Note], *, split: str, seed: int) -> Iterator[Clip]:
    """One clip per note, with length and loudness drawn from (seed, note)."""
    try:
        import tinysoundfont
    except ImportError as error:
        raise ValueError("notes need the packages tinysoundfont and pretty_midi: pip install them") from error
    found = find_spec("pretty_midi")
    if found is None or found.origin is None:
        raise ValueError("notes need the sound font inside the package pretty_midi: pip install pretty_midi")
    synth = tinysoundfont.Synth(samplerate=SAMPLE_RATE)
    font = synth.sfload(str(Path(found.origin).parent / "TimGM6mb.sf2"))
    for i, note in enumerate(notes):
        facts = (seed, split, i, note.program, note.pitch)
        hold = between(_HOLD_S, *facts, "hold")
        velocity = between(_VELOCITY, *facts, "velocity")
        synth.program_select(0, font, 0, note.program)
        synth.noteon(0, note.pitch, round(127 * velocity))
        parts = [_samples(synth, hold)]
        synth.noteoff(0, note.pitch)
        parts.append(_samples(synth, _RELEASE_S))
        synth.sounds_off()
        record = {
            "label": note.label,
            "note": note.name,
            "caption": f"a note played on {_ARTICLES.get(note.label, 'a')} {note.label}".replace("  ", " "),
            "instrument": note.label,
            "program": note.program,
            "pitch": note.pitch,
            "split": split,
            "source": "general-midi",
            "license": "GPL-2.0-only",
        }
        yield Clip(f"note-{split}-{i:05d}", np.concatenate(parts), record)


def _samples(synth, seconds: float) -> np.ndarray:  # type: ignore[no-untyped-def]
    stereo = np.frombuffer(synth.generate(int(seconds * SAMPLE_RATE)), dtype=np.float32).reshape(-1, 2)
    return stereo.mean(axis=1)
