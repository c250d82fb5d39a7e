"""Checkpoints as a run saves them, small and made without training."""

from __future__ import annotations

from pathlib import Path

import torch

from qa_train.config import EncoderConfig, LanguageModelConfig, LoraSettings, ModelConfig
from qa_train.model import build_model
from qa_train.model.lora import add_adapters, plan_adapters
from qa_train.train.job.checkpoints import commit

SMALL = ModelConfig(
    name="small",
    encoder=EncoderConfig(
        config={"num_mel_bins": 80, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
        | {"encoder_ffn_dim": 32, "max_source_positions": 1500}
    ),
    llm=LanguageModelConfig(
        config={"model_type": "qwen2", "vocab_size": 600, "hidden_size": 32, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 512}
    ),
    tokenizer="builtin:nano",
)


def write_model(folder: Path, *, manifest: bool = True) -> Path:
    """A whole checkpoint of step 2."""
    model, processor = build_model(SMALL)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if manifest:
        commit(folder, {"step": 2})
    return folder


def write_adapters(folder: Path) -> Path:
    """A checkpoint of adapters that change something, on the model of `SMALL`."""
    cfg = ModelConfig(**{**vars(SMALL), "lora": LoraSettings(parts=["encoder", "llm"], r=4)})
    base, processor = build_model(SMALL)
    adapters = plan_adapters(base, cfg, seed=0)
    assert adapters is not None
    adapted = add_adapters(base, adapters)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    adapted.save_pretrained(str(folder))
    processor.save_pretrained(folder)
    adapters.write_base(folder)
    commit(folder, {"step": 2})
    return folder
