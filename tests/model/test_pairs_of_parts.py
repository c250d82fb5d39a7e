"""Every sensible pair of a Whisper encoder and a causal LM becomes one model; others are refused with the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
    Qwen2AudioForConditionalGeneration,
    Wav2Vec2Config,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from qa_train.config import EncoderConfig, LanguageModelConfig, ModelConfig
from qa_train.model import build_model, load_model, weights_digest
from tests.model.conftest import Batch

LLM = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 512,
}  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    words = {word: i for i, word in enumerate(["a", "b", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "a")))
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    sizes = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_layers": 1}
    config = WhisperConfig(
        d_model=32, decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=80, vocab_size=50,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0, **sizes,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_whisper_joins_every_family(family: str, tied: bool, whisper: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    more = {"head_dim": 8} if family == "qwen3" else {}
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **LLM, **more, tie_word_embeddings=tied))
    llm.save_pretrained(tmp_path / "llm")
    write_tokenizer(tmp_path / "llm")
    cfg = ModelConfig(name="pair", encoder=EncoderConfig(str(whisper)), llm=LanguageModelConfig(str(tmp_path / "llm")))
    model, processor = build_model(cfg)
    # The LLM answers text as before, and its head is its own.
    ids = torch.tensor([[0, 1, 2, 4, 1]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits[..., :5], llm.eval()(ids).logits[..., :5])
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    # The encoder is Whisper's.
    encoder = WhisperModel.from_pretrained(whisper).encoder.state_dict()
    assert all(torch.equal(model.model.audio_tower.state_dict()[name], value) for name, value in encoder.items())
    # New special tokens start as the mean of the old embeddings; the whole answers audio, saves and comes back.
    rows, audio = model.get_input_embeddings().weight, model.config.audio_token_id
    torch.testing.assert_close(rows[audio], llm.get_input_embeddings().weight[:5].mean(0))
    wave = torch.randn(9000).numpy() * 0.1
    text = "<|audio_bos|><|AUDIO|><|audio_eos|>b"
    inputs = processor(text=text, audio=wave, sampling_rate=16_000, return_tensors="pt")
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, stock(**inputs).logits, rtol=1e-4, atol=1e-5)
    assert weights_digest(load_model(tmp_path / "out")[0]) == weights_digest(model)


def test_parts_that_cannot_be_joined_are_named(whisper: Path, tmp_path: Path) -> None:
    def refuses(says: str, **changes: Any) -> None:
        parts: dict[str, Any] = {
            "encoder": EncoderConfig(str(whisper)), "llm": LanguageModelConfig(config={"model_type": "qwen2", **LLM}),
            "tokenizer": "builtin:nano",
        }  # fmt: skip
        with pytest.raises(ValueError, match=says):
            build_model(ModelConfig(name="pair", **(parts | changes)))

    Wav2Vec2Config().save_pretrained(tmp_path / "wav2vec")
    BertConfig().save_pretrained(tmp_path / "bert")
    refuses(
        "no encoder of type wav2vec2; there are qwen2_audio_encoder, whisper, ",
        encoder=EncoderConfig(str(tmp_path / "wav2vec")),
    )
    refuses("model.encoder.source .*none cannot be read", encoder=EncoderConfig(str(tmp_path / "none")))
    refuses("model.llm.source .*none cannot be read", llm=LanguageModelConfig(str(tmp_path / "none")))
    refuses("is of type bert; use an LLM of the families", llm=LanguageModelConfig(str(tmp_path / "bert")))
    (tmp_path / "qwen").mkdir()
    code = {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}
    (tmp_path / "qwen" / "config.json").write_text(json.dumps({"model_type": "qwen", "auto_map": code}))
    refuses("contains code, which is never run here", llm=LanguageModelConfig(str(tmp_path / "qwen")))
    refuses("model_type gpt2; use one of", llm=LanguageModelConfig(config={"model_type": "gpt2"}))
    refuses("num_mel_bins=128, but .* has 80", encoder=EncoderConfig(str(whisper), config={"num_mel_bins": 128}))
    refuses("model.tokenizer .*none cannot be read", tokenizer=str(tmp_path / "none"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    encoder = {"num_mel_bins": 80, "d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2}
    cfg = ModelConfig(
        name="small",
        encoder=EncoderConfig(config=encoder | {"encoder_ffn_dim": 32}),
        llm=LanguageModelConfig(config={"model_type": "qwen2", **LLM, "vocab_size": 1024}),
        tokenizer="builtin:nano",
    )
    model, processor = build_model(cfg)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_a_checkpoint_whose_tokenizer_lacks_the_audio_token_is_refused(saved: Path, tmp_path: Path) -> None:
    model, _ = load_model(saved)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"<\|AUDIO\|>"):
        load_model(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    model, processor = load_model(saved)
    model.config.audio_token_id += 1
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"<\|AUDIO\|> is token 3 of the tokenizer and 4 of the model"):
        load_model(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab()["<|AUDIO|>"] == 3


def test_a_feature_extractor_of_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    model, processor = load_model(saved)
    model.save_pretrained(tmp_path)
    processor.feature_extractor = WhisperFeatureExtractor(feature_size=128)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="makes 128 mel bins and the encoder takes 80: put the processor's files"):
        load_model(tmp_path)


def test_clips_and_tokens_that_differ_are_named(saved: Path) -> None:
    model, _ = load_model(saved)
    batch = Batch([[3, -20, 2]])
    with pytest.raises(ValueError, match=r"takes \[80, frames\]: compute the log-mel with 80 bins"):
        model(**batch.joined())
