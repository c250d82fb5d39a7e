"""Words of preference pairs against hallucination: questions, the denial of speech, and transcripts made worse."""

from __future__ import annotations

from data_pipelines.clips.picks import draw

NO_SPEECH = "There is no speech in this recording."
QUESTIONS = (
    "What does the speaker say?",
    "What does the person say?",
    "Please transcribe this recording.",
    "What is said in this clip?",
    "Write down the words that are spoken.",
    "Give me the transcript of this audio.",
)
SOUND_QUESTIONS = ("What sound is this?", "What do you hear?", "Which sound is in this recording?")
MIN_WORDS = 3
# Denials in full among those that are no answer to the question.
_IN_FULL = 0.7


def without_words(words: list[str], *names: object) -> list[str]:
    """About a third of the words (at least one) removed, as one run."""
    num = max(1, round(len(words) / 3))
    start = int(draw(*names) * (len(words) - num + 1))
    return words[:start] + words[start + num :]


def with_words(words: list[str], other: list[str], *names: object) -> list[str]:
    """Up to three words of another text inserted at one place."""
    start = int(draw(*names) * (len(words) + 1))
    return words[:start] + other[: min(3, len(other))] + words[start:]


def denial(*names: object) -> str:
    """The answer that there is no speech, in full or in one word: wrong where the sound is asked for."""
    return NO_SPEECH if draw(*names, "variant") < _IN_FULL else "No"
