"""From samples with their clips to answers: length-sorted batches, unpadded audio, exact order.

1. ``prepare``: a sample and its waveforms become prompt ids and mel frames (the training code's
   own template and features, so that a model is asked exactly as it was taught).
2. ``plan_batches``: items of like length share a batch, within a token budget.
3. ``Generator.generate``: one prefill and decode per batch; answers in the order of the items.

Shapes: R rows of a batch, L prompt length, M mel bins, F mel frames of all clips joined,
S segments (windows of at most 30 s).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import TextStreamer

from qa_train.data.audio import audio_tokens, log_mel, segments
from qa_train.data.sample import Sample
from qa_train.data.template import encode_prompt

# Ends of an answer: the chat's and the base format's.
STOP_TOKENS = ("<|im_end|>", "<|endoftext|>")
PAD_TOKEN = "<|endoftext|>"


@dataclass(frozen=True)
class Item:
    """A question to the model: a sample without its answer, and a 16 kHz mono waveform per clip."""

    sample: Sample
    waves: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        if len(self.waves) != self.sample.num_clips:
            raise ValueError(
                f"sample {self.sample.key!r} speaks of {self.sample.num_clips} clips, "
                f"{len(self.waves)} waveforms were given: pass one per clip, in order"
            )


@dataclass(frozen=True)
class Answer:
    """What the model said. ``text`` keeps tags such as ``<|en|>`` and has no end tokens."""

    text: str
    # The answer reached max_new_tokens without ending itself.
    truncated: bool
    # Wall time of the batch divided by its rows.
    seconds: float


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. The defaults are those of Qwen2-Audio's released evaluation: greedy."""

    max_new_tokens: int = 256
    min_new_tokens: int = 1
    # 0 is greedy; above, softmax temperature of sampling.
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Keyword arguments of transformers' ``generate``."""
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "do_sample": self.temperature > 0,
            "num_beams": 1,
            "repetition_penalty": 1.0,
        }
        # A checkpoint's generation_config must not add limits of its own: every option is explicit.
        if self.temperature > 0:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        else:
            options |= {"temperature": None, "top_p": None, "top_k": None}
        return options


@dataclass
class Prompt:
    """An item made ready: token ids with the audio run expanded, and the mel frames of its clips."""

    ids: list[int]
    mel: torch.Tensor | None
    feature_lengths: list[int] = field(default_factory=list)


def prepare(item: Item, tokenizer: Any, num_mel_bins: int) -> Prompt:
    """Encode one item: ids of the generation prompt, mel [M, F] of all its segments joined."""
    ids = encode_prompt(item.sample, tokenizer, [audio_tokens(len(wave)) for wave in item.waves])
    pieces = [piece for wave in item.waves for piece in segments(wave)]
    if not pieces:
        return Prompt(ids, None)
    mel = torch.cat([log_mel(piece, num_mel_bins) for piece in pieces], dim=1)
    return Prompt(ids, mel, [len(piece) // 160 for piece in pieces])


def plan_batches(lengths: Sequence[int], *, rows: int, tokens: int, new_tokens: int) -> list[list[int]]:
    """Group item numbers, longest first, so that rows x (longest prompt + new tokens) fits ``tokens``.

    Longest first, so that a memory shortage shows in the first batch and not in the last one.
    A single item over the budget is a batch of its own.
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


class _Relay(TextStreamer):
    """Hands finished pieces of the answer to a function instead of printing them."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._write(text)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Sampling draws from torch's global generators: set them, and give them back as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class Generator:
    """Answers items with one model. Not thread-safe; the model is put into eval mode while it answers."""

    def __init__(self, model: Any, processor: Any, *, batch_size: int = 32, token_budget: int = 16384) -> None:
        """batch_size: most rows of a batch; token_budget: most prompt + new tokens of a batch."""
        if batch_size < 1 or token_budget < 1:
            raise ValueError(f"batch_size {batch_size} and token_budget {token_budget} must be at least 1")
        self.model = model
        self.tokenizer = processor.tokenizer
        self.num_mel_bins = int(processor.feature_extractor.feature_size)
        self.batch_size = batch_size
        self.token_budget = token_budget
        self.pad_id = self.tokenizer.convert_tokens_to_ids(PAD_TOKEN)
        self.stop_ids = [self.tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS]

    def generate(
        self,
        items: Sequence[Item],
        decoding: Decoding | None = None,
        *,
        on_batch: Callable[[dict[int, Answer]], None] | None = None,
    ) -> list[Answer]:
        """Answer every item; the order of the answers is the order of the items.

        Greedy answers do not depend on how items are batched, up to rounding of the arithmetic.
        Sampled ones are a function of (items, decoding, batch limits). ``on_batch`` receives
        {item number: answer} after each batch, to save or show progress.
        """
        decoding = decoding or Decoding()
        lengths = [self._length(item) for item in items]
        answers: dict[int, Answer] = {}
        plan = plan_batches(lengths, rows=self.batch_size, tokens=self.token_budget, new_tokens=decoding.max_new_tokens)
        for number, batch in enumerate(plan):
            prompts = [prepare(items[i], self.tokenizer, self.num_mel_bins) for i in batch]
            done = dict(zip(batch, self._answer(prompts, decoding, decoding.seed + number), strict=True))
            answers |= done
            if on_batch is not None:
                on_batch(done)
        return [answers[i] for i in range(len(items))]

    def sample(self, items: Sequence[Item], count: int, decoding: Decoding) -> list[list[Answer]]:
        """Draw ``count`` answers per item by sampling: [items][count].

        Raises:
            ValueError: greedy decoding, which would give ``count`` times the same answer.
        """
        if decoding.temperature <= 0:
            raise ValueError("sampling needs decoding.temperature > 0: greedy draws would all be equal")
        copies = [item for item in items for _ in range(count)]
        flat = self.generate(copies, decoding)
        return [flat[i * count : (i + 1) * count] for i in range(len(items))]

    def stream(self, item: Item, write: Callable[[str], None], decoding: Decoding | None = None) -> Answer:
        """Answer one item and hand the text to ``write`` piece by piece as it appears."""
        decoding = decoding or Decoding()
        prompt = prepare(item, self.tokenizer, self.num_mel_bins)
        relay = _Relay(self.tokenizer, write)
        return self._answer([prompt], decoding, decoding.seed, streamer=relay)[0]

    def _length(self, item: Item) -> int:
        # Audio tokens are exact and cheap; text is measured in characters, which sorts as well.
        clips = sum(audio_tokens(len(wave)) for wave in item.waves)
        return clips + sum(len(getattr(part, "text", "")) // 3 + 4 for m in item.sample.messages for part in m.content)

    def batch(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """Left-padded ids [R, L], their mask, and mel frames [M, F] with lengths [S], on the model's device."""
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, width - len(prompt.ids) :] = 1
        batch = {"input_ids": ids, "attention_mask": mask}
        mels = [prompt.mel for prompt in prompts if prompt.mel is not None]
        if mels:
            batch["input_features"] = torch.cat(mels, dim=1).to(self.model.dtype)
            batch["feature_lengths"] = torch.tensor([n for p in prompts for n in p.feature_lengths])
        return {name: value.to(self.model.device) for name, value in batch.items()}

    @torch.no_grad()
    def _answer(
        self, prompts: Sequence[Prompt], decoding: Decoding, seed: int, streamer: TextStreamer | None = None
    ) -> list[Answer]:
        started = time.perf_counter()
        batch = self.batch(prompts)
        training = self.model.training
        self.model.eval()
        try:
            with _seeded(seed, self.model.device):
                output = self.model.generate(
                    **batch,
                    **decoding.options(),
                    eos_token_id=self.stop_ids,
                    pad_token_id=self.pad_id,
                    use_cache=True,
                    streamer=streamer,
                )
        finally:
            self.model.train(training)
        rows = output[:, batch["input_ids"].shape[1] :].tolist()
        seconds = (time.perf_counter() - started) / len(rows)
        return [Answer(*self._text(row), seconds) for row in rows]

    def _text(self, ids: list[int]) -> tuple[str, bool]:
        """Decode up to the first end token; without one, the answer was cut short."""
        ends = [i for i, token in enumerate(ids) if token in self.stop_ids]
        text = self.tokenizer.decode(ids[: ends[0]] if ends else ids, skip_special_tokens=False)
        return text.strip(), not ends
