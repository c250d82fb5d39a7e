"""Normalisation and the rule by which texts conflict."""

from __future__ import annotations

import itertools
import random

import pytest

from scripts.quickstart_data.spoken_text import TextIndex, spoken


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Please try again.", "en", "please try again"),
        ("Press 1 to accept, or 2 to reject it", "en", "press one to accept or two to reject it"),
        ("Nulla da fare: l’aiuto è 0", "it", "nulla da fare l'aiuto è zero"),
        ("\ufeffNo-op...", "en", "no op"),
        ("at [@]", "en", "at"),
        ("space [ ]", "en", "space"),
        ("party's 'quoted' name", "en", "party's quoted name"),
        ("Нажмите 7.", "ru", "нажмите семь"),
        # Unclear what is said: dropped.
        ("[sound of monkeys screaming]", "en", None),
        ("(10 seconds of silence)", "en", None),
        ('IAX (note: does not say "2")', "en", None),
        ("<beep ascending>", "ru", None),
        ("3D audio enabled", "en", None),
        ("dial 500 now", "en", None),
        ("H 3 23", "fr", None),
        ("press * to pause", "en", None),
        ("visit www.asterisk.org", "en", None),
        ("fin. vm-review-nonurgent: Pour enlever", "fr", None),
        ("Press 1", "ja", None),
        ("...", "en", None),
    ],
)
def test_spoken(text: str, language: str, expected: str | None) -> None:
    assert spoken(text, language) == expected


def test_spoken_is_idempotent() -> None:
    text = spoken("It's 3 o'clock -- re-record the parties' names!", "en")
    assert text is not None
    assert spoken(text, "en") == text


def test_conflicts_equal_the_definition() -> None:
    """The index (by runs of words) against comparing every pair of texts."""
    rng = random.Random(0)
    texts = sorted({" ".join(rng.choices(["a", "b", "c"], k=rng.randint(1, 7))) for _ in range(120)})

    def conflict(one: str, other: str) -> bool:
        if one == other:
            return True
        short, long = sorted((one, other), key=lambda text: len(text.split()))
        return len(short.split()) >= 3 and f" {short} " in f" {long} "

    index = TextIndex(texts[::2])
    for text in texts:
        assert index.conflicts(text) == sorted(other for other in texts[::2] if conflict(text, other)), text
    assert any(conflict(a, b) for a, b in itertools.combinations(texts, 2))
