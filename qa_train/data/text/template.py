"""A sample becomes token ids and labels: the base (pretraining) text or ChatML.

Base: ``<|audio_bos|><|AUDIO|>*n<|audio_eos|>`` + prompt + target + ``<|endoftext|>``.
Chat: the ChatML of the released Qwen2-Audio model, ``Audio 1: ...`` numbering and the default
system prompt included. Labels are set only on the target (base) or on the assistant turns with
their ``<|im_end|>`` (chat); they are aligned with the inputs, the model shifts them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart

IGNORE = -100
AUDIO, AUDIO_BOS, AUDIO_EOS = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
IM_START, IM_END, ENDOFTEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
# So many texts, of at most so many characters, are remembered with their ids by each process.
_TEXTS_KEPT, _KEPT_LENGTH = 50_000, 500
# And so many with the number of their ids.
_COUNTS_KEPT = 200_000
DEFAULT_SYSTEM = "You are a helpful assistant."


# A row before its text is encoded: (text or the id of a special token, how often it comes, whether it is learned).
Outline = list[tuple[str | int, int, bool]]


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one row, both of length T; labels are -100 for tokens that are not learned."""

    input_ids: list[int]
    labels: list[int]


def encode(sample: Sample, tokenizer: Any, clip_tokens: list[int], *, last_turn_only: bool = False) -> Encoded:
    """The whole training row; ``clip_tokens[i]`` is the number of audio tokens of clip i.

    ``last_turn_only``: of a chat, learn only the last assistant turn. A turn's own mark (``learned``) takes precedence.
    """
    return _encoded(outline(sample, tokenizer, clip_tokens, last_turn_only=last_turn_only), tokenizer)


def outline(sample: Sample, tokenizer: Any, clip_tokens: list[int], *, last_turn_only: bool = False) -> Outline:
    """What `encode` encodes, for `measure`."""
    if sample.template == "base":
        return outline_prompt(sample, tokenizer, clip_tokens) + outline_answers(sample, tokenizer)[0]
    row = _Row(tokenizer, clip_tokens, sample)
    messages = _with_system(sample.messages)
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    usual = answers[-1:] if last_turn_only else answers
    for i, message in enumerate(messages):
        learn = i in usual if message.learned is None else message.learned
        row.turn(message, answer=message.role == "assistant", learn=learn)
    return row.finish()


def encode_prompt(sample: Sample, tokenizer: Any, clip_tokens: list[int]) -> list[int]:
    """Everything up to the model's answer, without a final assistant turn unless it is unfinished."""
    return _encoded(outline_prompt(sample, tokenizer, clip_tokens), tokenizer).input_ids


def outline_prompt(sample: Sample, tokenizer: Any, clip_tokens: list[int]) -> Outline:
    """What `encode_prompt` encodes, for `measure`."""
    row = _Row(tokenizer, clip_tokens, sample)
    if sample.template == "base":
        row.base_prompt(sample)
        return row.finish()
    messages = sample.messages
    last = messages[-1] if messages and messages[-1].role == "assistant" else None
    for message in _with_system(messages[:-1] if last else messages):
        row.turn(message, answer=message.role == "assistant", learn=False)
    row.special(IM_START)
    row.text("assistant\n")
    if last and last.unfinished:
        row.flush()
        row.parts(last.content, learn=False)
    return row.finish()


def outline_documents(
    sample: Sample, tokenizer: Any, clip_tokens: list[int], *, pair: bool, last_turn_only: bool = False
) -> list[Outline]:
    """The texts that a sample is trained on: one, or the two of a pair, each with its prompt; for `measure`."""
    if not pair:
        return [outline(sample, tokenizer, clip_tokens, last_turn_only=last_turn_only)]
    prompt = outline_prompt(sample, tokenizer, clip_tokens)
    return [prompt + answer for answer in outline_answers(sample, tokenizer)]


def encode_pair(sample: Sample, tokenizer: Any, clip_tokens: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Prompt, chosen and rejected token ids of a preference pair; answers end with the eos token."""
    made = outline_prompt(sample, tokenizer, clip_tokens), *outline_answers(sample, tokenizer)
    prompt, chosen, rejected = (_encoded(part, tokenizer).input_ids for part in made)
    return prompt, chosen, rejected


def outline_answers(sample: Sample, tokenizer: Any) -> list[Outline]:
    """What follows the prompt: the last answer, or the two of a pair, for `measure`. They are learned.

    An answer starts a new token, so the tokens of a row with one question are those of its prompt and of its answer.
    """
    pair = sample.chosen is not None and sample.rejected is not None
    end = ENDOFTEXT if sample.template == "base" else IM_END
    made = []
    for answer in (sample.chosen, sample.rejected) if pair else (_last_answer(sample),):
        row = _Row(tokenizer, [], sample)
        row.parts(answer or (), learn=True)
        row.special(end, learn=True)
        if end == IM_END and not pair:
            row.text("\n")
        made.append(row.finish())
    return made


def measure(outlines: Sequence[Outline], tokenizer: Any) -> NDArray[np.int64]:
    """Tokens of each outline and how many of them are learned [N, 2], without building ids.

    All texts are counted in one call of the tokenizer, which takes a fifth of the time of a call for each of them.
    """
    counts = _vocabulary(tokenizer).counts({text for each in outlines for text, _, _ in each if isinstance(text, str)})
    made = np.zeros((len(outlines), 2), dtype=np.int64)
    for number, each in enumerate(outlines):
        for piece, times, learn in each:
            tokens = times * (counts[piece] if isinstance(piece, str) else 1)
            made[number] += tokens, tokens * learn
    return made


def special_id(tokenizer: Any, token: str) -> int:
    """Id of a special token, looked up by name; ValueError when the tokenizer lacks it."""
    ids = _vocabulary(tokenizer).special_ids
    if token not in ids:
        raise ValueError(f"the tokenizer has no special token {token}; prepare it with qa_train.model.tokenizers")
    return ids[token]


def _encoded(made: Outline, tokenizer: Any) -> Encoded:
    vocabulary = _vocabulary(tokenizer)
    input_ids: list[int] = []
    labels: list[int] = []
    for piece, times, learn in made:
        ids = vocabulary.encode_text(piece) if isinstance(piece, str) else [piece] * times
        input_ids += ids
        labels += ids if learn else [IGNORE] * len(ids)
    return Encoded(input_ids, labels)


class _Row:
    """Collects pieces; adjacent text is encoded as one string, as a stock tokenizer would see it."""

    def __init__(self, tokenizer: Any, clip_tokens: list[int], sample: Sample) -> None:
        self.vocabulary = _vocabulary(tokenizer)
        self.tokenizer = tokenizer
        self.clip_tokens = clip_tokens
        self.key = sample.key
        self.clips_seen = 0
        self.made: Outline = []
        # Adjacent texts, and whether each is learned.
        self.pending: list[tuple[str, bool]] = []

    def special(self, token: str, *, learn: bool = False, count: int = 1) -> None:
        """Append a special token; text before it ends there."""
        self.flush()
        self.made.append((special_id(self.tokenizer, token), count, learn))

    def text(self, text: str, *, learn: bool = False) -> None:
        if text:
            self.pending.append((text, learn))

    def flush(self) -> None:
        if len({learn for _, learn in self.pending}) > 1:
            self.made += [(index, 1, learn) for index, learn in self.vocabulary.partly(self.pending)]
        elif self.pending:
            self.made.append(("".join(text for text, _ in self.pending), 1, self.pending[0][1]))
        self.pending = []

    def parts(self, content: tuple[TextPart | AudioPart, ...], *, learn: bool, numbered: bool = False) -> None:
        """Text and clips; of an answer the text is learned, and a clip with its number is not."""
        for part in content:
            if isinstance(part, AudioPart):
                self.audio(part.clip, numbered)
            elif part.trusted:
                for text, is_special in self.vocabulary.split(part.text):
                    if is_special:
                        self.special(text, learn=learn)
                    else:
                        self.text(text, learn=learn)
            else:
                self.text(part.text, learn=learn)

    def audio(self, clip: int, numbered: bool) -> None:
        if clip >= len(self.clip_tokens):
            raise ValueError(f"{self.key}: clip {clip} has no length; {len(self.clip_tokens)} were given")
        self.clips_seen += 1
        if numbered:
            self.text(f"Audio {self.clips_seen}: ")
        self.special(AUDIO_BOS)
        self.special(AUDIO, count=self.clip_tokens[clip])
        self.special(AUDIO_EOS)
        if numbered:
            self.text("\n")

    def base_prompt(self, sample: Sample) -> None:
        """Base text before the target. The target starts a new token, as in generation."""
        for message in sample.messages:
            if message.role == "user":
                self.parts(message.content, learn=False)
        self.flush()

    def turn(self, message: Message, *, answer: bool, learn: bool) -> None:
        """One ChatML turn. An answer starts a new token, as after the generation prompt."""
        self.special(IM_START)
        self.text(message.role + "\n")
        if answer:
            self.flush()
        self.parts(message.content, learn=learn, numbered=True)
        self.special(IM_END, learn=learn)
        self.text("\n")

    def finish(self) -> Outline:
        self.flush()
        return self.made


def _last_answer(sample: Sample) -> tuple[TextPart | AudioPart, ...]:
    last = sample.messages[-1]
    if last.role != "assistant":
        raise ValueError(f"{sample.key}: a training sample must end with an assistant message")
    return last.content


def _with_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages and messages[0].role == "system":
        return messages
    return (Message("system", (TextPart(DEFAULT_SYSTEM),)), *messages)


class _Vocabulary:
    """A tokenizer's special tokens, and encoding of text that must not become one."""

    def __init__(self, tokenizer: Any) -> None:
        # Flags of AddedToken are not trusted: language tags are often added as ordinary tokens.
        added = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
        specials = set(tokenizer.all_special_tokens)
        self.special_ids = {t: i for t, i in added.items() if t in specials or re.fullmatch(r"<[^\s<>]+>", t)}
        names = sorted(self.special_ids, key=len, reverse=True)
        self.pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else re.compile("(?!)")
        # Wordings and targets come back every epoch.
        self._cached = lru_cache(maxsize=_TEXTS_KEPT)(self._encode_text)
        self._counts: dict[str, int] = {}
        self._tokenizer = tokenizer

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Trusted text in pieces; True marks a special token."""
        return [(piece, i % 2 == 1) for i, piece in enumerate(self.pattern.split(text)) if piece]

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, in which no special token is read."""
        return self._cached(text) if len(text) <= _KEPT_LENGTH else self._encode_text(text)

    def partly(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[int, bool]]:
        """Ids of adjacent texts as one string, and whether each is learned: if its text is, from end to end."""
        joined = "".join(text for text, _ in texts)
        mask = [learn for text, learn in texts for _ in text]
        found = []
        start = 0
        for part in self._parts(joined):
            row = self._tokenizer(part, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            spans = [slice(start + first, start + last) for first, last in row["offset_mapping"]]
            found += [(i, {*mask[span]} == {True}) for i, span in zip(row["input_ids"], spans, strict=True)]
            start += len(part)
        return found

    def counts(self, texts: Collection[str]) -> dict[str, int]:
        """The number of ids of each text, of many at once."""
        if len(self._counts) > _COUNTS_KEPT:
            self._counts.clear()
        parts = {text: self._parts(text) for text in texts if text not in self._counts}
        asked = sorted({part for each in parts.values() for part in each})
        ids = self._tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"] if asked else []
        known = dict(zip(asked, map(len, ids), strict=True))
        found = {text: sum(known[part] for part in each) for text, each in parts.items()}
        self._counts |= {text: count for text, count in found.items() if len(text) <= _KEPT_LENGTH}
        return {text: self._counts[text] if text in self._counts else found[text] for text in texts}

    def _encode_text(self, text: str) -> list[int]:
        return [i for part in self._parts(text) for i in self._tokenizer.encode(part, add_special_tokens=False)]

    def _parts(self, text: str) -> list[str]:
        """Plain text in parts that the tokenizer reads one by one. A spelled special token is cut after its first
        character, so that the tokenizer reads two ordinary strings and never the special id."""
        cuts = [0, *(match.start() + 1 for match in self.pattern.finditer(text)), len(text)]
        return [text[start:end] for start, end in pairwise(cuts)]


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any) -> _Vocabulary:
    return _Vocabulary(tokenizer)
