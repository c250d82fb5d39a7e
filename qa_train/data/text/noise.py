"""Noise on the answer that the decoder reads back while it learns, so that it listens instead of reciting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qa_train.data.text.template import IGNORE, Encoded
from qa_train.utils import draws


def ordinary_tokens(tokenizer: Any) -> list[int]:
    """Ids of all tokens that are neither special nor added (words and bytes), in order."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    return [i for i in range(len(tokenizer)) if i not in special]


def replace_targets(encoded: Encoded, share: float, tokens: Sequence[int], key: tuple[int, int, str]) -> Encoded:
    """Replace about ``share`` of the target tokens in ``input_ids`` by random ones of ``tokens``; the labels stay.

    A decoder that has seen a small corpus several times predicts a transcript from its own beginning. With a
    wrong history it has to take the next token from the audio (token-level input noise, as in arXiv 1703.02573).
    The last target of an answer, its end token, is kept. The draw depends on ``key`` (seed, epoch, sample) alone.
    """
    if share <= 0:
        return encoded
    rng = draws.generator(key)
    labels = np.asarray(encoded.labels)
    inner = (labels[:-1] != IGNORE) & (labels[1:] != IGNORE)
    replaced = np.flatnonzero(inner & (rng.random(len(inner)) < share))
    input_ids = list(encoded.input_ids)
    for place, token in zip(replaced, rng.integers(0, len(tokens), len(replaced)), strict=True):
        input_ids[place] = tokens[token]
    return Encoded(input_ids, encoded.labels)
