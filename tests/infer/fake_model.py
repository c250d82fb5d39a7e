"""A stand-in for the model: it answers from what it is given, so that tests can tell what that was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from qa_train.data.audio.front_end import FRONT_END
from qa_train.data.audio.mel import log_mel
from qa_train.data.text.sample import AudioPart, Message, Sample, TextPart
from qa_train.infer.generate import Item
from qa_train.model.tokenizers import load_tokenizer

RATE = 16_000
MELS = 80


def processor() -> Any:
    """The built-in tokenizer beside the feature size, as a processor holds them."""
    return SimpleNamespace(
        tokenizer=load_tokenizer("builtin:nano"), feature_extractor=SimpleNamespace(feature_size=MELS)
    )


class FakeEncoder:
    """States of width 1: 1.0 where the clip has any contrast, 0.0 in silence."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, list[int]]] = []

    def __call__(self, features: torch.Tensor, lengths: torch.Tensor) -> Any:
        """Mel [M, F] of joined segments with their lengths -> states [T, 1]."""
        self.calls.append((features, lengths.tolist()))
        states, column = [], 0
        for frames in lengths.tolist():
            width = frames + FRONT_END.tail(frames)
            clip = features[:, column : column + width]
            column += width
            states.append(torch.full((FRONT_END.tokens_of(frames), 1), float(clip.max() - clip.min() > 0.1)))
        assert column == features.shape[1]
        return SimpleNamespace(last_hidden_state=torch.cat(states))


class FakeModel:
    """Says "tone" or "silence" for each clip, then the row's audio tokens, and ends with <|im_end|>."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.training = True
        self.calls: list[dict[str, Any]] = []
        self.model = SimpleNamespace(audio_tower=FakeEncoder())

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def answer(self, ids: list[int], states: torch.Tensor) -> str:
        """The answer to one row, of which ``states`` [T, 1] are the audio tokens."""
        names = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
        audio, start, end = (self.tokenizer.convert_tokens_to_ids(name) for name in names)
        said, place = [], 0
        for first in (i for i, token in enumerate(ids) if token == start):
            count = ids.index(end, first) - first - 1
            said.append("tone" if states[place : place + count].any() else "silence")
            place += count
        return " ".join([*said, str(ids.count(audio))])

    def generate(self, **inputs: Any) -> torch.Tensor:
        """Left-padded ids in, ids with the answers appended out, as transformers does."""
        assert not self.training
        self.calls.append(inputs)
        ids, copies, limit = inputs["input_ids"], inputs["num_return_sequences"], inputs["max_new_tokens"]
        audio = self.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
        states = inputs.get("audio_states", torch.zeros(0, 1)).split((ids == audio).sum(1).tolist())
        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        rows = []
        for row, mask, heard in zip(ids, inputs["attention_mask"].bool(), states, strict=True):
            answer = self.answer(row[mask].tolist(), heard)
            rows += [[*self.tokenizer.encode(answer, add_special_tokens=False), end][:limit]] * copies
        if inputs.get("streamer") is not None:
            inputs["streamer"].put(ids)
            for token in rows[0]:
                inputs["streamer"].put(torch.tensor([token]))
            inputs["streamer"].end()
        out = torch.full((len(rows), max(map(len, rows))), inputs["pad_token_id"])
        for i, row in enumerate(rows):
            out[i, : len(row)] = torch.tensor(row)
        return torch.cat([ids.repeat_interleave(copies, dim=0), out], dim=1)


def tone(seconds: float) -> np.ndarray:
    """A quiet 440 Hz tone at 16 kHz."""
    return (0.1 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def item(wave: np.ndarray | None, text: str = "What is it?", key: str = "k", template: str = "chat") -> Item:
    """One user turn with at most one clip."""
    clips = 0 if wave is None else 1
    content = (*(AudioPart(i) for i in range(clips)), TextPart(text))
    sample = Sample(key, (Message("user", content),), clips, "test", None, template)
    return Item(sample, () if wave is None else (wave,))


def mel_of(wave: np.ndarray) -> torch.Tensor:
    """The features one short clip is given as."""
    return log_mel(wave, MELS)
