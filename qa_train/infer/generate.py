"""From samples with their clips to answers: one batch, unpadded audio, exact order.

1. Prompt ids by the training code's own template, clips encoded unpadded (each once:
   ``encoded.EncodedClips``), so that questions have exactly the form of training.
2. One prefill and decode; answers in the order of the items.

Many items are answered batch by batch, as ``plan_batches`` groups them: `qa_train.eval.answers.answer`.

Shapes: R rows of a batch, L prompt length, T audio tokens of all clips, E encoder width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from qa_train.data.audio.waveform import audio_tokens
from qa_train.data.text.sample import Sample
from qa_train.data.text.template import encode_prompt
from qa_train.infer.encoded import EncodedClips
from qa_train.infer.row_stream import Numbers, Row, RowsEnded, RowsStreamer, before_stop
from qa_train.model import encoder_hash

# Ends of an answer: the chat's and the base format's.
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")
PAD_TOKEN = "<|endoftext|>"
LEAST_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class Item:
    """A question to the model: a sample without its answer, and a 16 kHz mono waveform per clip."""

    sample: Sample
    waves: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        if len(self.waves) != self.sample.num_clips:
            raise ValueError(
                f"sample {self.sample.key!r} has {self.sample.num_clips} clips, but "
                f"{len(self.waves)} waveforms were given: pass one per clip, in order"
            )


@dataclass(frozen=True)
class Answer:
    """The model's answer. ``text`` keeps tags such as ``<|en|>`` and has no end tokens."""

    text: str
    # The answer reached max_new_tokens without ending itself.
    truncated: bool
    # Wall time of the batch divided by its rows.
    seconds: float
    # Why there is none: an endpoint refused this item.
    error: str | None = None


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. The defaults are those of Qwen2-Audio's released evaluation: greedy."""

    max_new_tokens: int = 256
    min_new_tokens: int = 1
    # 0 is greedy; above, softmax temperature of sampling.
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError for temperatures so low that dividing the scores by them overflows."""
        if not (self.temperature <= 0 or LEAST_TEMPERATURE <= self.temperature < float("inf")):
            raise ValueError(
                f"temperature is {self.temperature!r}; expected 0 (greedy), or {LEAST_TEMPERATURE:g} and more"
            )

    def options(self) -> dict[str, Any]:
        """Keyword arguments of transformers' ``generate``."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "do_sample": self.temperature > 0,
            "num_beams": 1,
            "repetition_penalty": 1.0,
        }
        # A checkpoint's generation_config must not add limits: every option is explicit.
        if self.temperature > 0:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        else:
            options |= {"temperature": None, "top_p": None, "top_k": None}
        return options


def prompt_tokens(sample: Sample, audio: int) -> int:
    """Length of a prompt for planning: ``audio`` tokens, and text by its characters, which sorts as well as tokens."""
    texts = [getattr(part, "text", "") for message in sample.messages for part in message.content]
    return audio + sum(len(text) // 3 + 4 for text in texts)


def plan_batches(lengths: Sequence[int], *, rows: int, tokens: int, new_tokens: int) -> list[list[int]]:
    """Group item numbers, longest first, so that rows x (longest prompt + new tokens) fits ``tokens``.

    Longest first, so that a memory shortage shows in the first batch and not in the last one.
    A single item over the budget is a separate batch.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        full = not batches or len(batches[-1]) == rows
        if full or (len(batches[-1]) + 1) * (longest + new_tokens) > tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Sampling draws from torch's global generators: set them, and restore them."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class Generator:
    """Answers items with one model. Not thread-safe; the model is put into eval mode while it answers."""

    def __init__(self, model: Any, processor: Any, *, clips: EncodedClips | None = None) -> None:
        """``clips``: encoder states to reuse and to add to; by default a new, empty store. The
        encoder's weights are hashed here: a generator must not outlive a change of them.
        """
        self.clips = clips if clips is not None else EncodedClips()
        self.encoder = encoder_hash(model)
        self.model = model
        self.tokenizer = processor.tokenizer
        self.num_mel_bins = int(processor.feature_extractor.feature_size)
        self.pad_id = self.tokenizer.convert_tokens_to_ids(PAD_TOKEN)
        self.stop_ids = [self.tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS]

    def generate(self, items: Sequence[Item], decoding: Decoding | None = None) -> list[Answer]:
        """Answer every item, in one batch; the order of the answers is the order of the items. The caller bounds it.

        Greedy answers do not depend on how items are batched, up to rounding of the arithmetic.
        Sampled ones are a function of (items, decoding).
        """
        return self._answer(items, decoding or Decoding())

    def sample(self, items: Sequence[Item], count: int, decoding: Decoding) -> list[list[Answer]]:
        """Draw ``count`` answers per item by sampling: [items][count]; the clips are encoded once.

        Raises:
            ValueError: greedy decoding, which would give ``count`` times the same answer.
        """
        if decoding.temperature <= 0:
            raise ValueError("sampling needs decoding.temperature > 0: greedy draws would all be equal")
        flat = self._answer(items, decoding, count=count)
        return [flat[start : start + count] for start in range(0, len(flat), count)]

    def stream(self, item: Item, write: Callable[[str], None], decoding: Decoding | None = None) -> Answer:
        """Answer one item and hand the text to ``write`` piece by piece as it appears."""
        decoding = decoding or Decoding()
        return self.stream_rows([Row(item.sample, item.waves, write, decoding.max_new_tokens)], decoding)[0]

    def stream_rows(self, rows: Sequence[Row], decoding: Decoding) -> list[Answer]:
        """Answer all rows in one batch; each writes its text as it appears and ends at its own limit.

        ``decoding``: how tokens are drawn; its ``max_new_tokens`` is not used here. The caller bounds the batch.
        """
        options = replace(decoding, max_new_tokens=max(row.max_new_tokens for row in rows))
        return self._answer([Item(row.sample, row.waves) for row in rows], options, rows=rows)

    @torch.no_grad()
    def batch(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """Left-padded ids [R, L], their mask, and encoder states [T, E], on the model's device."""
        prompts = [
            encode_prompt(item.sample, self.tokenizer, [audio_tokens(len(wave)) for wave in item.waves])
            for item in items
        ]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        batch = {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
        waves = [wave for item in items for wave in item.waves]
        if waves:
            batch["audio_states"] = self.clips.states(self.model, self.encoder, waves, self.num_mel_bins)
        return batch

    @torch.no_grad()
    def _answer(
        self,
        items: Sequence[Item],
        decoding: Decoding,
        *,
        count: int = 1,
        rows: Sequence[Row] | None = None,
    ) -> list[Answer]:
        """``count`` answers of each item, one item after the other; ``rows`` to hand the text on (count 1)."""
        started = time.perf_counter()
        training = self.model.training
        self.model.eval()
        try:
            batch = self.batch(items)
            streaming: dict[str, Any] = {}
            if rows is not None:
                streaming["streamer"] = RowsStreamer(rows, self.tokenizer, self.stop_ids)
                streaming["stopping_criteria"] = StoppingCriteriaList([RowsEnded(rows)])
            with _seeded(decoding.seed, self.model.device):
                output = self.model.generate(
                    **batch,
                    **decoding.options(),
                    eos_token_id=self.stop_ids,
                    pad_token_id=self.pad_id,
                    num_return_sequences=count,
                    use_cache=True,
                    logits_processor=LogitsProcessorList([Numbers()]),
                    **streaming,
                )
        finally:
            self.model.train(training)
        answers = output[:, batch["input_ids"].shape[1] :].tolist()
        seconds = (time.perf_counter() - started) / len(answers)
        if rows is not None:
            # A row that ended before the others is filled up with padding, which looks like an end token.
            texts = [before_stop(self._text(row.ids)[0], row.stop).rstrip() for row in rows]
            return [Answer(text, row.truncated, seconds) for text, row in zip(texts, rows, strict=True)]
        return [Answer(*self._text(answer), seconds) for answer in answers]

    def _text(self, ids: list[int]) -> tuple[str, bool]:
        """Decode up to the first end token; without one, the answer was cut short."""
        ends = [i for i, token in enumerate(ids) if token in self.stop_ids]
        text = self.tokenizer.decode(ids[: ends[0]] if ends else ids, skip_special_tokens=False)
        return text.strip(), not ends
