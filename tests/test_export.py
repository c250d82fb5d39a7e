from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from qa_train.config import EncoderConfig, LanguageModelConfig, ModelConfig
from qa_train.export import export
from qa_train.model import UnpaddedQwen2AudioForConditionalGeneration, build_model, load_model, weights_digest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint-3"
    audio = {"num_mel_bins": 80, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    text = {"model_type": "qwen2", "vocab_size": 1100, "hidden_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    cfg = ModelConfig(
        name="test",
        encoder=EncoderConfig(config=audio | {"encoder_ffn_dim": 32}),
        llm=LanguageModelConfig(config=text | heads),
        tokenizer="builtin:nano",
    )
    model, processor = build_model(cfg)
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return folder


def test_exported_folder_is_whole_and_stock_transformers_reads_it(checkpoint: Path, tmp_path: Path) -> None:
    result = export(checkpoint, tmp_path / "out")
    names = {path.name for path in result.path.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert names >= {"processor_config.json", "chat_template.jinja"}
    assert result.max_difference < 1e-4
    assert not list(tmp_path.glob("*.partial"))
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(result.path)
    assert stock.config.architectures == ["Qwen2AudioForConditionalGeneration"]
    assert weights_digest(stock) == weights_digest(load_model(checkpoint)[0])
    chat = [{"role": "user", "content": [{"type": "audio", "audio_url": "x"}, {"type": "text", "text": "What?"}]}]
    text = AutoProcessor.from_pretrained(result.path).apply_chat_template(chat, add_generation_prompt=True)
    assert "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nWhat?<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")


def test_a_place_that_is_taken_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ValueError, match="not an empty folder"):
        export(checkpoint, tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


def test_an_export_that_answers_otherwise_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = UnpaddedQwen2AudioForConditionalGeneration.save_pretrained

    def spoil(model: UnpaddedQwen2AudioForConditionalGeneration, folder: Path) -> None:
        with torch.no_grad():
            model.lm_head.weight[5] += 1
        save(model, folder)

    monkeypatch.setattr(UnpaddedQwen2AudioForConditionalGeneration, "save_pretrained", spoil)
    with pytest.raises(RuntimeError, match="gives other logits"):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
