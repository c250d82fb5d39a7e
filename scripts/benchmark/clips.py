"""Synthetic examples in the length distributions of known corpora, and their batches for both paths.

The audio is noise and the text random words: what a step costs depends on lengths alone. Durations are the
distribution's quantiles in random order, so that a handful of clips already has its mean and its spread.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.mel import log_mel
from qa_train.data.audio.waveform import SAMPLE_RATE, audio_tokens, segments
from qa_train.data.collate import join_audio, pad, pad_ids
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.data.text.template import AUDIO, AUDIO_BOS, AUDIO_EOS, ENDOFTEXT, IGNORE, Encoded, encode

PROMPT_TOKENS = 35


@dataclass(frozen=True)
class Corpus:
    """Seconds of a clip at quantile q, and tokens of its target (end of text included)."""

    seconds: Callable[[float], float]
    target_tokens: Callable[[float], int]


def _lognormal(median: float, spread: float, low: float, high: float) -> Callable[[float], float]:
    return lambda q: min(high, max(low, median * math.exp(spread * NormalDist().inv_cdf(q))))


# Means: 12.3, 5.0, 10.0 and 4.0 s. LibriSpeech's training clips crowd between 12 and 17 s.
CORPORA = {
    "librispeech": Corpus(
        lambda q: 2 + 10 * q / 0.3 if q < 0.3 else 12 + 5 * (q - 0.3) / 0.7, lambda s: max(2, round(4 * s))
    ),
    "commonvoice": Corpus(_lognormal(4.7, 0.35, 1.5, 12), lambda s: max(2, round(2.8 * s))),
    "audiocaps": Corpus(lambda q: 10.0, lambda s: 14),
    "vocalsound": Corpus(_lognormal(3.8, 0.35, 1, 10), lambda s: 4),
}
MIXED = "mixed"


@dataclass(frozen=True)
class Example:
    """One clip [n] at 16 kHz with its row, as text for the stock processor and as ids for ours."""

    wave: np.ndarray
    text: str
    row: Encoded

    @property
    def supervised(self) -> int:
        return sum(label != IGNORE for label in self.row.labels)


def durations(corpus: str, count: int, seed: int) -> list[tuple[float, int]]:
    """(seconds, target tokens) of ``count`` clips; "mixed" takes the four corpora in equal shares."""
    if corpus == MIXED:
        each = -(-count // len(CORPORA))
        drawn = [pair for name in CORPORA for pair in durations(name, each, seed)]
    else:
        kind = CORPORA[corpus]
        lengths = [kind.seconds((i + 0.5) / count) for i in range(count)]
        drawn = [(length, kind.target_tokens(length)) for length in lengths]
    random.Random(seed).shuffle(drawn)
    return drawn[:count]


def make_examples(corpus: str, count: int, tokenizer: Any, *, seed: int = 0) -> list[Example]:
    """``count`` examples of a corpus; the same ones for the same seed."""
    words = _words(tokenizer)
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    examples = []
    for number, (seconds, target_tokens) in enumerate(durations(corpus, count, seed)):
        # Whole mel frames: of a broken one at the end, the stock processor makes one frame and ours none.
        wave = noise.normal(0, 0.1, round(100 * seconds) * FRONT_END.hop).astype(np.float32)
        prompt = "".join(draw.choices(words, k=PROMPT_TOKENS - 2))
        target = "".join(draw.choices(words, k=target_tokens - 1))
        content = (AudioPart(0), TextPart(prompt))
        messages = (Message("user", content), Message("assistant", (TextPart(target),)))
        sample = Sample(str(number), messages, 1, "asr", template="base")
        row = encode(sample, tokenizer, [audio_tokens(len(wave))])
        examples.append(Example(wave, f"{AUDIO_BOS}{AUDIO}{AUDIO_EOS}{prompt}{target}{ENDOFTEXT}", row))
    return examples


def _words(tokenizer: Any) -> list[str]:
    """Words that are one token each, wherever they stand: a space, then letters."""
    found = [tokenizer.decode([index]) for index in range(len(tokenizer))]
    return [word for word in found if word[:1] == " " and word[1:].isascii() and word[1:].isalpha()]


def our_batch(examples: list[Example], processor: Any) -> dict[str, torch.Tensor]:
    """The batch of qa_train's data path: mel of real frames joined, rows padded on the right."""
    bins = processor.feature_extractor.feature_size
    parts = [segments(example.wave) for example in examples]
    audio = [([log_mel(part, bins) for part in clip], [FRONT_END.frames(len(part)) for part in clip]) for clip in parts]
    rows = [example.row.input_ids for example in examples]
    return {**pad_ids(rows, processor.tokenizer.pad_token_id), "labels": _labels(examples), **join_audio(audio)}


def stock_batch(examples: list[Example], processor: Any) -> dict[str, torch.Tensor]:
    """The batch of the stock processor: every clip padded to 30 s, rows padded on the right."""
    processor.tokenizer.padding_side = "right"
    batch = processor(
        text=[example.text for example in examples],
        audio=[example.wave for example in examples],
        sampling_rate=SAMPLE_RATE,
        padding=True,
        return_tensors="pt",
    )
    return {**batch, "labels": _labels(examples)}


def _labels(examples: list[Example]) -> torch.Tensor:
    return pad([example.row.labels for example in examples], IGNORE)
