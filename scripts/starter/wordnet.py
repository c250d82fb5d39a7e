"""Example sentences of WordNet 3.0: plain English text, to be spoken by speech synthesis."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from data_pipelines.clips.picks import draw
from scripts.quickstart_data.spoken_text import TextIndex, spoken

PACKAGES = ("wordnet-base",)

NUM_WORDS = range(3, 10)


def read(root: Path) -> list[str]:
    """Normalised, distinct example sentences of 3 to 9 words, in a fixed pseudo-random order.

    Sentences whose words are rare within the whole set come last: common words are what a small
    model can learn from a few thousand sentences.
    """
    found: dict[str, None] = {}
    for part in ("noun", "verb", "adj", "adv"):
        lines = (root / f"usr/share/wordnet/data.{part}").read_text(encoding="latin-1").splitlines()
        for line in lines:
            gloss = line.partition("|")[2]
            for quote in re.findall(r'"([^"]+)"', gloss):
                # Capitals inside a sentence are names and abbreviations, which read in many ways.
                if re.search(r"[A-Z]{2}|\b[A-Z]\b(?<!I)|\.\.\.|`", quote) or not quote.isascii():
                    continue
                text = spoken(quote, "en")
                if text and len(text.split()) in NUM_WORDS:
                    found[text] = None
    count = Counter(word for text in found for word in text.split())
    rarest = {text: min(count[word] for word in text.split()) for text in found}
    return sorted(found, key=lambda text: (rarest[text] < 4, draw("wordnet", text)))


def choose(sentences: list[str], held_out: TextIndex, limit: int) -> list[str]:
    """The first ``limit`` sentences that share no text with ``held_out``, sorted."""
    kept: list[str] = []
    for text in sentences:
        if len(kept) == limit:
            break
        if not held_out.conflicts(text):
            kept.append(text)
    return sorted(kept)
