"""A stand-in for the model: it answers from what it is given, so that tests can tell what that was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from qa_train.data.audio import log_mel, tail_frames
from qa_train.data.sample import AudioPart, Message, Sample, TextPart
from qa_train.infer.generate import Item
from qa_train.model.tokenizers import load_tokenizer

RATE = 16_000
MELS = 80


def processor() -> Any:
    """The built-in tokenizer beside the feature size, as a processor holds them."""
    return SimpleNamespace(
        tokenizer=load_tokenizer("builtin:nano"), feature_extractor=SimpleNamespace(feature_size=MELS)
    )


class FakeModel:
    """Says "tone" or "silence", the number of audio tokens of the row, and ends with <|im_end|>."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.training = True
        self.calls: list[dict[str, Any]] = []

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool = True) -> None:
        self.training = mode

    def generate(self, **inputs: Any) -> torch.Tensor:
        """Left-padded ids in, ids with the answers appended out, as transformers does."""
        assert not self.training
        self.calls.append(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        audio = self.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
        start = self.tokenizer.convert_tokens_to_ids("<|audio_bos|>")
        lengths = iter(inputs.get("feature_lengths", torch.zeros(0)).tolist())
        mel, column = inputs.get("input_features"), 0
        answers = []
        for row, keep in zip(ids, mask.bool(), strict=True):
            said = []
            for _ in range(int((row[keep] == start).sum())):
                frames = next(lengths)
                width = frames + tail_frames(frames)
                clip = mel[:, column : column + width]
                column += width
                said.append("tone" if float(clip.max() - clip.min()) > 0.1 else "silence")
            answers.append(f"{' '.join(said)} {int((row[keep] == audio).sum())}".strip())
        assert mel is None or column == mel.shape[1]
        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        limit = inputs["max_new_tokens"]
        rows = [[*self.tokenizer.encode(a, add_special_tokens=False), end][:limit] for a in answers]
        if inputs.get("streamer") is not None:
            inputs["streamer"].put(ids)
            for token in rows[0]:
                inputs["streamer"].put(torch.tensor([token]))
            inputs["streamer"].end()
        out = torch.full((len(rows), max(map(len, rows))), inputs["pad_token_id"])
        for i, row in enumerate(rows):
            out[i, : len(row)] = torch.tensor(row)
        return torch.cat([ids, out], dim=1)


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
