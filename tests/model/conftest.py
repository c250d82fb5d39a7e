"""A small random model, its stock twin with the same weights, and batches in both forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

from qa_train.model import UnpaddedQwen2AudioForConditionalGeneration
from qa_train.model.layers.lengths import audio_tokens

MELS, FULL, AUDIO_ID = 16, 3000, 3
TINY_TEXT = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 90,
    "max_position_embeddings": 4096,
}


def make_config(**text: Any) -> Qwen2AudioConfig:
    return Qwen2AudioConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "num_mel_bins": MELS,
            "max_source_positions": FULL // 2,
        },
        text_config=TINY_TEXT | text,
        audio_token_index=AUDIO_ID,
    )


@dataclass
class Twins:
    """``ours`` and ``stock`` have equal weights. Random positions and biases make every mistake visible."""

    ours: UnpaddedQwen2AudioForConditionalGeneration
    stock: Qwen2AudioForConditionalGeneration


def make_twins(**text: Any) -> Twins:
    torch.manual_seed(0)
    stock = Qwen2AudioForConditionalGeneration(make_config(**text)).eval()
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    ours = UnpaddedQwen2AudioForConditionalGeneration(make_config(**text)).eval()
    ours.load_state_dict(stock.state_dict())
    return Twins(ours, stock)


@pytest.fixture
def twins() -> Twins:
    return make_twins()


@dataclass
class Batch:
    """One batch, padded as the stock model wants it, and joined as ours does.

    rows: for each row a list of parts, each a number of text tokens ("t5" is written 5) or a clip's mel frames
    (negative). The mel of a padded segment goes on past its end with noise, of which two frames matter.
    """

    rows: list[list[int]]
    left: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.frames = [-part for row in self.rows for part in row if part < 0]
        texts = [[self._ids(part, generator) for part in row] for row in self.rows]
        ids = [[token for part in row for token in part] for row in texts]
        longest = max(map(len, ids))
        pads = [longest - len(row) for row in ids]
        if self.left:
            self.input_ids = torch.tensor([[0] * pad + row for pad, row in zip(pads, ids, strict=True)])
            self.attention_mask = torch.tensor([[0] * pad + [1] * len(r) for pad, r in zip(pads, ids, strict=True)])
        else:
            self.input_ids = torch.tensor([row + [0] * pad for pad, row in zip(pads, ids, strict=True)])
            self.attention_mask = torch.tensor([[1] * len(r) + [0] * pad for pad, r in zip(pads, ids, strict=True)])
        text = (self.input_ids > AUDIO_ID) & (self.attention_mask == 1)
        self.labels = torch.where(text, self.input_ids, -100)
        self.features = torch.randn(len(self.frames), MELS, FULL, generator=generator)

    def _ids(self, part: int, generator: torch.Generator) -> list[int]:
        if part < 0:
            return [AUDIO_ID] * audio_tokens(-part)
        return torch.randint(AUDIO_ID + 1, TINY_TEXT["vocab_size"], (part,), generator=generator).tolist()

    def text(self) -> dict[str, torch.Tensor]:
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def padded(self) -> dict[str, torch.Tensor]:
        if not self.frames:
            return self.text()
        mask = torch.arange(FULL) < torch.tensor(self.frames)[:, None]
        return {**self.text(), "input_features": self.features, "feature_attention_mask": mask.long()}

    def joined(self) -> dict[str, torch.Tensor]:
        if not self.frames:
            return self.text()
        columns = [segment[:, : min(n + 2, FULL)] for segment, n in zip(self.features, self.frames, strict=True)]
        lengths = torch.tensor(self.frames)
        return {**self.text(), "input_features": torch.cat(columns, 1), "feature_lengths": lengths}
