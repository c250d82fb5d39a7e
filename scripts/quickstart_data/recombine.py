"""New sentences from the words of old ones, so that a small decoder has to listen instead of reciting.

A few hundred recorded prompts are soon known by heart: a decoder then completes a sentence from its
first words. Sentences walked through the word pairs of the same prompts, and recordings joined end to
end, have their words and continuations that cannot be guessed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from data_pipelines.clips.picks import draw, pick
from scripts.quickstart_data.clip import SAMPLE_RATE, Clip
from scripts.quickstart_data.spoken_text import TextIndex

MIN_WORDS, MAX_WORDS = 3, 12
MAX_JOINED_S = 6.0
# Draws for the parts of one joined clip; most are too long to fit.
_DRAWS = 12
_END = ""


def walk(texts: Sequence[str], num: int, *, seed: int, forbidden: TextIndex) -> list[str]:
    """``num`` new sentences of 3 to 12 words whose every word pair occurs in ``texts``.

    Every continuation of a word is equally likely, however often it was said. None equals, contains or
    lies within a text of ``forbidden`` (held-out texts), and none is in ``texts``.
    """
    follow: dict[str, set[str]] = defaultdict(set)
    for text in texts:
        for word, following in pairwise([_END, *text.split(), _END]):
            follow[word].add(following)
    choices = {word: sorted(after) for word, after in follow.items()}
    starts = sorted(choices.keys() - {_END})
    taken = set(texts)
    found: list[str] = []
    attempt = 0
    while len(found) < num:
        # Start anywhere, so that rare words are said as often as common ones.
        words = [pick(starts, seed, "start", attempt)]
        while len(words) < MAX_WORDS:
            word = pick(choices[words[-1]], seed, "next", attempt, len(words))
            if word == _END:
                break
            words.append(word)
        attempt += 1
        text = " ".join(words)
        if len(words) >= MIN_WORDS and text not in taken and not forbidden.conflicts(text):
            taken.add(text)
            found.append(text)
        elif attempt > 50 * (num + 100):
            raise ValueError(f"only {len(found)} of {num} new sentences can be walked through {len(texts)} texts")
    return found


def join(clips: Sequence[Clip], num: int, *, seed: int, forbidden: TextIndex) -> Iterator[Clip]:
    """``num`` clips of two to four recordings of at most 6 s together, with pauses of 0.05 to 0.25 s.

    No joined text equals, contains or lies within one of ``forbidden``.
    """
    made = attempt = 0
    while made < num:
        attempt += 1
        parts = _draw_parts(clips, seed, attempt)
        text = " ".join(part.record["text"] for part in parts)
        if len(parts) >= 2 and not forbidden.conflicts(text):
            pieces: list[np.ndarray] = []
            for j, part in enumerate(parts):
                pause_s = 0.05 + 0.2 * draw(seed, "pause", attempt, j)
                pieces += [part.wave, np.zeros(int(pause_s * SAMPLE_RATE), np.float32)]
            record = {name: value for name, value in parts[0].record.items() if name != "translation"}
            yield Clip(f"joined-{made:05d}", np.concatenate(pieces[:-1]), {**record, "text": text})
            made += 1
        elif attempt > 50 * (num + 100):
            raise ValueError(f"only {made} of {num} clips can be joined from {len(clips)}")


def _draw_parts(clips: Sequence[Clip], seed: int, attempt: int) -> list[Clip]:
    """Up to two, three or four drawn clips that fit together into the length limit."""
    wanted = 2 + int(draw(seed, "count", attempt) * 3)
    parts: list[Clip] = []
    for j in range(_DRAWS):
        clip = pick(clips, seed, "part", attempt, j)
        if sum(part.duration_s for part in parts) + clip.duration_s <= MAX_JOINED_S:
            parts.append(clip)
        if len(parts) == wanted:
            break
    return parts
