"""One optimizer step over four batches has the same update however they are spread over ranks and accumulation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from qa_train.config import DataConfig, EncoderConfig, LanguageModelConfig, ModelConfig, SourceConfig
from qa_train.data.batches import open_data
from qa_train.model import build_model
from tests.train.conftest import metrics, run

# Plain gradient descent at an absurd rate: after one step the weights are the gradients, whatever they were before.
STEP = [
    "trainer.max_steps=1", "trainer.batches_per_step=4", "trainer.optim=sgd", "trainer.learning_rate=1e6",
    "trainer.weight_decay=0", "trainer.warmup_steps=0", "trainer.max_grad_norm=1e9", "data.tokens_per_batch=300",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_four_batches_on_one_two_and_four_processes(
    stage: str, tmp_path: Path, options: Callable[[str, Path], list[str]]
) -> None:
    records, weights = [], []
    for processes in (1, 2, 4):
        folder = tmp_path / str(processes)
        run(stage, *options(stage, folder), *STEP, processes=processes)
        records.append(metrics(folder)[0])
        weights.append(load_file(folder / "checkpoints" / "checkpoint-1" / "model.safetensors"))
    assert records[0]["supervised_tokens"] == records[1]["supervised_tokens"] == records[2]["supervised_tokens"]
    for record in records[1:]:
        assert record["loss"] == pytest.approx(records[0]["loss"], rel=1e-6)
        assert record["grad_norm"] == pytest.approx(records[0]["grad_norm"], rel=1e-5)
    for name, expected in weights[0].items():
        if "embed_positions" not in name:
            largest = float(expected.abs().max())
            assert largest > 2, name
            for other in weights[1:]:
                assert float((other[name] - expected).abs().max()) <= 1e-5 * largest, name


@pytest.mark.parametrize("template", ["base", "chat"])
def test_four_batches_in_one_forward(template: str, shards: Path) -> None:
    audio = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    text = {"model_type": "qwen2", "vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    cfg = ModelConfig(
        name="test", encoder=EncoderConfig(config={"num_mel_bins": 80} | audio),
        llm=LanguageModelConfig(config=text | heads), tokenizer="builtin:nano",
    )  # fmt: skip
    model, processor = build_model(cfg)
    source = SourceConfig(name="made", shards=[f"{shards}/speech-*.tar"], task="asr", template=template)
    data = DataConfig(sources={"made": source}, tokens_per_batch=300, shuffle_window=64)
    opened = open_data(data, processor.tokenizer, 80, seed=0, batches_per_step=4)
    batches = [opened.build(k) for k in range(4)]
    joined = {
        name: pad_sequence([row for batch in batches for row in batch[name]], batch_first=True, padding_value=fill)
        for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))
    }
    joined["input_features"] = torch.cat([batch["input_features"] for batch in batches], 1)
    joined["feature_lengths"] = torch.cat([batch["feature_lengths"] for batch in batches])
    assert len({int((batch["labels"] != -100).sum()) for batch in batches}) > 1, "a mean of means would be right"
    supervised = int((joined["labels"][:, 1:] != -100).sum())

    def gradients(micro_batches: list[dict[str, torch.Tensor]]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        losses = [model(**batch, num_items_in_batch=supervised).loss for batch in micro_batches]
        sum(losses).backward()  # type: ignore[union-attr]
        return float(sum(losses)), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    (loss, expected), (found_loss, found) = gradients([joined]), gradients(batches)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-5 * float(gradient.abs().max()), name
