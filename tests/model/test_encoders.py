"""A second encoder is one entry of the table: a model is built, run, counted, planned, saved and loaded with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qa_train.config import EncoderConfig, LanguageModelConfig, ModelConfig, StageConfig
from qa_train.model import build_model, load_model
from qa_train.model.encoders.interface import EncoderKind, EncoderSource
from qa_train.model.encoders.kinds import ENCODERS, kind_of
from qa_train.model.flops import Regime, Shapes, Work, forward_flops, training_flops
from qa_train.model.layers.costs import EncoderFlops, Kept, Precision, Trained
from qa_train.model.layers.lengths import audio_tokens, mel_columns
from qa_train.planner.activations import activations
from qa_train.planner.balance import cost_of

NAME, WIDTH, BINS = "made_encoder", 24, 80


class MadeConfig(PretrainedConfig):
    model_type = NAME

    def __init__(self, d_model: int = WIDTH, max_source_positions: int = 1500, **kwargs: Any) -> None:
        self.d_model, self.num_mel_bins, self.max_source_positions = d_model, BINS, max_source_positions
        super().__init__(**kwargs)


class MadeEncoder(PreTrainedModel):
    """Four mel frames at a time through one matrix: as cheap as an encoder can be."""

    config_class = MadeConfig

    def __init__(self, config: MadeConfig) -> None:
        super().__init__(config)
        self.num_mel_bins, self.max_frames = BINS, 2 * config.max_source_positions
        self.layers = nn.ModuleList([nn.Linear(4 * BINS, config.d_model)])
        self.post_init()

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> BaseModelOutput:
        pieces = features.split(mel_columns(lengths, self.max_frames).tolist(), dim=1)
        cut = [piece[:, : 4 * audio_tokens(n)] for piece, n in zip(pieces, lengths.tolist(), strict=True)]
        padded = [nn.functional.pad(piece, (0, -piece.shape[1] % 4)) for piece in cut]
        joined = torch.cat(padded, dim=1).T.reshape(-1, 4 * BINS).to(self.layers[0].weight.dtype)
        return BaseModelOutput(last_hidden_state=self.layers[0](joined))


@dataclass(frozen=True)
class MadeCosts:
    width: int
    layers: int = 1

    @property
    def weights(self) -> int:
        return 4 * BINS * self.width

    def frames(self, segments: Sequence[int]) -> int:
        return sum(audio_tokens(length) for length in segments)

    def flops(self, segments: Sequence[int], *, trains: bool = False) -> EncoderFlops:
        # The mel needs no gradient: one product more, for that of the weights.
        return EncoderFlops(0, 2 * self.weights * self.frames(segments) * (2 if trains else 1), 0)

    def kept(self, segments: Sequence[int], precision: Precision, trained: Trained, mode: str) -> Kept:
        return Kept(4 * BINS * precision.product * self.frames(segments), 0, 0)


def opened(cfg: EncoderConfig, folder: Path | None, found: Any, weights: bool) -> EncoderSource:
    assert folder is None
    assert "model_type" not in cfg.config
    return EncoderSource(MadeConfig(**cfg.config), None, lambda encoder: nn.init.ones_(encoder.layers[0].bias))


@pytest.fixture(autouse=True)
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kind = EncoderKind((NAME,), MadeEncoder, lambda config: MadeCosts(config.d_model), opened)
    monkeypatch.setitem(ENCODERS, NAME, kind)
    AutoConfig.register(NAME, MadeConfig)
    yield
    CONFIG_MAPPING._extra_content.pop(NAME)


def settings(**changes: Any) -> ModelConfig:
    llm = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    cfg = ModelConfig(
        name="made",
        encoder=EncoderConfig(config={"model_type": NAME, "d_model": WIDTH}),
        llm=LanguageModelConfig(config={"model_type": "qwen2", "intermediate_size": 64, "vocab_size": 1024} | llm),
        tokenizer="builtin:nano",
    )
    return replace(cfg, **changes)


def test_a_model_runs_with_it_and_comes_back_from_its_files(tmp_path: Path) -> None:
    model, processor = build_model(settings(), seed=1)
    assert isinstance(model.model.audio_tower, MadeEncoder)
    assert bool((model.model.audio_tower.layers[0].bias == 1).all())
    lengths = torch.tensor([9, 40])
    tokens = sum(audio_tokens(n) for n in lengths.tolist())
    audio = model.config.audio_token_id
    ids = torch.tensor([[5] + [audio] * tokens + [6, 7]])
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "feature_lengths": lengths,
        "input_features": torch.randn(BINS, int(mel_columns(lengths, 3000).sum())),
    }  # fmt: skip
    loss = model(**batch).loss
    loss.backward()
    assert float(model.model.audio_tower.layers[0].weight.grad.abs().max()) > 0
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = load_model(tmp_path)
    assert float(again(**batch).loss) == pytest.approx(float(loss.detach()), rel=1e-6)


def test_its_own_costs_are_counted() -> None:
    model, _ = build_model(settings(), meta=True)
    shapes, work = Shapes.of(model.config), Work([400, 9], [120, 30], 20)
    one = 2 * 4 * BINS * WIDTH * sum(audio_tokens(n) for n in work.segments)
    forward, both = forward_flops(shapes, work), training_flops(shapes, work, Regime())
    assert (forward.stem, forward.encoder, forward.encoder_attention) == (0, one, 0)
    assert (both.encoder, training_flops(shapes, work, Regime(encoder=False)).encoder) == (2 * one, one)
    kept = activations(shapes, work, Precision(), Trained(whole=True), Trained(whole=True), ("none", "none"))
    assert kept.encoder == 2 * one / (2 * WIDTH)
    assert cost_of(StageConfig(stage="sft", model=settings()), shapes).audio_squared == 0


@pytest.mark.parametrize("encoder", [EncoderConfig(config={"model_type": "other"}), EncoderConfig("package:other")])
def test_another_name_is_refused_with_those_there_are(encoder: EncoderConfig) -> None:
    with pytest.raises(ValueError, match=f"no encoder of type .*other; there are qwen2_audio_encoder, .*{NAME}"):
        build_model(settings(encoder=encoder))
    with pytest.raises(ValueError, match="no encoder of type other; there are"):
        kind_of(SimpleNamespace(model_type="other"))
